"""Training data: sources of clips, mixtures, and the stream of batches."""
