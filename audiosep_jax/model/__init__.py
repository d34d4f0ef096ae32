"""The model: transform, network, mask, and exact tiling of long recordings."""
