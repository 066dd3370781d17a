"""What the router says about itself: gauges and counters once a second, and one span per request."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping

from opentelemetry.trace import SpanKind, StatusCode, Tracer

from paceline.router.v1 import router_pb2
from paceline_router.clock import Clock
from paceline_router.durability import Durability
from paceline_router.fleet import Fleet
from paceline_router.ledger import Ledger
from paceline_router.predictor_link import PredictorLink
from paceline_router.records import engine_state
from paceline_router.request import LiveRequest
from paceline_router.slo_wire import CLASS_NAMES
from paceline_router.states import State
from paceline_router.token_intake import TokenIntake
from paceline_runtime.telemetry import names
from paceline_runtime.telemetry.metrics import Instruments
from paceline_runtime.telemetry.propagation import extract
from paceline_runtime.telemetry.spans import traceparent_of

INTERVAL_S = 1.0
_MAX_ENGINES = 100

Reading = tuple[float, Mapping[str, str]]


class Gauges:
    """Readings are taken on the event loop and read by the exporter's thread, which sees whole lists only."""

    def __init__(
        self,
        instruments: Instruments,
        ledger: Ledger,
        fleet: Fleet,
        tokens: TokenIntake,
        durability: Durability,
        predictor: PredictorLink,
        clock: Clock,
        leave_out_after_ms: float,
    ) -> None:
        self._instruments = instruments
        self._ledger = ledger
        self._fleet = fleet
        self._tokens = tokens
        self._durability = durability
        self._predictor = predictor
        self._clock = clock
        self._leave_out_after_ms = leave_out_after_ms
        self._discarded = {"duplicate": 0, "stray": 0}
        self._live: list[Reading] = []
        self._engines: list[Reading] = []
        self._ages: list[Reading] = []
        self._degraded: list[Reading] = []
        instruments.observe(names.REQUESTS_LIVE, lambda: self._live)
        instruments.observe(names.ENGINES, lambda: self._engines)
        instruments.observe(names.ENGINE_STATE_AGE, lambda: self._ages)
        instruments.observe(names.DEGRADED, lambda: self._degraded)

    async def run(self) -> None:
        """Take readings until cancelled."""
        while True:
            self.read()
            await asyncio.sleep(INTERVAL_S)

    def read(self) -> None:
        """One reading of everything."""
        now_ms = self._clock.now_ms()
        states = Counter(request.state for request in self._ledger.live())
        self._live = _counted({state.name.lower(): count for state, count in states.items()})
        fleet = Counter(engine_state(engine, now_ms, self._leave_out_after_ms) for engine in self._fleet)
        prefix = "ENGINE_STATE_"
        self._engines = _counted(
            {router_pb2.EngineState.Name(s).removeprefix(prefix).lower(): n for s, n in fleet.items()}
        )
        known = list(self._fleet)[:_MAX_ENGINES]
        self._ages = [((now_ms - e.load_at_ms) / 1000, {names.ENGINE: e.engine_id}) for e in known]
        self._degraded = [
            (float(self._durability.degraded), {names.REASON: "durability"}),
            (float(self._predictor.degraded), {names.REASON: "estimate_source"}),
        ]
        for reason, total in (
            ("duplicate", self._tokens.duplicate_tokens),
            ("stray", self._tokens.stray_tokens),
        ):
            self._instruments.add(names.TOKENS_DISCARDED, total - self._discarded[reason], reason=reason)
            self._discarded[reason] = total


class RequestSpans:
    """One span per request, from arrival to end; its context travels down the line with every attempt."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def begin(self, request: LiveRequest) -> None:
        """Start the span as a child of the caller's, and name it to the engines."""
        span = self._tracer.start_span(
            "paceline.request", context=extract(request.spec.traceparent), kind=SpanKind.SERVER
        )
        if not span.is_recording():
            return
        span.set_attributes(
            {
                names.ATTR_REQUEST_ID: request.request_id,
                names.GEN_AI_REQUEST_MODEL: request.spec.model,
                names.ATTR_TENANT: request.tenant,
            }
        )
        request.span = span
        request.spec.traceparent = traceparent_of(span)

    def end(self, request: LiveRequest) -> None:
        """End the span with what became of the request."""
        span, finished = request.span, request.finished
        if span is None or finished is None:
            return
        request.span = None
        span.set_attributes(
            {
                names.ATTR_SLO_CLASS: CLASS_NAMES[request.slo.slo_class],
                names.ATTR_SLO_MET: finished.outcome.attained,
                names.ATTR_ENGINE_ID: finished.engine_id,
                names.ATTR_ATTEMPT: finished.attempts,
                names.GEN_AI_INPUT_TOKENS: finished.prompt_tokens,
                names.GEN_AI_OUTPUT_TOKENS: finished.output_tokens,
                names.GEN_AI_FINISH_REASONS: [request.state.name.lower()],
            }
        )
        if request.state in (State.FAILED, State.EXPIRED):
            span.set_status(StatusCode.ERROR, finished.failure.message)
        span.end()


def _counted(counts: Mapping[str, int]) -> list[Reading]:
    readings: Iterable[Reading] = ((float(count), {names.STATE: state}) for state, count in counts.items())
    return list(readings)
