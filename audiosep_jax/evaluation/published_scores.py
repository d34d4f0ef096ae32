"""What others report on the benchmarks, to stand beside one's own numbers; dB.

AudioSep: Liu et al., "Separate Anything You Describe", released checkpoint. LASS-Net and DP-LASS,
of which no numbers by benchmark are at hand, are given by their means over the six benchmarks.
"""

from collections.abc import Mapping

Scores = Mapping[str, float]

BY_BENCHMARK: dict[str, dict[str, Scores]] = {
    "audioset": {"AudioSep": {"sdri": 7.74, "si_sdr": 6.90}},
    "vggsound": {"AudioSep": {"sdri": 9.14, "si_sdr": 9.04}},
    "audiocaps": {"AudioSep": {"sdri": 8.22, "si_sdr": 7.19}},
    "clotho": {"AudioSep": {"sdri": 6.85, "si_sdr": 5.24}},
    "music": {"AudioSep": {"sdri": 10.51, "si_sdr": 9.43}},
    "esc50": {"AudioSep": {"sdri": 10.04, "si_sdr": 8.81}},
    "dcase2024": {"DCASE 2024 baseline": {"sdr": 5.71, "sdri": 5.67, "si_sdr": 3.86}},
}

SIX = ("audioset", "vggsound", "audiocaps", "clotho", "music", "esc50")
MEANS_OF_SIX: dict[str, Scores] = {
    "LASS-Net": {"sdri": 1.99, "si_sdr": -4.47},
    "AudioSep": {"sdri": 8.75, "si_sdr": 7.77},
    "DP-LASS": {"sdri": 9.76, "si_sdr": 9.06},
}
