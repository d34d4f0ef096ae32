"""Two speakers apart, without a query: each of two slots finds one of them.

Command:   python train.py --config configs/blind.py
           reads the folder `voices`, which `examples/voices.py` makes (see docs/training.md)
Hardware:  one CPU core
Time:      37 minutes for 2000 steps of 6 mixtures of 1.5 s, on a core that other jobs used as well
Expect:    SI-SDRi 2 dB on speakers of the training, 0.7 dB on others, and 3.2 and 1.5 dB after 1055
           steps more with one slot (see docs/training.md)
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
