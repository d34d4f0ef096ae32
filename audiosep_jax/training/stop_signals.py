"""Ctrl-C and SIGTERM as a wish to stop, not as an end in the middle of a step."""

import signal
import sys
from types import FrameType


class StopSignals:
    """While entered, SIGINT and SIGTERM append to the list it gives; a second one acts at once."""

    def __enter__(self) -> list[int]:
        self._received: list[int] = []
        self._previous = {
            number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self._received

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._received:
            raise KeyboardInterrupt
        self._received.append(number)
        print("\nstopping after this step, and saving ...", file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
