"""Configuration of the router: section `router`, and the shared `store`."""

from typing import Any, Literal

from pydantic import Field

from paceline_runtime.channel import ChannelConfig
from paceline_runtime.config_model import ConfigModel
from paceline_runtime.server import ServerConfig
from paceline_runtime.service import ServiceConfig
from paceline_store.config import StoreConfig


class SloDefaults(ConfigModel):
    """Objectives of requests that declare none, as multiples of the times measured on an idle engine of the
    model."""

    ttft_factor: float = Field(default=5.0, gt=0)
    """Streaming: the TTFT budget over the idle time to prefill the prompt and decode one token."""
    ttft_floor_ms: float = Field(default=500.0, gt=0)
    """Streaming: the smallest TTFT budget, milliseconds."""
    tbt_factor: float = Field(default=4.0, gt=0)
    """Streaming: the TBT budget over the idle decode step."""
    tbt_floor_ms: float = Field(default=50.0, gt=0)
    """Streaming: the smallest TBT budget, milliseconds."""
    e2e_factor: float = Field(default=5.0, gt=0)
    """Not streaming: the end-to-end budget over the idle time of prompt and P90 length."""
    e2e_floor_ms: float = Field(default=5000.0, gt=0)
    """Not streaming: the smallest end-to-end budget, milliseconds."""
    task_e2e_ms: float = Field(default=120_000.0, gt=0)
    """Tasks begun without a budget: the budget of the whole task, milliseconds."""


class RectifyConfig(ConfigModel):
    """Moves of live requests between engines."""

    mode: Literal["off", "policy"] = "off"
    """`policy`: moves that the placement policy asks for are made; `off`: only those that an operator asks for."""
    interval_ms: float = Field(default=250.0, gt=0)
    """How often the policy is asked, milliseconds; also at once when a scheduler says that a request is at risk."""
    max_moves: int = Field(default=2, ge=0)
    """Moves of one request, at most, failed ones included."""
    moves_per_engine: int = Field(default=2, ge=1)
    """Moves under way from and to one engine, at most."""
    timeout_s: float = Field(default=30.0, gt=0)
    """Seconds after which a move that is not done is given up: the request stays where it is."""
    fast_replay: bool = False
    """Allow replay by one prefill, which may flip a near-tie and so change the answer."""


