"""Real recordings of 10 or 50 classes in the folder layout of ESC-50, queried by class name.

Command:   python train.py --config configs/esc50.py --config.data.root=ESC-50
Hardware:  two CPU cores (or any GPU)
Time:      45 minutes to step 3000 on two busy CPU cores
Expect:    validation SDRi 6 dB on the ESC-10 classes at step 3000, still rising
"""

from ml_collections import ConfigDict

from audiosep_jax.training.config import default_config


def get_config() -> ConfigDict:
    """A small network at 16 kHz; folds 1 to 3 train, 4 validates, 5 is left for testing."""
    config = default_config()
    config.name = "esc50"
    config.batch_size = 8
    config.num_steps = 8_000
    config.log_every_steps = 50
    config.data.source = "esc50"
    config.data.train_folds = (1, 2, 3)
    config.data.valid_folds = (4,)
    config.data.segment_seconds = 1.0

    config.model.sample_rate_hz = 16000
    config.model.window_samples = 1024
    config.model.hop_samples = 512
    config.model.stem_channels = 8
    config.model.encoder_channels = (8, 32, 64, 96)
    config.model.time_pools = (2, 2, 2, 2)
    config.model.frequency_pools = (4, 4, 4, 2)

    config.optim.warmup = "linear"
    config.optim.warmup_steps = 200
    config.optim.clip_norm = 1.0
    config.optim.ema_decay = 0.999

    config.valid.num_mixtures = 120
    config.valid.batch_size = 8
    config.valid.segment_seconds = 5.0
    config.valid.every_steps = 1000
    config.checkpoint.every_steps = 500
    config.checkpoint.keep_every_steps = 0
    return config
