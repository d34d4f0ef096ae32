"""One speaker out of several, asked for by another recording of his voice.

Command:   python train.py --config configs/voice.py
           reads the folder `voices`, which `examples/voices.py` makes (see docs/training.md)
Hardware:  one CPU core
Time:      35 minutes to step 2000 on a busy core
Expect:    SI-SDRi 3 dB on speakers of the training, 0 dB on others (see docs/training.md)
"""

from ml_collections import ConfigDict

from audiosep_jax.training.config import default_config


def get_config() -> ConfigDict:
    """The demo's network, on longer mixtures of equally loud voices."""
    config = default_config()
    config.name = "voice"
    config.batch_size = 8
    config.num_steps = 3000
    config.log_every_steps = 50
    config.text.encoder = "voice"
    config.data.source = "speakers"
    config.data.root = "voices/train"
    config.data.valid_root = "voices/valid"
    config.data.segment_seconds = 2.0

    config.mixing.snr_db = (-5.0, 5.0)

    config.model.sample_rate_hz = 8000
    config.model.window_samples = 512
    config.model.hop_samples = 256
    config.model.condition_features = 256
    config.model.stem_channels = 8
    config.model.encoder_channels = (8, 32, 64, 96)
    config.model.time_pools = (2, 2, 2, 2)
    config.model.frequency_pools = (4, 4, 2, 2)

    config.loss.waveform_l1 = 0.0
    config.loss.thresholded_snr = 1.0
    config.optim.learning_rate = 2e-3
    config.optim.warmup = "linear"
    config.optim.warmup_steps = 100
    config.optim.decay_steps = 3000
    config.optim.clip_norm = 5.0
    config.optim.ema_decay = 0.99

    config.valid.num_mixtures = 96
    config.valid.segment_seconds = 3.0
    config.valid.every_steps = 500
    config.checkpoint.every_steps = 500
    config.checkpoint.keep_every_steps = 0
    return config
