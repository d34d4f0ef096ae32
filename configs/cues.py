"""One speaker out of two, asked for by how he differs from the other: louder, first, deeper, ...

Command:   python train.py --config configs/cues.py
           reads the folder `voices`, which `examples/voices.py` makes (see docs/training.md)
Hardware:  one CPU core
Time:      30 minutes to step 1200
Expect:    82 % right choices of two speakers who were not heard before (see docs/training.md)
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Differences from the run that asks by recordings of voices."""
    config = runpy.run_path(str(Path(__file__).with_name("voice.py")))["get_config"]()
    config.name = "cues"
    config.text.encoder = "hashed"
    config.model.condition_features = 512
    config.data.source = "folders"
    config.data.segment_seconds = 3.0
    config.mixing.cue_probability = 1.0
    config.mixing.num_crops = 4
    config.augment.span_probability = 0.8
    config.augment.speed_probability = 0.5
    config.num_steps = 1200
    config.optim.decay_steps = 1200
    config.valid.every_steps = 400
    config.checkpoint.every_steps = 200
    return config
