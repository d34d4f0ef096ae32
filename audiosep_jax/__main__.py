"""The command `audiosep`; `python -m audiosep_jax` is the same."""

import importlib
import sys
from collections.abc import Sequence

# Verb, module whose main(arguments) runs it, and the line of the help.
VERBS = {
    "separate": ("separation.command", "separate what sentences describe from recordings"),
    "evaluate": ("evaluation.command", "score a separator on a benchmark or on your own mixtures"),
    "compare": ("evaluation.compare", "put the results of several evaluations side by side"),
    "prepare": ("preparing.command", "turn a downloaded data set into shards for training"),
    "convert": ("training.convert", "convert checkpoints from and to AudioSep's PyTorch files"),
    "export": (
        "separation.export",
        "store a separator as one file for JAX alone or for ONNX engines",
    ),
    "demo": ("demo.command", "serve a web page that separates recordings"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb that `argv` names and return its exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    verb = arguments[0] if arguments else "--help"
    if verb in ("--help", "-h"):
        print(_help())
        return 0
    if verb == "--version":
        import audiosep_jax

        print(audiosep_jax.__version__)
        return 0
    if verb not in VERBS:
        print(f"error: unknown command {verb!r}; known: {', '.join(VERBS)}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"audiosep_jax.{VERBS[verb][0]}")
    return int(module.main(arguments[1:]))


def _help() -> str:
    lines = [f"  {verb:<10}{text}" for verb, (_, text) in VERBS.items()]
    return "\n".join(
        [
            "usage: audiosep COMMAND [options]",
            "",
            "Separate the sounds that sentences describe from recordings.",
            "",
            *lines,
            "",
            "audiosep COMMAND --help explains a command. To train a separator, run train.py.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
