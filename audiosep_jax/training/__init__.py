"""Training: the experiment's config, the step, checkpoints, processes and logs."""

from typing import Literal

CHECKPOINT_FOLDER = "checkpoints"  # in a workdir
WeightType = Literal["float32", "float16"]  # of stored kernels; networks compute in float32
