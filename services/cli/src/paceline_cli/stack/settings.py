"""The `up` section: how the local stack is laid out and supervised."""

from typing import Literal

from pydantic import Field

from paceline_runtime.config_model import ConfigModel


class UpConfig(ConfigModel):
    """Section `up`. Read by `paceline up` alone; the services have their own sections."""

    engines: int = Field(2, ge=1, le=64)
    """Engines: one executor and one scheduler process each."""
    speed_factors: tuple[float, ...] = ()
    """Factor on the step time of each engine, in order; 2 is half speed. Missing ones keep executor.speed_factor."""
    ports: Literal["fixed", "auto"] = "fixed"
    """fixed: the ports below. auto: free ports, drawn at start, for a stack beside others."""
    host: str = "127.0.0.1"
    """Address every service of the local stack binds to."""
    gateway_port: int = Field(8080, ge=1, le=65535)
    """HTTP port of the gateway."""
    router_port: int = Field(7400, ge=1, le=65535)
    """gRPC port of the router."""
    predictor_port: int = Field(7410, ge=1, le=65535)
    """gRPC port of the predictor."""
    scheduler_port: int = Field(7420, ge=1, le=65535)
    """gRPC port of the first scheduler; the others follow."""
    executor_port: int = Field(7440, ge=1, le=65535)
    """gRPC port of the first executor; the others follow."""
    ready_timeout_s: float = Field(120.0, gt=0)
    """Longest wait for the whole stack to be ready, seconds."""
    stop_timeout_s: float = Field(10.0, gt=0)
    """Time each group of processes gets to end by itself before it is killed, seconds."""
    start_attempts: int = Field(3, ge=1)
    """Exits of a process that was never ready before `up` gives up."""
    restart_delay_ms: float = Field(100.0, ge=0)
    """Wait before the second restart in a row, milliseconds; the first is at once, each later one doubles."""
    restart_delay_max_s: float = Field(30.0, gt=0)
    """Longest wait before a restart, seconds."""
    stable_after_s: float = Field(30.0, gt=0)
    """Life after which a process counts as healthy again, seconds."""
    log_bytes: int = Field(4 << 20, ge=4096)
    """Size at which the log of a process is rotated, bytes."""
    log_files: int = Field(3, ge=1, le=20)
    """Rotated logs kept of each process."""


class UpDocument(ConfigModel):
    """The part of a configuration file that `paceline up` reads itself."""

    up: UpConfig = UpConfig()
    """The local stack."""
