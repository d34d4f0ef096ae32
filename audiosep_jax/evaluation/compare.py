"""Puts several evaluations of the same mixtures side by side; `--help` shows an example."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from audiosep_jax.cli import Parser, exit_code
from audiosep_jax.errors import InputError

EXAMPLE = """example, of two checkpoints:
  python -m audiosep_jax.evaluation.compare results/clap results/clip --output results/clap-clip
and of three wordings of the queries, the study of the paper:
  for column in label caption reworded; do
    python -m audiosep_jax.evaluate --checkpoint audiosep --protocol mixtures \\
        --metadata mine.csv --audio data --query_column $column --output results/$column
  done
  python -m audiosep_jax.evaluation.compare results/label results/caption results/reworded \\
      --output results/wordings
writes comparison.json, comparison.md and comparison.png; differences are to the first."""


def main(argv: Sequence[str]) -> int:
    """Exit code: 0, or 2 with one line on stderr and nothing written."""
    return exit_code(lambda: _compare(_parser().parse_args(argv)))


def _compare(arguments: argparse.Namespace) -> None:
    folders, names = arguments.results, arguments.names or []
    if names and len(names) != len(folders):
        raise InputError(f"--names gives {len(names)} names for {len(folders)} results")
    output = arguments.output
    if output.exists() and not output.is_dir():
        raise InputError(f"--output {output}: is not a folder")
    from audiosep_jax.evaluation import comparison, figures, results

    evaluations = [
        comparison.read_evaluation(folder, name)
        for folder, name in zip(folders, names or [""] * len(folders), strict=True)
    ]
    content = comparison.compare(evaluations)
    drawn = []
    if not arguments.no_figures:
        figures.differences(evaluations, output / "comparison.png")
        drawn = ["comparison.png"]
    results.write_json(output / comparison.JSON_NAME, content)
    results.write_whole(output / comparison.MARKDOWN_NAME, comparison.markdown(content, drawn))
    for name in (comparison.JSON_NAME, comparison.MARKDOWN_NAME, *drawn):
        print(output / name)


def _parser() -> Parser:
    description = "Put several evaluations of the same mixtures side by side."
    parser = Parser("python -m audiosep_jax.evaluation.compare", description, EXAMPLE)
    add = parser.add_argument
    add("results", type=Path, nargs="+", metavar="RESULTS", help="folder that evaluate wrote")
    add("--names", nargs="+", metavar="NAME", help="what to call them (default: the folders)")
    add("--output", type=Path, required=True, metavar="DIR", help="folder for the comparison")
    add("--no_figures", action="store_true", help="no picture, for which matplotlib is needed")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
