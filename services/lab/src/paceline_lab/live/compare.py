"""Several policies on the real stack, interleaved: A B C, B C A, ..., every round with arrivals of its own seed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from paceline_core.slo import SloClass
from paceline_lab.live.report import LiveReport, totals
from paceline_lab.machine import describe_machine
from paceline_lab.paired import Interval, interval, paired

METRICS: Final = (
    "request_goodput",
    "token_goodput_1_1",
    "token_goodput_1_8",
    "attainment",
    "output_tokens_per_s",
    "ttft_p99_ms",
)
"""Of a run, over all classes that promise something; the TTFT is that of the latency class."""


def turns(policies: Sequence[str], seeds: Sequence[int]) -> Iterator[tuple[int, str]]:
    """(seed, policy) in the order of running: each round starts one policy further, so that none is always first."""
    for round_, seed in enumerate(seeds):
        for place in range(len(policies)):
            yield seed, policies[(round_ + place) % len(policies)]


@dataclass(frozen=True, slots=True)
class Turn:
    """One run of one policy."""

    policy: str
    seed: int
    metrics: dict[str, float]
    attainment: dict[str, float]
    """By class."""
    jobs: int
    failed_calls: dict[str, int]


def turn_of(policy: str, report: LiveReport) -> Turn:
    """What is compared of a run."""
    scores = report.scores()
    total = totals(scores)
    latency = [score for score in scores if score.slo_class is SloClass.LATENCY]
    return Turn(
        policy=policy,
        seed=report.workload.seed,
        metrics={
            **{name: float(total[name]) for name in METRICS[:4]},
            "output_tokens_per_s": total["output_tokens"] / report.window_s,
            "ttft_p99_ms": latency[0].ttft_ms.p99 if latency else float("nan"),
        },
        attainment={score.slo_class.name.lower(): score.attainment for score in scores},
        jobs=int(total["jobs"]),
        failed_calls=report.errors,
    )


@dataclass(frozen=True)
class Comparison:
    """All turns, and what they say."""

    turns: tuple[Turn, ...]
    conditions: dict[str, Any]

    @property
    def policies(self) -> list[str]:
        """In the order given."""
        return list(dict.fromkeys(turn.policy for turn in self.turns))

    def series(self, policy: str, metric: str) -> list[float]:
        """One value per seed, in the order of seeds."""
        mine = sorted((turn for turn in self.turns if turn.policy == policy), key=lambda turn: turn.seed)
        return [turn.metrics[metric] for turn in mine]

    def mean(self, policy: str, metric: str) -> Interval:
        """Over seeds."""
        return interval(self.series(policy, metric))

    def against(self, policy: str, other: str, metric: str) -> Interval:
        """Paired difference policy - other."""
        return paired(self.series(policy, metric), self.series(other, metric))

    def as_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        rows = []
        for policy in self.policies:
            means = {metric: _as_dict(self.mean(policy, metric)) for metric in METRICS}
            classes = {
                name: interval([t.attainment[name] for t in self.turns if t.policy == policy]).mean
                for name in next(t.attainment for t in self.turns if t.policy == policy)
            }
            rows.append({"policy": policy, **means, "attainment_by_class": classes})
        pairs = [
            {"policy": a, "against": b, "metric": metric, **_as_dict(self.against(a, b, metric))}
            for a in self.policies
            for b in self.policies
            if a != b
            for metric in METRICS[:3]
        ]
        return {
            "kind": "paceline compare",
            **self.conditions,
            "rows": rows,
            "paired": pairs,
            "turns": [
                {
                    "policy": t.policy,
                    "seed": t.seed,
                    "jobs": t.jobs,
                    **t.metrics,
                    "failed_calls": t.failed_calls,
                }
                for t in self.turns
            ],
            "machine": describe_machine(),
        }


def _as_dict(value: Interval) -> dict[str, float]:
    return {"mean": value.mean, "half": value.half}
