"""A seeded sequence of jobs: which prompt arrives when."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from paceline_core.slo import SloClass
from paceline_lab.live.arrivals import Arrivals, arrival_times_s
from paceline_lab.prompts.model import Library, Prompt, TaskPrompt

DEFAULT_MIX: Mapping[SloClass, float] = {SloClass.LATENCY: 1.0, SloClass.DEADLINE: 1.0, SloClass.TASK: 1.0}
MIX_NAMES = {
    "latency": SloClass.LATENCY,
    "deadline": SloClass.DEADLINE,
    "task": SloClass.TASK,
    "best-effort": SloClass.BEST_EFFORT,
}


@dataclass(frozen=True, slots=True)
class Job:
    """One application request: a single call, or a whole task. `arrival_s` counts from the start of the run."""

    number: int
    arrival_s: float
    slo_class: SloClass
    work: Prompt | TaskPrompt


@dataclass(frozen=True, slots=True)
class WorkloadSpec:
    """Everything that decides the jobs of a run. Equal specs give equal jobs."""

    rate_per_s: float
    duration_s: float
    seed: int
    arrivals: Arrivals = Arrivals.POISSON
    cv: float = 1.0
    mix: tuple[tuple[SloClass, float], ...] = tuple(DEFAULT_MIX.items())


def parse_mix(text: str) -> tuple[tuple[SloClass, float], ...]:
    """`latency=2,deadline=1,task=1` as weights by class. Raises ValueError with what to write."""
    weights: dict[SloClass, float] = {}
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        if name not in MIX_NAMES:
            raise ValueError(f"unknown class {name!r} in the mix; known: {', '.join(MIX_NAMES)}")
        try:
            weights[MIX_NAMES[name]] = float(value) if equals else 1.0
        except ValueError:
            raise ValueError(f"{part.strip()!r}: write class=weight, e.g. latency=2") from None
    if not all(0 <= weight < float("inf") for weight in weights.values()) or not any(weights.values()):
        raise ValueError("weights of the mix must be 0 or more, and one of them greater")
    return tuple(weights.items())


def jobs_of(spec: WorkloadSpec, library: Library) -> list[Job]:
    """The jobs of a run, by arrival. Prompts come in shuffled rounds: none repeats before all had a turn."""
    arrivals_rng, class_rng, prompt_rng = np.random.default_rng(spec.seed).spawn(3)
    times = arrival_times_s(spec.arrivals, spec.rate_per_s, spec.duration_s, arrivals_rng, cv=spec.cv)
    classes = [slo_class for slo_class, _ in spec.mix]
    weights = np.array([weight for _, weight in spec.mix])
    drawn = class_rng.choice(len(classes), size=len(times), p=weights / weights.sum())
    rounds = {
        slo_class: _Rounds(_candidates(slo_class, library), prompt_rng.spawn(1)[0]) for slo_class in classes
    }
    return [
        Job(number, float(time_s), classes[index], rounds[classes[index]].draw())
        for number, (time_s, index) in enumerate(zip(times, drawn, strict=True))
    ]


def _candidates(slo_class: SloClass, library: Library) -> Sequence[Prompt | TaskPrompt]:
    if slo_class is SloClass.TASK:
        return library.tasks
    return library.prompts if slo_class is SloClass.BEST_EFFORT else library.of_class(slo_class)


class _Rounds:
    """Draws without repetition, round after round."""

    def __init__(self, candidates: Sequence[Prompt | TaskPrompt], rng: np.random.Generator) -> None:
        self._candidates = candidates
        self._rng = rng
        self._left: list[int] = []

    def draw(self) -> Prompt | TaskPrompt:
        """The next prompt."""
        if not self._left:
            self._left = [int(index) for index in self._rng.permutation(len(self._candidates))]
        return self._candidates[self._left.pop()]
