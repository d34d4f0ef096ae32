"""Peak speeds and memory of known devices."""

import re
from typing import Literal, NamedTuple


class Device(NamedTuple):
    """Dense peaks in TFLOP/s, bandwidth in GB/s and memory in GiB, as stated by the maker.

    `float32_tflops` is the peak of what JAX's default precision does with a float32 convolution:
    TF32 on NVIDIA's tensor cores since Ampere, one pass in bfloat16 on TPUs, else plain float32.
    """

    pattern: str  # regular expression that finds `jax.Device.device_kind`
    float32_tflops: float
    bfloat16_tflops: float
    bandwidth_gbs: float
    memory_gib: int


DEVICES = (
    # These have no bfloat16 in hardware: XLA computes in float32.
    Device(r"\bV100.*32GB", 15.7, 15.7, 900, 32),
    Device(r"\bV100", 15.7, 15.7, 900, 16),
    Device(r"\bT4\b", 8.1, 8.1, 320, 16),
    Device(r"\bA10G\b", 35, 70, 600, 24),
    Device(r"\bA100.*80GB", 156, 312, 2039, 80),
    Device(r"\bA100", 156, 312, 1555, 40),
    Device(r"\bH100 PCIe", 378, 756, 2039, 80),
    Device(r"\bH100 NVL", 418, 835, 3938, 94),
    Device(r"\bH100", 495, 989, 3350, 80),
    Device(r"\bH200 NVL", 418, 836, 4800, 141),
    Device(r"\bH200", 495, 989, 4800, 141),
    Device(r"\bGH200 480GB", 495, 989, 4000, 96),  # 480 GB are the CPU's
    Device(r"\bGH200 144G", 495, 989, 4900, 144),
    Device(r"\bB200", 1125, 2250, 8000, 180),
    Device(r"\bGB200", 1250, 2500, 8000, 186),
    Device(r"\bL4\b", 60, 121, 300, 24),
    Device(r"\bL40S", 183, 362, 864, 48),
    Device(r"RTX 3090$", 35.6, 71, 936, 24),
    Device(r"RTX 4090$", 82.6, 165, 1008, 24),
    # A JAX device is half a chip up to v3 and again from v7 on, and a whole chip between them.
    Device(r"^TPU v2$", 23, 23, 350, 8),
    Device(r"^TPU v3$", 61.5, 61.5, 450, 16),
    Device(r"^TPU v4$", 275, 275, 1228, 32),
    Device(r"^TPU v5( lite|e)$", 197, 197, 819, 16),
    Device(r"^TPU v5p?$", 459, 459, 2765, 95),
    Device(r"^TPU v6( lite|e)$", 918, 918, 1640, 32),
    Device(r"^TPU ?v?7x?$", 1153.5, 1153.5, 3690, 96),
)


def device_peak_flops(device_kind: str, dtype: Literal["float32", "bfloat16"]) -> float | None:
    """Peak in FLOP/s of convolutions in `dtype`; None if the device is unknown."""
    device = _find(device_kind)
    if device is None:
        return None
    return 1e12 * (device.bfloat16_tflops if dtype == "bfloat16" else device.float32_tflops)


def device_bandwidth(device_kind: str) -> float | None:
    """Bytes per second between the device and its memory; None if the device is unknown."""
    device = _find(device_kind)
    return None if device is None else 1e9 * device.bandwidth_gbs


def device_memory(device_kind: str) -> int | None:
    """Bytes of the device's memory, of which a runtime keeps some; None if it is unknown."""
    device = _find(device_kind)
    return None if device is None else 2**30 * device.memory_gib


def _find(device_kind: str) -> Device | None:
    return next((d for d in DEVICES if re.search(d.pattern, device_kind)), None)
