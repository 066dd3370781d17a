"""What a length model is to the service. Histograms are one; models in ONNX files come in by the same door."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from paceline_core.lengths import FloatArray


@dataclass(frozen=True, slots=True)
class LengthQuestion:
    """What is known of a request: at its arrival, or after `generated_tokens`."""

    model: str
    app: str
    tenant: str = ""
    prompt_head: str = ""
    """At most 4096 characters."""
    prompt_tail: str = ""
    """At most 4096 characters."""
    prompt_tokens: int = 0
    max_tokens: int = 0
    """0: no limit is known."""
    temperature: float = 0.0
    turn_index: int = 0
    has_tools: bool = False
    wants_json: bool = False
    task_stage: int = 0
    generated_tokens: int = 0
    output_tail: str = ""
    """At most 1024 characters."""


@dataclass(frozen=True, slots=True)
class LengthAnswers:
    """Answers to N questions."""

    probabilities: FloatArray
    """float64[N, K]: bin masses of the whole length; conditioning on what is out, and clipping, are the service's."""
    sources: Sequence[str]
    """N names as in LengthEstimate.source."""
    coverage_p90: Sequence[float]
    """N realised coverages; 0: not known."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How long an answer was."""

    question: LengthQuestion
    output_tokens: int
    censored: bool
    """Cut: longer is all that is known."""
    declared_p90: float | None
    """P90 that was promised at its arrival, tokens; None: not said."""


@dataclass(frozen=True, slots=True)
class ModelReport:
    """A model in use, for people and monitors."""

    name: str
    version: str
    kind: str
    observed: int
    coverage_p90: float
    warning: str


class LengthModel(Protocol):
    """Answers questions in batches, and may learn from outcomes."""

    @property
    def version(self) -> str:
        """Stands in every estimate."""

    @property
    def off_loop(self) -> bool:
        """True if `predict` may take over 5 ms: then it is called in a thread, one batch at a time."""

    def predict(self, questions: Sequence[LengthQuestion]) -> LengthAnswers:
        """Answer all questions, in order."""

    def observe(self, outcome: Outcome) -> bool:
        """Learn from an outcome, on the event loop; False when it holds nothing to learn."""

    def report(self) -> ModelReport:
        """What is to be said about the model."""


class KeptModel(LengthModel, Protocol):
    """A model whose learning outlives the process."""

    def snapshot(self) -> Callable[[], bytes]:
        """All that was learned by now. The call that turns it into bytes is made in a thread."""

    def decoded(self, state: bytes) -> Callable[[], None]:
        """Read a state, in a thread; the call that takes it over is made on the event loop.

        Raises ValueError when it cannot be used.
        """
