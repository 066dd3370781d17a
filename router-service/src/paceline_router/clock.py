"""Time, passed in, so that tests and adoption can set it."""

import time
from typing import Protocol


class Clock(Protocol):
    """Two clocks: one to measure with, one to write down."""

    def now_ms(self) -> float:
        """Monotonic time, milliseconds."""
        ...

    def unix_ms(self) -> int:
        """Wall-clock time, Unix milliseconds."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now_ms(self) -> float:
        """Monotonic time, milliseconds."""
        return time.monotonic() * 1000

    def unix_ms(self) -> int:
        """Wall-clock time, Unix milliseconds."""
        return int(time.time() * 1000)
