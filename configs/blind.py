"""Two speakers apart, without a query: each of two slots finds one of them.

Command:   python train.py --config configs/blind.py
           reads the folder `voices`, which `examples/voices.py` makes (see docs/training.md)
Hardware:  one CPU core
Time:      45 minutes to step 2000 on a busy core
Expect:    SI-SDRi 3 dB on speakers of the training (see docs/training.md)
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Differences from the config that asks for a voice."""
    config = runpy.run_path(str(Path(__file__).with_name("voice.py")))["get_config"]()
    config.name = "blind"
    config.text.encoder = "none"
    config.model.slots = 2
    config.loss.assign = "one_each"
    return config
