"""Preparation: turns downloaded data sets into ArrayRecord shards for training."""
