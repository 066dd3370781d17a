"""Section `executor.remote`."""

from typing import Literal

from pydantic import Field, SecretStr

from paceline_runtime.config_model import ConfigModel


class RemoteSection(ConfigModel):
    """A server that is not Paceline's, or another Paceline."""

    protocol: Literal["openai", "smg-trtllm"] = "openai"
    """How it is spoken to: OpenAI HTTP, or gRPC `trtllm.TrtllmService` (needs the package smg-grpc-proto)."""
    url: str = "http://127.0.0.1:8000"
    """Base URL without `/v1`; for gRPC `host:port`."""
    api_key: SecretStr = SecretStr("")
    """Sent as a bearer token; empty: none."""
    dialect: Literal["trtllm", "vllm", "sglang", "llama-server", "paceline"] = "vllm"
    """Whose extensions of the OpenAI interface the server has."""
    model: str = ""
    """Name of the model there; empty: the one that it lists first."""
    adapters: tuple[str, ...] = ()
    """LoRA adapters there that are named in place of the model (vllm, paceline)."""
    kv_capacity_tokens: int = Field(default=1 << 20, ge=64)
    """KV memory of the server, tokens: nobody asks it, so this bounds what is sent."""
    frame_iterations: int = Field(default=32, ge=1)
    """Unused where the server tells nothing of its iterations: then `frame_ms` alone counts."""
    frame_ms: float = Field(default=500.0, gt=0)
    """Milliseconds between two times that a running request may be taken out."""
    reserve_tokens: int = Field(default=256, ge=1)
    """Tokens asked for at once where the expected length is not known, or was passed; more are a resume."""
    connect_timeout_s: float = Field(default=5.0, gt=0)
    """Seconds that connecting may take."""
    read_timeout_s: float = Field(default=120.0, gt=0)
    """Seconds that a stream may be silent."""
    progress_timeout_s: float = Field(default=120.0, gt=0)
    """Seconds without a token, while some are due, that take the server out."""
    health_interval_s: float = Field(default=2.0, gt=0)
    """Seconds between two looks at its health."""
    health_failures: int = Field(default=3, ge=1)
    """Failed looks in a row that take it out."""
