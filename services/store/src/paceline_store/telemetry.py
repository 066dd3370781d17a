"""What write-behind tells the metrics."""

from collections import Counter
from collections.abc import Callable, Sequence

from paceline_runtime.telemetry.metrics import Instruments
from paceline_runtime.telemetry.names import STORE_DROPPED, STORE_QUEUE, STORE_WRITE_DURATION, STORE_WRITES
from paceline_store.rows import Row


class WriteMetrics:
    """Records group commits; does nothing without instruments."""

    def __init__(self, instruments: Instruments | None, queue_rows: Callable[[], int]) -> None:
        self._instruments = instruments
        if instruments is not None:
            instruments.observe(STORE_QUEUE, lambda: [(float(queue_rows()), {})])

    def written(self, rows: Sequence[Row], seconds: float) -> None:
        """A group of rows was committed."""
        if self._instruments is None:
            return
        self._instruments.record(STORE_WRITE_DURATION, seconds)
        for kind, count in Counter(type(row).__name__ for row in rows).items():
            self._instruments.add(STORE_WRITES, count, table=kind)

    def dropped(self, rows: int, reason: str) -> None:
        """Rows were given up."""
        if self._instruments is not None and rows:
            self._instruments.add(STORE_DROPPED, rows, reason=reason)
