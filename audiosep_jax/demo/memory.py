"""Memory that a request no longer needs."""

import ctypes
import platform


def give_back() -> None:
    """Hands freed memory to the system; glibc keeps it, for every thread by itself."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
