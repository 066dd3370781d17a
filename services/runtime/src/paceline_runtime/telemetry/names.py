"""Every metric and attribute name of Paceline, in this one place.

Metric names have no unit suffix and no `_total`: the Prometheus exporter adds both from the unit and the kind, so
`paceline_ttft` in seconds is scraped as `paceline_ttft_seconds`. Attributes are `paceline.*` on spans; `gen_ai.*` is
used where the OpenTelemetry convention has the notion.
"""

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """What is done with the values of a metric."""

    COUNTER = "counter"
    UP_DOWN = "up_down"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric: its name, kind, unit (UCUM), meaning, and the labels it may carry."""

    name: str
    kind: Kind
    unit: str
    description: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


# Labels. Those in OPEN_LABELS take values from outside, so their number is capped.
MODEL = "model"
ENGINE = "engine"
TENANT = "tenant"
APP = "app"
SLO_CLASS = "slo_class"
POLICY = "policy"
REASON = "reason"
STATE = "state"
OUTCOME = "outcome"
SOURCE = "source"
SIGNAL = "signal"
SERVICE = "service"
METHOD = "method"
CODE = "code"
QUEUE = "queue"
LEVEL = "level"
KIND = "kind"
OPEN_LABELS = frozenset({MODEL, ENGINE, TENANT, APP})

# Span attributes.
ATTR_REQUEST_ID = "paceline.request.id"
ATTR_ATTEMPT = "paceline.attempt"
ATTR_TASK_ID = "paceline.task.id"
ATTR_ENGINE_ID = "paceline.engine.id"
ATTR_INCARNATION = "paceline.engine.incarnation"
ATTR_TENANT = "paceline.tenant"
ATTR_SLO_CLASS = "paceline.slo.class"
ATTR_SLO_MET = "paceline.slo.met"
ATTR_POLICY = "paceline.policy"
ATTR_ESTIMATE_SOURCE = "paceline.estimate.source"
ATTR_REASON = "paceline.reason"
GEN_AI_REQUEST_MODEL = "gen_ai.request.model"
GEN_AI_INPUT_TOKENS = "gen_ai.usage.input_tokens"
GEN_AI_OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
GEN_AI_FINISH_REASONS = "gen_ai.response.finish_reasons"
RPC_SYSTEM = "rpc.system"
RPC_SERVICE = "rpc.service"
RPC_METHOD = "rpc.method"
RPC_STATUS_CODE = "rpc.grpc.status_code"

_LATENCY_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_STEP_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0)
_ESTIMATE_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25)
_BATCH = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)


def _counter(name: str, description: str, *labels: str, unit: str = "1") -> Metric:
    return Metric(f"paceline_{name}", Kind.COUNTER, unit, description, labels)


def _gauge(name: str, description: str, *labels: str, unit: str = "1") -> Metric:
    return Metric(f"paceline_{name}", Kind.GAUGE, unit, description, labels)


def _histogram(name: str, unit: str, buckets: tuple[float, ...], description: str, *labels: str) -> Metric:
    return Metric(f"paceline_{name}", Kind.HISTOGRAM, unit, description, labels, buckets)


# Every service
RPC_DURATION = _histogram("rpc_duration", "s", _LATENCY_S, "Time to serve an RPC", SERVICE, METHOD, CODE)
RPCS_IN_FLIGHT = Metric("paceline_rpcs_in_flight", Kind.UP_DOWN, "1", "RPCs being served", (SERVICE, METHOD))
TELEMETRY_DROPPED = _counter("telemetry_dropped", "Telemetry items given up", SIGNAL, REASON)
LABELS_CAPPED = _counter("telemetry_labels_capped", "Label values folded into `other`", "label")
DEGRADED = _gauge("degraded", "1 while a degraded mode is on", REASON)

# Router
REQUESTS = _counter("requests", "Requests that ended", MODEL, SLO_CLASS, TENANT, OUTCOME)
REQUESTS_REFUSED = _counter("requests_refused", "Requests refused before work", REASON, TENANT)
REQUESTS_LIVE = _gauge("requests_live", "Requests in the ledger that have not ended", STATE)
TTFT = _histogram("ttft", "s", _LATENCY_S, "Time to first token at the router edge", MODEL, SLO_CLASS)
TBT = _histogram("tbt", "s", _STEP_S, "Time between tokens at the router edge", MODEL, SLO_CLASS)
TTLT = _histogram("ttlt", "s", _LATENCY_S, "Time to last token at the router edge", MODEL, SLO_CLASS)
SLO_OUTCOMES = _counter("slo_outcomes", "Requests by whether they met their SLO", MODEL, SLO_CLASS, OUTCOME)
TOKENS = _counter("tokens", "Output tokens by whether they were in time", MODEL, SLO_CLASS, OUTCOME)
PLACEMENTS = _counter("placements", "Placement decisions", POLICY, ENGINE)
DECISIONS_ENDED = _counter("decisions_ended", "Decisions of RouteStream by how they ended", OUTCOME)
REPLAYS = _counter("replays", "Attempts started again after a failure", REASON)
MIGRATIONS = _counter("migrations", "Moves of a live request, by how they ended", OUTCOME, "way", REASON)
MOVE_DURATION = _histogram(
    "move_duration", "s", _LATENCY_S, "Time from the start of a move until it is done", "way"
)
KV_MOVED_BYTES = _counter(
    "kv_moved", "KV state offered to engines by moves that were done", ENGINE, unit="By"
)
REPREDICTIONS = _counter("repredictions", "Estimates of running requests made anew", OUTCOME)
OUTCOMES_DROPPED = _counter("outcomes_dropped", "Ended requests and tasks that the predictor did not hear of")
TASK_FORECASTS = _counter("task_forecasts", "Forecasts of tasks asked for, by who made them", SOURCE)
ADOPTIONS = _counter("adoptions", "Requests taken over after a restart", SOURCE)
TOKENS_DISCARDED = _counter("tokens_discarded", "Tokens of a stale attempt or a doubled index", REASON)
CREDIT_STALLS = _counter("credit_stalls", "Times a request ran out of credits")
ENGINES = _gauge("engines", "Engines by state", STATE)
ENGINE_STATE_AGE = _gauge("engine_state_age", "Age of the newest load report", ENGINE, unit="s")
PLACE_DURATION = _histogram("place_duration", "s", _STEP_S, "Time of one placement decision", POLICY)

# Scheduler
PLAN_DURATION = _histogram("plan_duration", "s", _STEP_S, "Time of one plan", POLICY)
PLANS = _counter("plans", "Plans sent", POLICY, REASON)
PREEMPTIONS = _counter("preemptions", "Requests taken out of the run set, by where they went", REASON)
RESUMPTIONS = _counter("resumptions", "Requests back in the run set, by where they came from", REASON)
SHED = _counter("requests_shed", "Requests given up because their objective was out of reach", REASON)
SCHEDULER_REQUESTS = _gauge("scheduler_requests", "Requests in the engine's table", ENGINE, STATE)

# Executor
STEP_DURATION = _histogram("step_duration", "s", _STEP_S, "Time of one engine step", ENGINE)
STEP_BATCH = _histogram("step_batch", "1", _BATCH, "Sequences decoded in a step", ENGINE)
KV_TOKENS = _gauge("kv_tokens", "KV entries in use", ENGINE)
KV_CAPACITY_TOKENS = _gauge("kv_capacity_tokens", "KV entries that fit", ENGINE)
ENGINE_TOKENS = _counter("engine_tokens", "Tokens computed", ENGINE, "phase")
DEVIATIONS = _counter("plan_deviations", "Planned work that was not done", ENGINE, REASON)
KV_TRANSFER_BYTES = _counter("kv_transfer", "KV state moved", ENGINE, "direction", unit="By")

# Predictor
PREDICTIONS = _counter("predictions", "Estimates given", SOURCE)
PREDICTION_DURATION = _histogram("prediction_duration", "s", _ESTIMATE_S, "Time of one batch of estimates")
PREDICTIONS_INVALID = _counter(
    "predictions_invalid", "Answers of the model file that were no distribution", KIND
)
OBSERVATIONS = _counter("observations", "Outcomes learned from")
OUTCOMES_DROPPED = _counter("outcomes_dropped", "Ended requests and tasks that the predictor did not hear of")
TASK_FORECASTS = _counter("task_forecasts", "Forecasts of tasks given", SOURCE)
PREDICTION_COVERAGE = _gauge(
    "prediction_coverage", "Share of late outcomes within the declared quantile; absent: not known yet", LEVEL
)
PREDICTION_COVERAGE_BY_KEY = _gauge(
    "prediction_coverage_by_key", "The same per model and app, the most observed ones", MODEL, APP, LEVEL
)
PREDICTION_BIAS = _gauge("prediction_bias", "Mean log of length over declared median of late", MODEL)
PREDICTION_PIT_DRIFT = _gauge(
    "prediction_pit_drift", "Largest distance of the outcomes' ranks from uniform, 0 to 1", MODEL
)
PREDICTION_FALLBACKS = _gauge("prediction_fallbacks", "Models and apps whose estimates the histograms carry")
PREDICTOR_MODEL_BYTES = _gauge("predictor_model", "Size of the model file in use", KIND, unit="By")
MODEL_RELOADS = _counter("model_reloads", "Model files loaded again", OUTCOME)

# Store
STORE_WRITES = _counter("store_writes", "Rows written", "table")
STORE_WRITE_DURATION = _histogram("store_write_duration", "s", _LATENCY_S, "Time of one write-behind commit")
STORE_QUEUE = _gauge("store_queue", "Writes waiting")
STORE_DROPPED = _counter("store_dropped", "Writes given up because the buffer was full", REASON)

# Gateway
HTTP_REQUESTS = _counter("http_requests", "HTTP requests answered", METHOD, CODE)
HTTP_STREAMS = Metric("paceline_http_streams", Kind.UP_DOWN, "1", "Open event streams")
HTTP_CLIENTS_LEFT = _counter(
    "http_clients_left", "Clients that left, or stopped reading, before their end", REASON
)
REATTACHES = _counter("reattaches", "Streams continued on another router connection")

METRICS: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
"""All of the above."""
