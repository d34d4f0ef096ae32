"""AudioSep in pure-functional JAX: a recording and a sentence in, the described sound out."""
