"""Number of processor cores that a process can count on."""

import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def available_cores(local_processes: int = 1) -> int:
    """Cores that this process may use, at least 1.

    Counts the cores that the process is bound to, the quota of its container (a pod with `cpu: 8`
    on a node of 128 cores has 8), and the other processes of the run.

    Args:
        local_processes: processes of the run on this host, which share its cores and the quota.
    """
    host = os.cpu_count() or 1
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else host
    return max(1, min(bound, int(min(host, cgroup_quota()) / local_processes)))


def cgroup_quota(root: Path = _CGROUPS, self_path: Path = Path("/proc/self/cgroup")) -> float:
    """Cores that the control group of this process, or one above it, may use; infinity for all.

    Args:
        root: where the file system of control groups is mounted.
        self_path: file that names the groups of this process.
    """
    quotas = [float("inf")]
    for line in _read(self_path).splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / controllers if controllers else root
        folder = base / group.lstrip("/")
        while folder.is_relative_to(base):
            quotas.append(_quota(folder))
            folder = folder.parent
    return min(quotas)


def _quota(folder: Path) -> float:
    """Quota of one group, by version 2 or version 1 of control groups."""
    limits = _read(folder / "cpu.max").split()
    if not limits:
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        limits = " ".join(_read(folder / name) for name in names).split()
    if len(limits) != 2 or not all(limit.isdecimal() for limit in limits):
        return float("inf")  # `max`, or -1
    return int(limits[0]) / max(1, int(limits[1]))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
