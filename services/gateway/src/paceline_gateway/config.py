"""The `gateway` section of the configuration."""

from pathlib import Path

from pydantic import Field, SecretStr

from paceline_runtime.channel import ChannelConfig
from paceline_runtime.config_model import ConfigModel
from paceline_runtime.grpc_options import GrpcConfig


class GatewayConfig(ConfigModel):
    """The OpenAI-compatible front door."""

    listen: str = "127.0.0.1:8080"
    """`host:port` (port 0: any free one) or `unix:/path` for HTTP."""
    address_file: Path | None = None
    """File into which the address is written once the gateway listens; for whoever started it with port 0."""
    router: str = "127.0.0.1:7400"
    """gRPC target of the router."""
    channel: ChannelConfig = ChannelConfig(grpc=GrpcConfig(reconnect_max_ms=500))
    """How the router is dialled."""
    client_id: str = "gateway"
    """Name under which the router logs and counts this gateway."""
    api_keys: dict[SecretStr, str] = Field(default_factory=dict)
    """API key -> tenant. With none, whoever reaches the address is served, so only loopback is listened on."""
    allow_without_keys: bool = False
    """Whether to listen on an address that other machines reach although there are no API keys."""
    metrics_need_key: bool = False
    """Whether `/metrics` asks for an API key like the API does."""

    max_body_bytes: int = Field(default=10_000_000, ge=1_000)
    """Largest request body, bytes; larger ones are answered 413."""
    body_timeout_s: float = Field(default=30.0, gt=0)
    """Seconds a client has to send its request body."""
    max_live_requests: int = Field(default=4096, ge=1)
    """Requests served at the same time; more are answered 429."""

    window_tokens: int = Field(default=512, ge=2)
    """Tokens the router may send ahead of what a streaming client has taken."""
    client_stall_s: float = Field(default=60.0, gt=0)
    """Seconds a client may leave its stream unread before its request is cancelled and its connection closed."""
    keepalive_s: float = Field(default=10.0, gt=0)
    """Seconds without output after which a comment is sent on an event stream."""

    router_wait_s: float = Field(default=5.0, ge=0)
    """Seconds a new request waits for a router that is away, before it is answered 503."""
    router_outage_limit_s: float = Field(default=60.0, gt=0)
    """Seconds an accepted request outlasts the router being away, before it ends with an error."""
    adoption_grace_s: float = Field(default=15.0, ge=0)
    """Seconds after a new connection in which a router that does not know an accepted request is asked again:
    it may still be reading its ledger and its schedulers."""
    reconnect_max_s: float = Field(default=0.5, gt=0)
    """Longest pause between two tries to reach the router, seconds."""

    drain_limit_s: float = Field(default=30.0, ge=0)
    """Seconds that running requests have to end when the gateway is told to stop."""
    fleet_cache_ms: float = Field(default=500.0, ge=0)
    """Age up to which an answer about the fleet is served again, milliseconds."""
