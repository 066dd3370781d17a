"""Keeps the number of label values bounded: a client must not be able to grow our memory by inventing names."""

from collections.abc import Callable

from paceline_runtime.telemetry.names import OPEN_LABELS

OTHER = "other"


class LabelCap:
    """Lets the first `limit` values of each open label through, and calls all later ones `other`."""

    def __init__(self, limit: int = 100, on_capped: Callable[[str], None] | None = None) -> None:
        self._limit = limit
        self._seen: dict[str, set[str]] = {label: set() for label in OPEN_LABELS}
        self._on_capped = on_capped

    def value(self, label: str, value: str) -> str:
        """The value to use for the label."""
        seen = self._seen.get(label)
        if seen is None or value in seen:
            return value
        if len(seen) < self._limit:
            seen.add(value)
            return value
        if self._on_capped is not None:
            self._on_capped(label)
        return OTHER

    def labels(self, labels: dict[str, str]) -> dict[str, str]:
        """The labels with each value capped."""
        return {label: self.value(label, value) for label, value in labels.items()}
