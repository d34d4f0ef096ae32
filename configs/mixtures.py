"""Training on captions of mixtures alone: no sound is ever heard on its own.

Command:   python train.py --config configs/mixtures.py
Hardware:  two CPU cores
Time:      about 20 minutes of one busy core
Expect:    validation SI-SDRi 6.2 dB, SDRi 7.1 dB; one sound at a time teaches 6.4 and 7.0 dB
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Differences from the demo."""
    config = runpy.run_path(str(Path(__file__).with_name("demo.py")))["get_config"]()
    config.name = "mixtures"
    config.batch_size = 8  # of six estimates each
    config.num_steps = 600
    config.optim.decay_steps = 600
    config.data.source = "synthetic_mixtures"
    config.data.num_synthetic_clips = 960
    config.mixing.num_queries = 2
    config.loss.waveform_l1 = 0.0
    config.loss.thresholded_snr = 1.0
    config.loss.remix = 0.3
    return config
