"""Peaks and memory of known devices."""

import pytest

from audiosep_jax.training.devices import (
    DEVICES,
    device_bandwidth,
    device_memory,
    device_peak_flops,
)


@pytest.mark.parametrize(
    ("kind", "float32", "bfloat16", "gbs", "gib"),
    [
        ("Tesla V100-SXM2-16GB", 15.7, 15.7, 900, 16),
        ("Tesla V100-SXM2-32GB", 15.7, 15.7, 900, 32),
        ("Tesla T4", 8.1, 8.1, 320, 16),
        ("NVIDIA A10G", 35, 70, 600, 24),
        ("NVIDIA A100-SXM4-40GB", 156, 312, 1555, 40),
        ("NVIDIA A100-SXM4-80GB", 156, 312, 2039, 80),
        ("NVIDIA H100 80GB HBM3", 495, 989, 3350, 80),
        ("NVIDIA H100 PCIe", 378, 756, 2039, 80),
        ("NVIDIA H200", 495, 989, 4800, 141),
        ("NVIDIA GH200 480GB", 495, 989, 4000, 96),
        ("NVIDIA GH200 144G HBM3e", 495, 989, 4900, 144),
        ("NVIDIA B200", 1125, 2250, 8000, 180),
        ("NVIDIA GB200", 1250, 2500, 8000, 186),
        ("NVIDIA L40S", 183, 362, 864, 48),
        ("NVIDIA L4", 60, 121, 300, 24),
        ("NVIDIA GeForce RTX 3090", 35.6, 71, 936, 24),
        ("NVIDIA GeForce RTX 4090", 82.6, 165, 1008, 24),
        ("TPU v2", 23, 23, 350, 8),
        ("TPU v3", 61.5, 61.5, 450, 16),
        ("TPU v4", 275, 275, 1228, 32),
        ("TPU v5 lite", 197, 197, 819, 16),
        ("TPU v5e", 197, 197, 819, 16),
        ("TPU v5", 459, 459, 2765, 95),
        ("TPU v5p", 459, 459, 2765, 95),
        ("TPU v6 lite", 918, 918, 1640, 32),
        ("TPU v7", 1153.5, 1153.5, 3690, 96),
        ("TPU7x", 1153.5, 1153.5, 3690, 96),
    ],
)
def test_known_devices(kind, float32, bfloat16, gbs, gib):
    assert device_peak_flops(kind, "float32") == pytest.approx(float32 * 1e12)
    assert device_peak_flops(kind, "bfloat16") == pytest.approx(bfloat16 * 1e12)
    assert device_bandwidth(kind) == pytest.approx(gbs * 1e9)
    assert device_memory(kind) == gib * 2**30


@pytest.mark.parametrize(
    "kind", ["cpu", "NVIDIA L40", "NVIDIA A10", "NVIDIA GeForce RTX 4090 D", "TPU v4 lite"]
)
def test_devices_that_are_like_a_known_one_are_unknown(kind):
    assert device_peak_flops(kind, "float32") is device_bandwidth(kind) is None
    assert device_memory(kind) is None


def test_bfloat16_is_never_slower_and_no_device_is_listed_twice():
    assert all(d.bfloat16_tflops >= d.float32_tflops > 0 for d in DEVICES)
    assert len({d.pattern for d in DEVICES}) == len(DEVICES)
