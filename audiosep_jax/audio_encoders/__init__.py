"""CLAP's audio tower: a waveform in, one unit vector per clip out."""
