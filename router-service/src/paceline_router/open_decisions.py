"""Decisions on streams whose outcome has not come: the part of the in-flight ledger that back ends keep themselves.

No report of an engine says which of them it covers, so each counts on its engine until its outcome, the end of its
stream, the engine's next life, or its time-to-live, whichever is first.
"""

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from paceline.predictor.v1 import predictor_pb2
from paceline.router.v1 import router_pb2
from paceline_core.placement.view import RequestView
from paceline_router.clock import Clock
from paceline_router.engine import Engine
from paceline_router.fleet import Fleet
from paceline_router.ledger import Ledger
from paceline_router.predictor_link import PredictorLink
from paceline_router.validation import MAX_OUTPUT_TOKENS
from paceline_runtime.errors import PacelineError, Reason
from paceline_runtime.telemetry.metrics import Instruments
from paceline_runtime.telemetry.names import DECISIONS_ENDED

_NEVER_MOVED: Final = 1 << 20
"""Moves already made, as far as policies know: what the router does not hold it cannot move."""

_LONGEST_MS: Final = 3_600_000.0
"""Times over it are taken for a mistake, and nothing is learned from them."""


@dataclass(frozen=True, slots=True)
class _Open:
    key: int
    engine: Engine
    at_ms: float
    query: predictor_pb2.LengthQuery


class StreamDecisions:
    """Those of one stream, oldest first, by request id."""

    def __init__(self) -> None:
        self.by_id: OrderedDict[str, _Open] = OrderedDict()


class OpenDecisions:
    """All streams. Bounded by `most`, and in time by `ttl_s`."""

    def __init__(
        self,
        fleet: Fleet,
        ledger: Ledger,
        predictor: PredictorLink,
        instruments: Instruments,
        clock: Clock,
        *,
        most: int,
        ttl_s: float,
        retry_after_ms: float,
    ) -> None:
        self._fleet = fleet
        self._ledger = ledger
        self._predictor = predictor
        self._instruments = instruments
        self._clock = clock
        self._most = most
        self._ttl_ms = ttl_s * 1000
        self._retry_after_ms = retry_after_ms
        self._streams: set[StreamDecisions] = set()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def open(self) -> StreamDecisions:
        """A new stream; `close` it at its end."""
        stream = StreamDecisions()
        self._streams.add(stream)
        return stream

    def close(self, stream: StreamDecisions) -> None:
        """A stream is over: nobody can tell the outcomes of its decisions any more."""
        self._streams.discard(stream)
        for request_id in list(stream.by_id):
            self._forget(stream, request_id, "stream_ended")

    def check_room(self, stream: StreamDecisions, request_id: str) -> None:
        """Raises QUEUE_FULL when no more decisions can be remembered. One that is asked for again takes no more room:
        the earlier decision is withdrawn."""
        self._forget(stream, request_id, "asked_again")
        if self._count >= self._most:
            message = (
                f"{self._count} decisions wait for their outcome, which is this router's limit: tell outcomes"
            )
            raise PacelineError(Reason.QUEUE_FULL, message, retry_after_ms=self._retry_after_ms)

    def add(
        self,
        stream: StreamDecisions,
        engine: Engine,
        request: RequestView,
        query: predictor_pb2.LengthQuery,
        now_ms: float,
    ) -> None:
        """The request goes to the engine: the next decision sees it there."""
        key = self._ledger.next_key()
        stream.by_id[request.request_id] = _Open(key, engine, now_ms, query)
        self._count += 1
        self._fleet.table.placed(engine.row, key, request, now_ms, _NEVER_MOVED)

    def ended(
        self, stream: StreamDecisions, outcomes: Sequence[router_pb2.RouteOutcome]
    ) -> list[router_pb2.RouteOutcome]:
        """Outcomes of decisions, from which policies and length estimates learn. Returns those not known here."""
        unknown, counts = [], Counter[str]()
        for outcome in outcomes:
            found = self._take(stream, outcome.request_id)
            if found is None:
                unknown.append(outcome)
            else:
                self._learn(found, outcome)
                counts["failed" if outcome.failed else "completed"] += 1
        for how, times in counts.items():
            self._told(how, times)
        return unknown

    def _learn(self, found: _Open, outcome: router_pb2.RouteOutcome) -> None:
        """Times that are no times teach nothing."""
        table, tokens = self._fleet.table, min(outcome.output_tokens, MAX_OUTPUT_TOKENS)
        first_ms, last_ms, known = outcome.ttft_ms, outcome.ttlt_ms, 0 if outcome.failed else tokens
        if known and 0 < first_ms <= last_ms <= _LONGEST_MS:  # NaN is in no range
            table.first_token(found.key, found.at_ms + first_ms)
        table.ended(found.key, self._clock.now_ms(), known, found.at_ms + last_ms)
        if tokens:
            cut = outcome.failed or tokens >= found.query.max_tokens
            self._predictor.observe(
                predictor_pb2.LengthOutcome(query=found.query, output_tokens=tokens, censored=cut)
            )

    def unknown(self, outcomes: int) -> None:
        """Outcomes came of decisions that are not known here: told twice, or too late."""
        self._told("unknown", outcomes)

    def expire(self) -> None:
        """Forget what is too old."""
        oldest_ms = self._clock.now_ms() - self._ttl_ms
        for stream in self._streams:
            while stream.by_id:
                request_id, oldest = next(iter(stream.by_id.items()))
                if oldest.at_ms > oldest_ms:
                    break
                self._forget(stream, request_id, "expired")

    def engine_restarted(self, engine: Engine) -> None:
        """The engine begins a new life: what went to it before is lost."""
        for stream in self._streams if self._count else ():
            for request_id in [name for name, known in stream.by_id.items() if known.engine is engine]:
                self._forget(stream, request_id, "engine_lost")

    def _take(self, stream: StreamDecisions, request_id: str) -> _Open | None:
        found = stream.by_id.pop(request_id, None)
        if found is not None:
            self._count -= 1
        return found

    def _forget(self, stream: StreamDecisions, request_id: str, why: str) -> None:
        found = self._take(stream, request_id)
        if found is not None:
            self._fleet.table.ended(found.key, self._clock.now_ms())
            self._told(why)

    def _told(self, how: str, times: int = 1) -> None:
        self._instruments.add(DECISIONS_ENDED, times, outcome=how)
