"""The web page as a Hugging Face Space. README.md tells how to upload it."""

import os

from audiosep_jax.demo.command import main

ADDRESS = ["--host", "0.0.0.0", "--port", os.environ.get("PORT", "7860")]
LIMITS = ["--max_seconds", "60", "--max_megabytes", "25"]

os.environ.pop("SYSTEM", None)  # with it, Gradio would watch the folder to reload what changes

if __name__ == "__main__":
    raise SystemExit(main([*ADDRESS, *LIMITS, "--no_auth"]))  # a public Space is for everybody
