"""Separation: load a trained model once, then separate arrays, streams and files."""

from typing import Literal

# Choices of the library's arguments and of the command's options of the same names.
Stereo = Literal["mid", "channels"]
AboveNyquist = Literal["keep", "drop"]
Clip = Literal["none", "rescale", "clamp"]
EngineName = Literal["auto", "jax", "openvino"]
Precision = Literal["float32", "bfloat16"]
