"""An experiment of seconds: a config file for tests of training."""

from ml_collections import ConfigDict

from audiosep_jax.training.config import default_config


def get_config() -> ConfigDict:
    """Twelve steps of a network of one level; checkpoints at 4, 8, 12, validation at 8 and 12."""
    config = default_config()
    config.name = "tiny"
    config.batch_size = 8
    config.num_steps = 12
    config.log_every_steps = 1
    config.data.source = "synthetic"
    config.data.num_synthetic_clips = 40
    config.data.segment_seconds = 0.25

    config.model.sample_rate_hz = 8000
    config.model.window_samples = 64
    config.model.hop_samples = 32
    config.model.stem_channels = 4
    config.model.encoder_channels = (4,)
    config.model.time_pools = (2,)
    config.model.frequency_pools = (2,)

    config.optim.learning_rate = 1e-2
    # Else a gradient that is nothing but rounding moves a weight by a whole step.
    config.optim.epsilon = 1e-2
    config.optim.warmup = "none"
    config.optim.decay_steps = 100
    config.optim.ema_decay = 0.9

    config.valid.num_mixtures = 8
    config.valid.batch_size = 8
    config.valid.every_steps = 8
    config.valid.num_examples = 2
    config.checkpoint.every_steps = 4
    config.checkpoint.keep_every_steps = 0
    return config
