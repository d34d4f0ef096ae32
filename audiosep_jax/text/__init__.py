"""Frozen text encoders: a list of sentences in, one unit vector per sentence out."""
