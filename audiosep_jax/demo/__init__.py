"""The web page: `audiosep demo`. It needs the extra `demo`."""
