"""The published weights, trained further on your own clips with a fresh optimiser.

Command:   python train.py --config configs/finetune.py --config.data.root=train.json --config.data.valid_root=valid.json
Hardware:  one GPU, 12 clips of 5 s (what each of the paper's eight had, with 32 GB)
Memory:    as configs/clap.py
Time:      not measured here; 20,000 steps of 8.4 TFLOP are 3 hours of a V100's float32 peak
Expect:    it depends on the clips; the published weights begin at SDRi 7.74 dB on AudioSet
"""  # noqa: E501

from ml_collections import ConfigDict

from audiosep_jax.training.config import default_config


def get_config() -> ConfigDict:
    """The paper's run from its own weights, at a tenth of its rate."""
    config = default_config()
    config.name = "finetune"
    config.text.encoder = "clap"
    config.init_from = "audiosep"
    config.batch_size = 12
    config.num_steps = 20_000
    config.optim.learning_rate = 1e-4
    config.optim.warmup = "linear"
    config.optim.warmup_steps = 500
    config.valid.every_steps = 1_000
    return config
