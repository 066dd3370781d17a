"""Instruments for the metrics in `names`: created once, labels checked and capped."""

from collections.abc import Callable, Iterable, Mapping

from opentelemetry.metrics import (
    CallbackOptions,
    Counter,
    Histogram,
    Meter,
    Observation,
    UpDownCounter,
)

from paceline_runtime.telemetry.labels import LabelCap
from paceline_runtime.telemetry.names import LABELS_CAPPED, Kind, Metric

Readings = Callable[[], Iterable[tuple[float, Mapping[str, str]]]]


class Instruments:
    """Records values. Build one per process, and hand it to whoever measures.

    In a loop that runs per step or per token, sum up first and record once per batch.
    """

    def __init__(self, meter: Meter, *, label_limit: int = 100) -> None:
        self._meter = meter
        self._counters: dict[str, Counter | UpDownCounter] = {}
        self._histograms: dict[str, Histogram] = {}
        self._cap = LabelCap(label_limit, self._count_capped)

    def add(self, metric: Metric, amount: float = 1, **labels: str) -> None:
        """Add to a counter or an up-down counter."""
        self._check(metric, labels, Kind.COUNTER, Kind.UP_DOWN)
        counter = self._counters.get(metric.name)
        if counter is None:
            create = (
                self._meter.create_counter
                if metric.kind is Kind.COUNTER
                else self._meter.create_up_down_counter
            )
            counter = self._counters[metric.name] = create(metric.name, metric.unit, metric.description)
        counter.add(amount, self._cap.labels(labels))

    def record(self, metric: Metric, value: float, **labels: str) -> None:
        """Record one value of a histogram, in the metric's unit."""
        self._check(metric, labels, Kind.HISTOGRAM)
        histogram = self._histograms.get(metric.name)
        if histogram is None:
            histogram = self._histograms[metric.name] = self._meter.create_histogram(
                metric.name,
                metric.unit,
                metric.description,
                explicit_bucket_boundaries_advisory=metric.buckets,
            )
        histogram.record(value, self._cap.labels(labels))

    def observe(self, metric: Metric, read: Readings) -> None:
        """Read a gauge at each collection. `read` gives (value, labels) pairs; another thread calls it."""
        self._check(metric, {}, Kind.GAUGE)

        def callback(_: CallbackOptions) -> Iterable[Observation]:
            for value, labels in read():
                yield Observation(value, self._cap.labels(dict(labels)))

        self._meter.create_observable_gauge(metric.name, [callback], metric.unit, metric.description)

    def _check(self, metric: Metric, labels: Mapping[str, str], *kinds: Kind) -> None:
        if metric.kind not in kinds:
            raise TypeError(f"{metric.name} is a {metric.kind.value}")
        if not labels.keys() <= set(metric.labels):
            unknown = ", ".join(sorted(labels.keys() - set(metric.labels)))
            raise TypeError(f"{metric.name} has no label {unknown}")

    def _count_capped(self, label: str) -> None:
        self.add(LABELS_CAPPED, label=label)
