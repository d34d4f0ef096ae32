"""A separator of synthetic sounds in minutes: nothing to download, two CPU cores are enough.

Command:   python train.py --config configs/demo.py
Hardware:  two CPU cores
Time:      about 6 minutes
Expect:    validation SDRi 7.7 dB
"""

from ml_collections import ConfigDict

from audiosep_jax.training.config import default_config


def get_config() -> ConfigDict:
    """Differences from the paper's run."""
    config = default_config()
    config.name = "demo"
    config.batch_size = 8
    config.num_steps = 1200
    config.log_every_steps = 20
    config.data.source = "synthetic"
    config.data.segment_seconds = 1.0

    config.model.sample_rate_hz = 8000
    config.model.window_samples = 512
    config.model.hop_samples = 256
    config.model.stem_channels = 8
    config.model.encoder_channels = (8, 32, 64, 96)
    config.model.time_pools = (2, 2, 2, 2)
    config.model.frequency_pools = (4, 4, 2, 2)

    config.optim.learning_rate = 3e-3
    config.optim.warmup = "linear"
    config.optim.warmup_steps = 100
    config.optim.decay_steps = 1200
    config.optim.clip_norm = 1.0

    config.valid.num_mixtures = 96
    config.valid.every_steps = 300
    config.checkpoint.every_steps = 300
    config.checkpoint.keep_every_steps = 0
    return config