class RouterConfig(ConfigModel):
    """The router."""

    listen: str = "127.0.0.1:7400"
    """Address: `host:port`, `[v6]:port` or `unix:/path`. Port 0 lets the system choose a free one."""
    server: ServerConfig = ServerConfig()
    """The gRPC server; `router.listen` wins over its `listen`."""
    channel: ChannelConfig = ChannelConfig()
    """How schedulers and the predictor are dialled."""
    router_id: str = "router-0"
    """Stable name: a restarted router takes over the requests of the same name."""
    schedulers: tuple[str, ...] = ()
    """Schedulers to dial: targets such as `127.0.0.1:7420`."""
    dns: tuple[str, ...] = ()
    """`name:port` of schedulers; each address that the name resolves to is dialled."""
    dns_interval_s: float = Field(default=10.0, gt=0)
    """Seconds between two resolutions of the names."""
    announce_interval_ms: float = Field(default=1000.0, gt=0)
    """How often a scheduler without a session announces itself, milliseconds."""
    max_schedulers: int = Field(default=4096, gt=0)
    """Schedulers dialled at most, announced ones included."""
    predictor: str = ""
    """Predictor to ask for lengths; empty: the router's own quantiles."""
    predictor_timeout_ms: float = Field(default=50.0, gt=0)
    """Longest wait for a prediction, milliseconds; then the fallback answers."""
    repredict_every_tokens: int = Field(default=50, ge=0)
    """Output tokens after which the length of a running request is predicted anew; 0: never."""
    placement: str = "least-predicted"
    """Placement policy by name, such as least-predicted, goodserve or margin; an unknown name lists all of them."""
    placement_params: dict[str, Any] = Field(default_factory=dict)
    """Parameters of the policy."""
    max_live_requests: int = Field(default=20_000, gt=0)
    """Requests admitted and not ended, at most; over it: QUEUE_FULL."""
    max_open_decisions: int = Field(default=100_000, gt=0)
    """Decisions of RouteStream whose outcome was not told yet, at most; over it: QUEUE_FULL."""
    open_decision_ttl_s: float = Field(default=600.0, gt=0)
    """Seconds after which a decision of RouteStream counts as ended when no outcome was told."""
    retry_after_ms: float = Field(default=1000.0, gt=0)
    """What a refusal for lack of room tells the client to wait, milliseconds."""
    max_wait_ms: float = Field(default=30_000.0, gt=0)
    """Longest wait for an engine of requests that state none, milliseconds."""
    default_max_tokens: int = Field(default=1024, gt=0)
    """Output limit of requests that state none, tokens; clipped to what the context leaves."""
    max_prompt_bytes: int = Field(default=1_000_000, gt=0)
    """Largest input, bytes of text or of token ids."""
    max_attempts: int = Field(default=3, ge=1)
    """Attempts of one request at most."""
    isolate_tokens: int = Field(default=16, ge=1)
    """A suspect runs alone until this many tokens past the crash are out."""
    detach_ttl_s: float = Field(default=10.0, ge=0)
    """Seconds that a request waits for an Attach after its client left."""
    scheduler_grace_s: float = Field(default=10.0, ge=0)
    """Seconds that a lost scheduler gets to come back before its requests are replayed elsewhere."""
    cancel_timeout_s: float = Field(default=25.0, gt=0)
    """Seconds that Cancel waits for the engine's confirmation."""
    heartbeat_lost_s: float = Field(default=5.0, gt=0)
    """Seconds without any message after which a session with a scheduler is given up and dialled anew."""
    leave_out_after_ms: float = Field(default=3000.0, gt=0)
    """Age of a load report from which the engine is left out of placement, milliseconds."""
    redial_min_ms: float = Field(default=50.0, gt=0)
    """First pause before dialling a scheduler again, milliseconds; doubles up to `redial_max_ms`."""
    redial_max_ms: float = Field(default=1000.0, gt=0)
    """Longest pause before dialling a scheduler again, milliseconds."""
    coalesce_ms: float = Field(default=20.0, ge=0)
    """Tokens after a request's first one are gathered for up to this long, milliseconds."""
    window_tokens: int = Field(default=512, ge=1)
    """Tokens that a request may run ahead of what its client has taken; then it is paused."""
    retain_requests: int = Field(default=10_000, ge=0)
    """Ended requests kept in memory, at most, so that Attach works after the end."""
    retain_bytes: int = Field(default=64_000_000, ge=0)
    """Output of ended requests kept in memory, bytes at most."""
    retain_s: float = Field(default=60.0, ge=0)
    """Seconds that ended requests are kept in memory."""
    task_idle_ttl_s: float = Field(default=300.0, gt=0)
    """Seconds after which a task without live calls ends by itself."""
    max_tasks: int = Field(default=100_000, gt=0)
    """Open tasks at most."""
    checkpoint_interval_ms: float = Field(default=1000.0, gt=0)
    """How often the progress of `async` requests is written, milliseconds."""
    sync_timeout_s: float = Field(default=30.0, gt=0)
    """Seconds that a `sync` request waits for a commit before it fails."""
    front_doors: tuple[str, ...] = ()
    """Tenants whose calls may name another tenant (gateways). Without authentication every caller may."""
    operators: tuple[str, ...] = ()
    """Tenants that may drain engines, announce schedulers and see all requests. Without authentication all may."""
    chat_template: str = ""
    """Jinja template for models that bring none; empty: a plain role-and-content layout."""
    rectify: RectifyConfig = RectifyConfig()
    """Moves of live requests between engines."""
    slo: SloDefaults = SloDefaults()
    """Objectives of requests that declare none."""


class Config(ServiceConfig):
    """Everything the router process reads."""

    router: RouterConfig = RouterConfig()
    """The router."""
    store: StoreConfig = StoreConfig()
    """Where request state is kept."""
