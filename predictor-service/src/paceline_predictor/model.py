"""What a length model is to the service: two steps, one that knows nothing of the past and one that learned from it.

The first (`bases`) is the costly one and may run in a thread; the second (`answers`, `learn`) runs on the event loop,
so that what was learned has one owner.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from paceline_core.lengths import FloatArray, K


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

    @property
    def chars(self) -> int:
        """Characters of text."""
        return len(self.prompt_head) + len(self.prompt_tail) + len(self.output_tail)


@dataclass(frozen=True, slots=True)
class Bases:
    """What is known of N questions without the past."""

    version: str
    """Of the model file they come from; it stands in the answers."""
    kind: str
    """Of that file; "histogram": there is none."""
    masses: FloatArray
    """float64[N, K]: bin masses of the whole length."""
    good: NDArray[np.bool_]
    """bool[N]: whether the row of `masses` can be used; else the histograms answer."""

    def part(self, rows: slice) -> Self:
        """Those of some of the questions."""
        return type(self)(self.version, self.kind, self.masses[rows], self.good[rows])


def no_bases(count: int, version: str) -> Bases:
    """Of questions that no model file answers."""
    return Bases(version, "histogram", np.zeros((count, K)), np.zeros(count, dtype=np.bool_))


@dataclass(frozen=True, slots=True)
class LengthAnswers:
    """Answers to N questions."""

    probabilities: FloatArray
    """float64[N, K]: bin masses of the whole length, given what is out; mass past max_tokens is on it."""
    sources: Sequence[str]
    """N names as in LengthEstimate.source."""
    coverage_p90: Sequence[float]
    """N realised coverages; 0: not known."""
    versions: Sequence[str]
    """N versions of the model that answered."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How long an answer was."""

    question: LengthQuestion
    output_tokens: int
    censored: bool
    """Cut: longer is all that is known."""
    declared: tuple[float, float, float] | None
    """P50, P90 and P95 that were promised, tokens; None: not said."""


@dataclass(frozen=True, slots=True)
class KeyReport:
    """How the answers of a model and an app fared of late."""

    model: str
    app: str
    observed: int
    coverage_p50: float
    """Realised coverages; 0: not known."""
    coverage_p90: float
    coverage_p95: float
    bias_log: float
    """Mean of log(length / median of the answer): above 0 answers are longer than said."""
    drift: float
    """Largest distance of the distribution of ranks (PIT) from the uniform one, 0..1."""
    fallback: bool
    """True if the histograms carry the answers because the model misses."""
    warning: str = ""
    whole_model: bool = False
    """True: of all apps of the model together."""


@dataclass(frozen=True, slots=True)
class ModelReport:
    """A model in use, for people and monitors."""

    name: str
    version: str
    kind: str
    observed: int
    coverage_p90: float
    warning: str
    coverage_p50: float = 0.0
    coverage_p95: float = 0.0
    bias_log: float = 0.0
    drift: float = 0.0
    file_bytes: int = 0
    keys: tuple[KeyReport, ...] = ()
    """Those with the most outcomes first; bounded."""


class LengthModel(Protocol):
    """Answers questions in batches, and learns from outcomes."""

    def bases(self, questions: Sequence[LengthQuestion]) -> Bases:
        """What is known of them without the past. Called in any thread, also while the other methods run."""

    def answers(self, questions: Sequence[LengthQuestion], bases: Bases) -> LengthAnswers:
        """Answer all questions, in order; on the event loop."""

    def learn(self, outcomes: Sequence[Outcome], bases: Bases) -> int:
        """Learn, on the event loop; `bases` are those of the outcomes' questions. Returns how many held something."""

    def report(self) -> ModelReport:
        """What is to be said about the model; on the event loop."""


class KeptState(Protocol):
    """Something learned that outlives the process."""

    def snapshot(self) -> Callable[[], bytes]:
        """All that was learned by now. The call that turns it into bytes is made in a thread."""

    def decoded(self, state: bytes) -> Callable[[], None]:
        """Read a state, in a thread; the call that takes it over is made on the event loop.

        Raises ValueError when it cannot be used.
        """
