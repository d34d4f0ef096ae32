"""Separate what sentences describe from recordings; the same as `audiosep separate`."""

import sys

from audiosep_jax.separation.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
