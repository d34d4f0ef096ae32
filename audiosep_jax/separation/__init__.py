"""Separation: load a trained model once, then separate arrays, streams and files."""
