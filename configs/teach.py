"""A new sound from ten clips: low-rank adapters on the frozen weights of `init_from`.

Command:   python train.py --config configs/teach.py --config.data.roots=new,others --config.data.weights=1,1 --config.data.valid_root=held_out
Hardware:  two CPU cores
Time:      5 to 12 minutes with the scores, on cores that other jobs used as well
Expect:    a kalimba, which the small model does not know: SDRi from -0.1 to 11.6 dB (examples/teach.py)
"""  # noqa: E501

from ml_collections import ConfigDict

from audiosep_jax.training.config import default_config


def get_config() -> ConfigDict:
    """Half of the targets are the new sound; examples/teach.py also scores the result."""
    config = default_config()
    config.name = "teach"
    config.init_from = "small"
    config.batch_size = 8
    config.num_steps = 240
    config.log_every_steps = 20
    config.data.source = "folders"
    config.data.segment_seconds = 1.0
    config.data.min_seconds = 0.1
    config.mixing.num_crops = 3
    config.augment.speed_probability = 0.5
    config.augment.equalise_probability = 0.5
    config.loss.waveform_l1 = 0.0
    config.loss.multi_resolution_stft = 1.0
    config.loss.thresholded_snr = 1.0
    config.loss.activity = 1.0
    config.optim.adapter_rank = 4
    config.optim.learning_rate = 2e-3
    config.optim.warmup = "linear"
    config.optim.warmup_steps = 20
    config.optim.decay_steps = 240
    config.optim.clip_norm = 1.0
    config.valid.num_mixtures = 32
    config.valid.batch_size = 8
    config.valid.every_steps = 240
    config.checkpoint.every_steps = 100
    config.checkpoint.keep_every_steps = 0
    return config
