"""The `scheduler` section of the configuration."""

import math
import uuid
from typing import Final

from pydantic import Field, field_validator

from paceline_core.batch.policy import EstimateUse
from paceline_core.batch.registry import POLICIES
from paceline_runtime.channel import ChannelConfig
from paceline_runtime.config_model import ConfigModel
from paceline_runtime.grpc_options import GrpcConfig
from paceline_runtime.server import ServerConfig
from paceline_runtime.service import ServiceConfig

DEFAULT_POLICY: Final = "sarathi"
LIVE_POLICIES: Final = tuple(
    name for name, policy in POLICIES.items() if policy.estimates is not EstimateUse.TRUE
)
"""Batch policies that need no more than a live service can know."""


class SchedulerConfig(ConfigModel):
    """One scheduler of one engine."""

    listen: str = "127.0.0.1:7420"
    """Address of the service: `host:port` (port 0: a free one) or `unix:/path`."""
    scheduler_id: str = Field(default_factory=lambda: f"scheduler-{uuid.uuid4().hex[:8]}")
    """Name for logs and for the executor. Default: drawn at start."""
    executor: str = "127.0.0.1:7440"
    """Where the engine's executor listens."""
    executor_endpoint: str = ""
    """Where other executors reach it, for KV transfer. Default: the same as `executor`."""
    policy: str = Field(default=DEFAULT_POLICY, description=f"Batch policy: {', '.join(LIVE_POLICIES)}.")
    policy_params: dict[str, float | int | str | bool] = Field(default_factory=dict)
    """Parameters of the policy, by name."""
    tenant_shares: dict[str, float] = Field(default_factory=dict)
    """Weight of each tenant in the fair shares of the engine, by name. Default: 1 for every tenant."""
    max_live: int = Field(default=10_000, ge=1)
    """Most attempts that have not ended; more are refused with QUEUE_FULL."""
    max_ended: int = Field(default=4_096, ge=0)
    """Most ended attempts kept for owners that have not released them; beyond it the oldest are forgotten."""
    ended_ttl_s: float = Field(default=120.0, gt=0)
    """Seconds after which an ended attempt is forgotten though nobody released it."""
    plan_length: int = Field(default=256, ge=1)
    """Most attempts listed in a plan sent to the executor."""
    router_grace_s: float = Field(default=30.0, ge=0)
    """Seconds that the requests of a router live on after its session broke."""
    engine_lost_after_s: float = Field(default=2.0, gt=0)
    """Seconds without a connection to the executor after which its engine counts as lost."""
    attach_timeout_s: float = Field(default=5.0, gt=0)
    """Seconds that the first answer on a stream may take, from the executor or from a router."""
    redial_min_s: float = Field(default=0.05, gt=0)
    """First wait before dialling the executor again, seconds."""
    redial_max_s: float = Field(default=1.0, gt=0)
    """Longest wait before dialling the executor again, seconds."""
    load_interval_ms: float = Field(default=200.0, gt=0)
    """Milliseconds between two load reports to each router."""
    session_backlog_bytes: int = Field(default=32 * 1024 * 1024, ge=1024)
    """Bytes of tokens kept for a router that does not read; past them its session is closed, and it asks again."""
    announce: list[str] = Field(default_factory=list)
    """Routers to announce this scheduler to, `host:port` each. Default: none; routers dial by themselves."""
    advertise: str = ""
    """Address told to those routers. Default: the address it listens on."""
    server: ServerConfig = ServerConfig()
    """Further settings of the gRPC server; its `listen` is not used."""
    channel: ChannelConfig = ChannelConfig(grpc=GrpcConfig(reconnect_min_ms=50, reconnect_max_ms=500))
    """How the executor and the routers are dialled."""

    @field_validator("tenant_shares")
    @classmethod
    def _positive(cls, shares: dict[str, float]) -> dict[str, float]:
        bad = sorted(tenant for tenant, share in shares.items() if not 0 < share < math.inf)
        if bad:
            raise ValueError(f"shares must be greater than 0 and finite; see {', '.join(bad)}")
        return shares


class SchedulerServiceConfig(ServiceConfig):
    """The sections that a scheduler process reads."""

    scheduler: SchedulerConfig = SchedulerConfig()
    """The scheduler."""
