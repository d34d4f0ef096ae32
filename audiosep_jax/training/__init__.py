"""Training: the experiment's config, the step, checkpoints, processes and logs."""

CHECKPOINT_FOLDER = "checkpoints"  # in a workdir
