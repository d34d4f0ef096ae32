"""Spans of a recording outside of which an estimate is silent: as text, and their checks."""

import math
import re
from collections.abc import Sequence

from audiosep_jax.errors import InputError

Span = tuple[float, float]  # start and end in seconds
_SPAN = re.compile(r"(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)?", re.ASCII)


def parse_spans(text: str) -> tuple[Span, ...]:
    """Read spans such as `3.0-5.5` or `8-`, to the end, with spaces or semicolons between them."""
    spans = []
    for word in text.replace(";", " ").split() or [""]:
        match = _SPAN.fullmatch(word)
        if not match:
            raise InputError(f"{word[:40]!r} must be START-END in seconds, such as 3.0-5.5")
        spans.append((float(match[1]), float(match[2] or math.inf)))
    check_spans(spans)
    return tuple(spans)


def check_spans(spans: Sequence[Span], seconds: float = math.inf) -> None:
    """Raise InputError if a span ends before it starts, or lies behind the recording's end."""
    for pair in spans:
        try:
            start, end = map(float, pair)
        except (TypeError, ValueError):
            raise InputError(f"the span {pair!r} must be (start, end) in seconds") from None
        span = f"the span {start:g}-{'' if end == math.inf else f'{end:g}'} s"
        if not 0 <= start < end:
            raise InputError(f"{span} must start at 0 or later, and end after its start")
        if start >= seconds:
            raise InputError(f"{span} lies outside the recording, which has {seconds:g} s")
