"""The rows of the ledger as plain values. What a caller writes and reads; `tables` says how they are stored.

Byte columns are little-endian int32 (ids) and uint32 (lengths); numbers of states and reasons are those of the protos.
Rows with a key are written as upserts (the last one wins), so that writing twice does no harm.
"""

from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RequestRow:
    """One request. Unfinished means `finished_unix_ms is None`."""

    request_id: str
    router_id: str
    model: str
    tenant: str
    app: str
    state: int
    """paceline.common.v1.RequestState."""
    slo_json: str
    durability: int
    """paceline.router.v1.Durability."""
    arrived_unix_ms: int
    spec: bytes
    """Serialized GenerationSpec with the rendered prompt."""
    prompt_ids: bytes | None = None
    prompt_tokens: int = 0
    max_tokens: int = 0
    task_id: str = ""
    finished: bytes | None = None
    """Serialized Finished."""
    finished_unix_ms: int | None = None

    @property
    def key(self) -> Hashable:
        return self.request_id


@dataclass(frozen=True, slots=True)
class RequestChange:
    """What changes of a request that is already written: a few bytes instead of the whole spec again.

    None means unchanged. A change of a request that was never written does nothing.
    """

    request_id: str
    state: int
    prompt_ids: bytes | None = None
    prompt_tokens: int | None = None
    finished: bytes | None = None
    finished_unix_ms: int | None = None

    @property
    def key(self) -> Hashable:
        return self.request_id


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One stay of a request on one engine, and why it is there."""

    request_id: str
    number: int
    """From 1."""
    attempt_key: int
    """fixed64."""
    engine_id: str
    incarnation: int
    """fixed64."""
    reason: str
    from_index: int
    """First output index that it publishes."""
    finish_reason: int
    """paceline.common.v1.FinishReason; 0: not ended."""
    placed_unix_ms: int

    @property
    def key(self) -> Hashable:
        return (self.request_id, self.number)


@dataclass(frozen=True, slots=True)
class CheckpointRow:
    """Output tokens `first_index .. first_index + count - 1` of a request."""

    request_id: str
    first_index: int
    count: int
    token_ids: bytes
    text_lengths: bytes
    text: bytes

    @property
    def key(self) -> Hashable:
        return (self.request_id, self.first_index)

    @property
    def end(self) -> int:
        """Index after the last token."""
        return self.first_index + self.count


@dataclass(frozen=True, slots=True)
class TaskRow:
    """One task (a compound job of several calls)."""

    task_id: str
    app: str
    tenant: str
    e2e_ms: float
    """Budget from its begin, milliseconds; 0: none was declared."""
    began_unix_ms: int
    ended_unix_ms: int | None = None
    attained: bool | None = None
    calls: int = 0
    router_id: str = ""

    @property
    def key(self) -> Hashable:
        return self.task_id


@dataclass(frozen=True, slots=True)
class TaskCallRow:
    """One call of a task."""

    task_id: str
    request_id: str
    stage: int
    parents_json: str
    """JSON list of request ids."""

    @property
    def key(self) -> Hashable:
        return (self.task_id, self.request_id)


@dataclass(frozen=True, slots=True)
class EngineRow:
    """One incarnation of an engine as a router saw it."""

    engine_id: str
    incarnation: int
    """fixed64."""
    scheduler_endpoint: str
    capabilities: bytes
    """Serialized EngineCapabilities."""
    first_seen_unix_ms: int
    lost_unix_ms: int | None = None

    @property
    def key(self) -> Hashable:
        return (self.engine_id, self.incarnation)


@dataclass(frozen=True, slots=True)
class EstimateRow:
    """A length estimate that a decision was made with."""

    request_id: str
    at_index: int
    """Output tokens out when it was made."""
    source: str
    model_version: str
    p50: float
    p90: float
    probabilities: bytes
    """float32 bin masses, little-endian."""

    @property
    def key(self) -> Hashable:
        return (self.request_id, self.at_index)


@dataclass(frozen=True, slots=True)
class OutcomeRow:
    """How a request ended against its objective. Times in milliseconds; None: does not apply."""

    request_id: str
    output_tokens: int
    attained: bool | None
    ttft_ms: float | None
    tbt_mean_ms: float | None
    ttlt_ms: float | None
    tokens_in_time: int

    @property
    def key(self) -> Hashable:
        return self.request_id


Row = (
    RequestRow
    | RequestChange
    | AttemptRow
    | CheckpointRow
    | TaskRow
    | TaskCallRow
    | EngineRow
    | EstimateRow
    | OutcomeRow
)


@dataclass(frozen=True, slots=True)
class TokenRun:
    """Output tokens from index 0 on, without gap or overlap."""

    count: int = 0
    token_ids: bytes = b""
    text_lengths: bytes = b""
    text: bytes = b""


@dataclass(frozen=True, slots=True)
class StoredRequest:
    """A request with its attempts (oldest first) and the tokens that are safe to go on from."""

    request: RequestRow
    attempts: tuple[AttemptRow, ...]
    tokens: TokenRun


@dataclass(frozen=True, slots=True)
class ListedRequest:
    """A request in a list: `request.spec` and `request.prompt_ids` are left out (empty)."""

    request: RequestRow
    attempts: tuple[AttemptRow, ...]


@dataclass(frozen=True, slots=True)
class StoredTask:
    """A task with its calls, in stage order."""

    task: TaskRow
    calls: tuple[TaskCallRow, ...]


@dataclass(frozen=True, slots=True)
class Lease:
    """The right of one life of a router to act under its id."""

    router_id: str
    fencing_token: int
    """Grows with every life."""
    expires_at: float
    """Unix seconds, as of acquisition."""
    holder: str
    ttl_s: float


_FIXED_COST_BYTES = 400
"""What a buffered row costs beside its contents: object, key, queue entry (measured with tracemalloc, rounded up)."""


def size_bytes(row: Row) -> int:
    """Memory that the row holds on to, about."""
    match row:
        case RequestRow():
            contents = (
                len(row.spec) + len(row.slo_json) + len(row.prompt_ids or b"") + len(row.finished or b"")
            )
        case RequestChange():
            contents = len(row.prompt_ids or b"") + len(row.finished or b"")
        case CheckpointRow():
            contents = len(row.token_ids) + len(row.text_lengths) + len(row.text)
        case EngineRow():
            contents = len(row.capabilities)
        case EstimateRow():
            contents = len(row.probabilities)
        case TaskCallRow():
            contents = len(row.parents_json)
        case _:
            contents = 0
    return _FIXED_COST_BYTES + contents
