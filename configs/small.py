"""The separator that is shipped as `small`: real sounds, speech and instruments, asked for freely.

Command:   python train.py --config configs/small.py
           reads the folder `corpus`, which `examples/small_corpus.py` makes (see docs/data.md)
Hardware:  one GPU of 16 GB, and 16 CPU cores for the mixtures
Time:      6 minutes on an H100
Expect:    SDRi 8.8 dB on 0 dB pairs of the ten classes of ESC-10, fold 4
"""

from ml_collections import ConfigDict

from audiosep_jax.training.config import default_config

# Manifests of the corpus, and their shares of targets and of interferers.
SHARES = {"sounds": 0.55, "speech": 0.12, "voices": 0.05, "instruments": 0.22, "loops": 0.06}


def get_config() -> ConfigDict:
    """Differences from the paper's run."""
    config = default_config()
    config.name = "small"
    config.batch_size = 64
    config.num_steps = 7000
    config.log_every_steps = 50

    config.text.encoder = "static"
    config.text.model = "audiosep_jax/weights/small/text"
    config.data.source = "manifest"
    config.data.roots = tuple(f"corpus/train_{kind}.json" for kind in SHARES)
    config.data.weights = tuple(SHARES.values())
    config.data.valid_root = "corpus/valid.json"
    config.data.segment_seconds = 3.0
    config.data.min_seconds = 0.1
    config.data.alike = ALIKE

    config.mixing.max_mix_num = 3
    config.mixing.snr_db = (-10.0, 10.0)
    config.mixing.target_rms_db = (-40.0, -15.0)
    config.mixing.num_crops = 3
    config.augment.polarity_probability = 0.5
    config.augment.speed_probability = 0.5
    config.augment.equalise_probability = 0.5
    config.augment.absent_probability = 0.1

    config.model.sample_rate_hz = 16000
    config.model.window_samples = 1024
    config.model.hop_samples = 256
    config.model.condition_features = 96
    config.model.activity = "gate"
    config.model.stem_channels = 16
    config.model.encoder_channels = (16, 32, 64, 96, 128)
    config.model.time_pools = (2, 2, 2, 2, 1)
    config.model.frequency_pools = (4, 2, 2, 2, 2)

    config.loss.waveform_l1 = 0.0
    config.loss.thresholded_snr = 1.0
    config.loss.multi_resolution_stft = 1.0
    config.loss.activity = 1.0
    config.optim.learning_rate = 2e-3
    config.optim.weight_decay = 0.01
    config.optim.warmup = "linear"
    config.optim.warmup_steps = 200
    config.optim.decay_steps = 7000
    config.optim.clip_norm = 5.0
    config.optim.ema_decay = 0.999

    config.valid.num_mixtures = 120
    config.valid.segment_seconds = 5.0
    config.valid.every_steps = 7000
    config.checkpoint.every_steps = 1000
    config.checkpoint.keep_every_steps = 1000
    return config


# Classes that cannot be told apart are not mixed with each other.
ALIKE = (
    ("drum kit", "snare drum", "kick drum", "tom-tom", "cymbal", "electronic beat"),
    ("bass guitar", "double bass", "synth bass", "violin", "cello", "string orchestra"),
    ("trombone", "french horn", "tuba", "trumpet"),
    ("flute", "recorder", "pan flute", "oboe", "bassoon", "clarinet"),
    ("glockenspiel", "music box", "vibraphone", "xylophone"),
    ("tubular bells", "bell", "triangle", "cowbell"),
    ("piano", "electric piano"),
    ("organ", "accordion", "harmonica"),
    ("bongos", "tabla"),
)
