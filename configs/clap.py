"""AudioSep as in its paper: ResUNet30 at 32 kHz, conditioned by CLAP.

Command:   python train.py --config configs/clap.py --config.data.root=train.json --config.data.valid_root=valid.json
Hardware:  eight GPUs or TPU cores, 12 clips of 5 s each (the paper: eight V100 of 32 GB)
Memory:    12 clips: 19.6 GB of a GPU, in bfloat16 9.9 GB, with remat 6.4 GB, and cuDNN's scratch. Compiled, not run, by
           python benchmarks/compile_for.py --topology h100:1 --batch_size 12 --dtype bfloat16 --remat
           If it is not enough, add --config.model.dtype=bfloat16, then --config.model.remat=True,
           then --config.optim.accumulate_steps=2. TPUs: add --config.model.fold=4
Time:      not measured here; 1,000,000 steps of 67 TFLOP are 6 days of eight V100s' float32 peak
Expect:    the paper's, on about 14,000 hours of its data: SDRi 7.74 dB on AudioSet, 8.22 dB on
           AudioCaps, 10.04 dB on ESC-50
"""  # noqa: E501

from ml_collections import ConfigDict

from audiosep_jax.training.config import default_config


def get_config() -> ConfigDict:
    """The defaults are the paper's run; only the encoder has to be fetched."""
    config = default_config()
    config.name = "clap"
    config.text.encoder = "clap"
    return config
