"""The one error that a person can mend."""


class InputError(ValueError):
    """Something the user gave is wrong; commands print the message on one line and exit with 2."""
