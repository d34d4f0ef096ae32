"""Worker processes: how many to start, and how they end with their parent."""

import contextlib
import multiprocessing
import os
import signal
import threading


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def end_with_parent() -> None:
    """Leave Ctrl-C and SIGTERM to the parent, and exit when the parent is gone.

    Called in a worker process as it starts. Without it, a parent that is killed leaves its workers
    waiting for ever.
    """
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent watch").start()
