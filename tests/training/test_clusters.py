"""The recipes of docs/clusters.md, run by imitations of Slurm and Kubernetes."""

import re
import stat
import subprocess
from pathlib import Path

import pytest
import yaml

import train

DOCUMENT = (Path(__file__).parents[2] / "docs" / "clusters.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    """The first block of code of a language."""
    found = re.search(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL)
    assert found
    return found[1]


def program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


class Slurm:
    """`srun` runs a command, `scontrol requeue` makes `sbatch` run the job again."""

    def __init__(self, folder: Path, codes: list[int]) -> None:
        self.folder = folder
        self.codes = codes
        (folder / "bin").mkdir()
        (folder / "job.sh").write_text(block("bash"), encoding="utf-8")
        program(folder / "bin" / "srun", 'exec "$@"')
        program(folder / "bin" / "scontrol", 'echo "$*" >> requeued')
        # Exit codes of train.py, one after another.
        program(
            folder / "bin" / "python", 'echo "$*" >> ran\nexit $(sed -n "$(wc -l < ran)p" codes)'
        )
        (folder / "codes").write_text("".join(f"{code}\n" for code in codes), encoding="utf-8")

    def sbatch(self) -> list[int]:
        """Run the job until it is not requeued; return its exit codes."""
        ended: list[int] = []
        while len(ended) == self.requeued():
            path = f"{self.folder / 'bin'}:/usr/bin:/bin"
            environment = {"PATH": path, "SLURM_JOB_ID": "7"}
            job = subprocess.run(
                ["bash", "job.sh"], cwd=self.folder, env=environment, timeout=60, check=False
            )
            ended.append(job.returncode)
        return ended

    def requeued(self) -> int:
        log = self.folder / "requeued"
        lines = log.read_text().splitlines() if log.exists() else []
        assert set(lines) <= {"requeue 7"}
        return len(lines)


@pytest.mark.parametrize(
    "codes",
    [[train.STOPPED, 143, train.STOPPED, train.FINISHED], [train.FINISHED], [2], [1], [134]],
)
def test_a_slurm_job_runs_again_as_long_as_it_was_stopped_and_saved(
    tmp_path: Path, codes: list[int]
) -> None:
    slurm = Slurm(tmp_path, codes)
    assert slurm.sbatch() == codes
    ran = (tmp_path / "ran").read_text().splitlines()
    assert len(ran) == len(codes)
    assert set(ran) == {
        "train.py --config configs/clap.py --workdir /shared/runs/clap --config.batch_size=384"
    }


def test_slurm_signals_the_steps_before_the_time_is_up() -> None:
    assert "#SBATCH --signal=TERM@120" in block("bash")  # with B: only the script would get it


def kubernetes(job: dict, codes: list[int]) -> str:
    """State of a Job whose pods end with these codes, one after another."""
    failures = 0
    for code in codes:
        if code == 0:
            return "complete"
        rules = job["spec"]["podFailurePolicy"]["rules"]
        action = next(
            (rule["action"] for rule in rules if code in rule["onExitCodes"]["values"]), "Count"
        )
        if action == "FailJob":
            return "failed"
        failures += action == "Count"
        if failures > job["spec"]["backoffLimit"]:
            return "failed"
    return "active"


def test_a_kubernetes_job_runs_again_after_a_stop_and_not_after_wrong_input() -> None:
    job = yaml.safe_load(block("yaml"))
    assert job["kind"] == "Job"
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"  # podFailurePolicy needs it
    assert kubernetes(job, [train.STOPPED, 143] * 500 + [train.FINISHED]) == "complete"
    assert kubernetes(job, [2]) == "failed"
    assert kubernetes(job, [134, 1, train.STOPPED, 0]) == "complete"
    assert kubernetes(job, [1] * 100) == "failed"
