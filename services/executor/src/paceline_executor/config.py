"""Configuration of the executor: section `executor`."""

from typing import Literal

from pydantic import Field

from paceline_executor.remote.config import RemoteSection
from paceline_executor.trtllm.config import TrtllmSection
from paceline_runtime.channel import ChannelConfig
from paceline_runtime.config_model import ConfigModel
from paceline_runtime.server import ServerConfig
from paceline_runtime.service import ServiceConfig


class SimulatedSection(ConfigModel):
    """The simulated engine."""

    profile: str = "a100-80-8b"
    """How long steps take: a100-80-8b, h100-8b, cpu-smollm2, or the path of a YAML file."""
    seed: int = 0
    """Seed of what is said: engines of equal seed give equal answers."""
    time_scale: float = Field(default=1.0, gt=0)
    """Real seconds per simulated second: 0.1 runs ten times faster."""
    output_median_tokens: float = Field(default=200.0, ge=1)
    """Median of the answers' own length, tokens."""
    output_sigma: float = Field(default=0.8, ge=0)
    """Spread of that length: standard deviation of its logarithm."""
    kv_capacity_tokens: int = Field(default=0, ge=0)
    """KV memory, tokens; 0: what the profile says."""
    prefill_budget_tokens: int = Field(default=512, ge=1)
    """Prefill in one step when the plan does not say, tokens."""


class ExecutorConfig(ConfigModel):
    """The executor: one engine behind the contract."""

    listen: str = "127.0.0.1:7440"
    """Address: `host:port`, `[v6]:port` or `unix:/path`. Port 0 lets the system choose a free one."""
    advertise: str = ""
    """Address that other executors pull KV state from; empty: the address it listens on."""
    server: ServerConfig = ServerConfig()
    """The gRPC server; `executor.listen` wins over its `listen`."""
    channel: ChannelConfig = ChannelConfig()
    """How other executors are dialled for KV state."""
    engine_id: str = "cpu-0"
    """Stable name of the engine."""
    backend: Literal["llamacpp", "simulated", "trtllm", "remote"] = "llamacpp"
    """Kind of engine."""
    model: str = ""
    """Served name; empty: smollm2-135m-instruct, tiny, simulated, or the stem of the model file."""
    model_path: str = ""
    """GGUF file; empty: the default model, fetched once and cached; `tiny`: a random one for tests, made at start."""
    max_batch: int = Field(default=16, ge=1)
    """Most sequences worked on in one step."""
    max_resident: int = Field(default=32, ge=1)
    """Most sequences with KV in the engine; llama.cpp takes the memory for all of them at start."""
    context_tokens: int = Field(default=2048, ge=64)
    """Longest context of one sequence, prompt and output together, tokens."""
    threads: int = Field(default=1, ge=1)
    """Threads of llama.cpp; more than there are free cores make every step slow. More than one costs flash attention,
    which would let answers depend on the schedule, and gives other near-ties than one: use the same for all engines."""
    prefill_chunk_tokens: int = Field(default=64, ge=1)
    """Prefill chunk, tokens. Answers are the same whatever the schedule, but not whatever the chunk."""
    prefix_reuse: Literal["none", "aligned", "fast"] = "aligned"
    """Which computed prefixes a new prompt shares: `fast` shares more and may flip a near-tie."""
    speed_factor: float = Field(default=1.0, gt=0)
    """Every step takes this multiple of its time, to play a slower engine; llama.cpp: at least 1."""
    orphan_ttl_s: float = Field(default=10.0, ge=0)
    """Seconds that attempts are kept without a scheduler."""
    attach_timeout_s: float = Field(default=5.0, gt=0)
    """Seconds that a new control stream has to say who it is."""
    stall_pause_s: float = Field(default=1.0, gt=0)
    """Seconds that a scheduler may leave a report unread before the engine is paused."""
    pull_timeout_s: float = Field(default=20.0, gt=0)
    """Seconds that pulling a KV state may take; then the attempt replays."""
    max_pulls: int = Field(default=4, ge=1)
    """KV states pulled at the same time."""
    fault_abort_marker: str = ""
    """For fault tests only: a prompt with this text aborts the process. Empty: off."""
    simulated: SimulatedSection = SimulatedSection()
    """Settings of the simulated engine."""
    trtllm: TrtllmSection = TrtllmSection()
    """Settings of TensorRT-LLM; `model_path` is its model folder."""
    remote: RemoteSection = RemoteSection()
    """Settings of a server elsewhere; `model_path` is where its vocabulary is: a GGUF file or a model folder."""


class ExecutorServiceConfig(ServiceConfig):
    """Everything an executor process reads."""

    executor: ExecutorConfig = ExecutorConfig()
    """The executor."""
