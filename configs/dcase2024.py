"""The baseline of DCASE 2024 Task 9: AudioSep at 16 kHz on clips of 10 s.

Command:   python train.py --config configs/dcase2024.py --config.data.root=dev.json --config.data.valid_root=val.json
Hardware:  one GPU (the baseline: one A100 of 80 GB)
Memory:    26.5 GB of a GPU, and cuDNN's scratch. Compiled, not run, by python benchmarks/compile_for.py
           --config configs/dcase2024.py --topology h100:1 --batch_size 16
Time:      about 1 day, the baseline's authors say; not measured here
Expect:    the baseline's, on the task's validation set: SDR 5.71 dB, SDRi 5.67 dB, SI-SDR 3.86 dB
"""  # noqa: E501

from ml_collections import ConfigDict

from audiosep_jax.training.config import default_config


def get_config() -> ConfigDict:
    """Half the rate, window and hop of the paper's run, on clips twice as long."""
    config = default_config()
    config.name = "dcase2024"
    config.text.encoder = "clap"
    config.batch_size = 16
    config.num_steps = 200_000
    config.data.segment_seconds = 10.0
    config.model.sample_rate_hz = 16_000
    config.model.window_samples = 1024
    config.model.hop_samples = 160
    return config
