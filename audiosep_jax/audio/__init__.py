"""Audio files and sample rates: read and write files of any format, block by block."""
