"""The paper's variant with the text encoder of CLIP instead of CLAP.

Command:   python train.py --config configs/clip.py --config.data.root=train.json --config.data.valid_root=valid.json
Hardware:  eight GPUs or TPU cores, 12 clips of 5 s each
Memory:    as configs/clap.py
Time:      not measured here; as with CLAP, 6 days of eight V100s' float32 peak or more
Expect:    unknown: the released code has no CLIP variant; CLAP's reach SDRi 7.74 dB on AudioSet
"""  # noqa: E501

from ml_collections import ConfigDict

from audiosep_jax.training.config import default_config


def get_config() -> ConfigDict:
    """Differences from the paper's run."""
    config = default_config()
    config.name = "clip"
    config.text.encoder = "clip"
    return config
