"""Weights: files of PyTorch and safetensors, the hub, and the original's parameter names."""
