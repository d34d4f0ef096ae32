"""Clips, mixtures and the stream of batches."""
