"""gRPC channel arguments, for both ends of a hop from one place, so that they match."""

from pydantic import Field

from paceline_runtime.config_model import ConfigModel

Options = list[tuple[str, int | str]]

_CONNECT_TIMEOUT_MS = 5000


class GrpcConfig(ConfigModel):
    """Transport settings of a hop."""

    keepalive_s: float = Field(default=10.0, gt=0)
    """Seconds between pings on an idle connection; a peer that vanished without a word is noticed after this and the
    timeout."""
    keepalive_timeout_s: float = Field(default=5.0, gt=0)
    """Seconds that a ping may go unanswered before the connection counts as broken."""
    max_message_bytes: int = Field(default=16 * 1024 * 1024, ge=1024)
    """Largest message that is accepted or sent, in bytes."""
    reconnect_min_ms: int = Field(default=100, ge=1)
    """First wait before dialling again, in milliseconds."""
    reconnect_max_ms: int = Field(default=2000, ge=1)
    """Longest wait before dialling again, in milliseconds."""


def server_options(config: GrpcConfig) -> Options:
    """Channel arguments of a server."""
    return [
        *_common(config),
        # Two servers that share a port by accident would split the requests between them.
        ("grpc.so_reuseport", 0),
        # Clients ping as often as `_common` says; without these the server takes that for an attack.
        ("grpc.http2.min_recv_ping_interval_without_data_ms", min(1000, _ms(config.keepalive_s) // 2)),
        ("grpc.http2.max_ping_strikes", 0),
    ]


def client_options(config: GrpcConfig) -> Options:
    """Channel arguments of a channel."""
    return [
        *_common(config),
        ("grpc.initial_reconnect_backoff_ms", config.reconnect_min_ms),
        # Not a backoff, whatever its name: the time one attempt to connect may take. A busy machine needs some.
        ("grpc.min_reconnect_backoff_ms", _CONNECT_TIMEOUT_MS),
        ("grpc.max_reconnect_backoff_ms", config.reconnect_max_ms),
        # One connection per channel: closing a channel closes its connection, and one that broke is not shared.
        ("grpc.use_local_subchannel_pool", 1),
        # Calls inside a deployment never go through a proxy from the environment.
        ("grpc.enable_http_proxy", 0),
    ]


def _common(config: GrpcConfig) -> Options:
    return [
        ("grpc.keepalive_time_ms", _ms(config.keepalive_s)),
        ("grpc.keepalive_timeout_ms", _ms(config.keepalive_timeout_s)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", config.max_message_bytes),
    ]


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
