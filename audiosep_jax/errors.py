"""The error that a person can mend, and the names of remote files in its message."""

import re
from urllib.parse import unquote

STAND_IN = "@audiosep-remote"  # folder of the paths that stand for URLs, see `remote`
_PATH = re.compile(rf"[^\s'\"(]*/{STAND_IN}/([^/\s]+)/?")


def named(text: str) -> str:
    """Return a text with URLs in place of the paths that stand for them."""
    return _PATH.sub(lambda match: unquote(match[1]), text)


class InputError(ValueError):
    """Something the user gave is wrong; commands print the message on one line and exit with 2."""

    def __init__(self, message: object = "") -> None:
        super().__init__(named(str(message)))
