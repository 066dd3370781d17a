"""The `predictor` section of the configuration."""

from pydantic import Field

from paceline_core.histogram import HistogramParams
from paceline_predictor.tasks.library import LibraryParams
from paceline_runtime.config_model import ConfigModel
from paceline_runtime.server import ServerConfig
from paceline_runtime.service import ServiceConfig
from paceline_store.config import StoreConfig


class HistogramConfig(ConfigModel):
    """How the length histograms learn."""

    half_life_outcomes: float = Field(default=500.0, gt=1)
    """Outcomes of a model or an app after which an older one counts half."""
    concentration_outcomes: float = Field(default=8.0, gt=0)
    """How many outcomes of an app the knowledge about its model is worth, and so on up to the prior."""
    prior_median_tokens: float = Field(default=180.0, gt=1)
    """Median length before anything was learned, tokens."""
    prior_sigma: float = Field(default=1.3, gt=0)
    """Spread of the length before anything was learned: standard deviation of its logarithm."""
    max_models: int = Field(default=256, ge=1)
    """Models kept at most; the one that was observed longest ago leaves."""
    max_keys: int = Field(default=4096, ge=1)
    """Pairs of model and app kept at most; the one that was observed longest ago leaves."""

    def params(self) -> HistogramParams:
        """As the learner takes it."""
        return HistogramParams(**self.model_dump())


class TaskPatternsConfig(ConfigModel):
    """How patterns of finished tasks are kept."""

    capacity: int = Field(default=500, ge=1, le=5000)
    """Patterns at most; those that are missed least leave."""
    keep_per_hour: float = Field(default=0.9, gt=0, le=1)
    """Weight left of a finished task after an hour."""
    alike: float = Field(default=0.02, ge=0)
    """Mean squared log difference of an attribute below which two tasks are one pattern."""

    def params(self) -> LibraryParams:
        """As the library takes it."""
        return LibraryParams(**self.model_dump())


class PredictorConfig(ConfigModel):
    """The predictor."""

    listen: str = "127.0.0.1:7410"
    """Address: `host:port`, `[v6]:port` or `unix:/path`. Port 0 lets the system choose a free one."""
    server: ServerConfig = ServerConfig()
    """The gRPC server; `predictor.listen` wins over its `listen`."""
    state_path: str = ""
    """File for what was learned. Empty: it is kept in the store (`store.url`), or not at all without one."""
    state_name: str = Field(default="predictor.length-histograms", min_length=1, max_length=256)
    """Name of the state in the store. Predictors that learn apart need names of their own."""
    state_interval_s: float = Field(default=10.0, gt=0)
    """How often what was learned is saved, seconds; also at the end of the process."""
    state_timeout_s: float = Field(default=10.0, gt=0)
    """Longest time that loading or saving may take, seconds."""
    length_model: str = ""
    """Length model, an ONNX file. Empty: the one that ships with the package; `none`: running histograms alone."""
    task_model: str = ""
    """Task matcher, an ONNX file. Empty: the one that ships with the package; `none`: tasks are not forecast."""
    task_patterns: TaskPatternsConfig = TaskPatternsConfig()
    """The patterns of finished tasks."""
    max_model_bytes: int = Field(default=64 * 1024 * 1024, ge=1024)
    """Largest model file that is accepted, bytes."""
    max_batch: int = Field(default=64, ge=1, le=1024)
    """Most questions given to a model at once; larger calls go through it in turns with the others."""
    max_waiting: int = Field(default=8192, ge=1024)
    """Most questions waiting for a model; more are refused with QUEUE_FULL."""
    histogram: HistogramConfig = HistogramConfig()
    """The length histograms."""


class Config(ServiceConfig):
    """Everything the predictor process reads."""

    predictor: PredictorConfig = PredictorConfig()
    """The predictor."""
    store: StoreConfig = StoreConfig()
    """Where what was learned is kept, unless `predictor.state_path` names a file."""
