"""Frozen encoders that turn a query, a sentence or a sound, into a unit vector."""
