"""What the gateway measures: HTTP answers, open streams, clients that left, and how requests fared by class."""

import contextlib
from collections import deque
from collections.abc import Iterator

from paceline.common.v1 import slo_pb2
from paceline.router.v1 import generation_pb2 as pb
from paceline_core.slo import SloClass
from paceline_runtime.telemetry import names
from paceline_runtime.telemetry.setup import Telemetry

_REMEMBERED = 1000


class GatewayTelemetry:
    """Writes to the process's metrics, and remembers the newest outcomes for the dashboard."""

    def __init__(self, telemetry: Telemetry) -> None:
        self.tracer = telemetry.tracer
        self.prometheus_text = telemetry.prometheus_text
        self._instruments = telemetry.instruments
        self._outcomes: dict[int, deque[bool]] = {c.value: deque(maxlen=_REMEMBERED) for c in SloClass}

    def answered(self, route: str, status: int) -> None:
        """An HTTP request was answered."""
        self._instruments.add(names.HTTP_REQUESTS, method=route, code=str(status))

    @contextlib.contextmanager
    def open_stream(self) -> Iterator[None]:
        """Counts an event stream while it is open."""
        self._instruments.add(names.HTTP_STREAMS, 1)
        try:
            yield
        finally:
            self._instruments.add(names.HTTP_STREAMS, -1)

    def client_left(self, how: str) -> None:
        """A client went away, or stopped reading, before its request ended."""
        self._instruments.add(names.HTTP_CLIENTS_LEFT, reason=how)

    def reattached(self) -> None:
        """A request was taken up again on another connection, or after a gap."""
        self._instruments.add(names.REATTACHES)

    def finished(self, finished: pb.Finished) -> None:
        """A request ended, and the router scored it."""
        outcome = finished.outcome
        if outcome.slo_class in self._outcomes:
            self._outcomes[outcome.slo_class].append(outcome.attained)

    def attainment(self) -> list[dict[str, object]]:
        """Per class, over its newest requests through this gateway: how many, and how many met their objective."""
        return [
            {"slo_class": class_name(number), "requests": len(seen), "attained": sum(seen)}
            for number, seen in self._outcomes.items()
        ]


def class_name(number: int) -> str:
    """`latency`, `deadline`, `task`, `best-effort`."""
    return (
        slo_pb2.SloClass.Name(slo_pb2.SloClass.ValueType(number))
        .removeprefix("SLO_CLASS_")
        .lower()
        .replace("_", "-")
    )
