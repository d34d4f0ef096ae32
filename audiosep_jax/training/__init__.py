"""Training: the experiment's config, the step, checkpoints, processes and logs."""
