"""Moves in the simulator: every call ends once, with all its tokens, on whichever engine it comes to its end."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import pytest

from paceline_core.batch.policy import EstimateUse
from paceline_core.batch.registry import make_policy
from paceline_core.placement.moves import Move, Rectification
from paceline_core.placement.policy import choose
from paceline_core.placement.registry import make_policy as make_placement
from paceline_core.slo import OnMiss
from paceline_lab.sim.call import Ending
from paceline_lab.sim.engine_spec import parse_engines
from paceline_lab.sim.estimates import LengthSpec, estimates_for
from paceline_lab.sim.knowledge import learn
from paceline_lab.sim.moves import Moves
from paceline_lab.sim.score import Window, p_meet_bins, score
from paceline_lab.sim.simulator import Setting, simulate
from paceline_lab.workloads.registry import make_workload
from paceline_lab.workloads.trace import Workload

ENGINES = parse_engines("a100-80-8b,a40-8b")
TRAINING = make_workload("goodserve-mix", rate_per_s=1, duration_s=300, seed=99)
KNOWLEDGE = learn(TRAINING)


@dataclass
class FakeRestless:
    """Places on the first engine, and wants whatever wrote `every` tokens since to be on the other one."""

    every: int = 20
    asked: list[Move] = field(default_factory=list)
    name: ClassVar[str] = "restless"
    estimates: ClassVar[EstimateUse] = EstimateUse.PREDICTED

    def place(self, request, fleet, now_ms):
        return choose(request, fleet, np.arange(len(fleet), dtype=float), lambda _: "")

    def rectify(self, fleet, now_ms):
        live = fleet.residents
        rows = np.flatnonzero((live.engine >= 0) & (live.generated - live.checked >= self.every))
        moves = tuple(
            Move(int(live.key[r]), int(live.engine[r]), 1 - int(live.engine[r]), 1.0, 0.0, 1.0, "restless")
            for r in rows
        )
        self.asked += moves
        return Rectification(moves, rows)


def run(placement, workload, moves, batch_policy="sarathi"):
    use = make_policy(batch_policy).estimates
    return simulate(
        Setting(
            workload=workload,
            engines=ENGINES,
            policy=lambda: make_policy(batch_policy),
            estimates=estimates_for(workload, KNOWLEDGE, LengthSpec(), use, 1),
            knowledge=KNOWLEDGE,
            placement=placement,
            moves=moves,
        )
    )


@pytest.mark.parametrize("moves", [Moves.STALE, Moves.REFRESHED])
def test_calls_that_move_lose_and_double_nothing(moves) -> None:
    workload = make_workload("goodserve-mix", rate_per_s=1.0, duration_s=30, seed=3)
    result = run(FakeRestless(), workload, moves)
    assert result.moves["made"] > 10
    assert result.moves["begun"] == result.moves["made"] + result.moves["given up"]
    calls = [call for job in result.jobs for call in job.calls.values()]
    assert len(calls) == workload.calls
    assert all(call.ending is Ending.DONE for call in calls)
    assert {call.moves for call in calls} <= {0, 1, 2}
    for call in calls:
        assert call.outcome is not None
        assert call.outcome.tokens == call.call.output_tokens
        assert 0 < call.outcome.first_token_ms <= call.outcome.last_token_ms
        assert call.job.last_ms == pytest.approx(call.released_ms + call.outcome.last_token_ms)
        assert call.landing is None
        assert call.origin is None
    assert any(call.moves and call.engine == 1 for call in calls)
    for engine in result.engines:
        assert not len(engine.table)
        assert engine.kv_used == 0


def test_a_policy_that_sheds_gives_up_moves_as_well() -> None:
    made = make_workload("goodserve-mix", rate_per_s=8.0, duration_s=8, seed=4, slo_scale=0.5)
    jobs = [replace(job, slo=replace(job.slo, on_miss=OnMiss.DROP)) for job in made.jobs]
    workload = Workload.of(made.name, made.seed, jobs, made.duration_ms, made.rate_per_s)
    result = run(FakeRestless(every=5), workload, Moves.REFRESHED, "edf-shed")
    calls = [call for job in result.jobs for call in job.calls.values()]
    assert {call.ending for call in calls} == {Ending.DONE, Ending.SHED}
    assert result.moves["made"] > 0
    for call in calls:
        assert call.ending is Ending.SHED or call.outcome.tokens == call.call.output_tokens
    assert not any(len(engine.table) for engine in result.engines)


def test_nothing_moves_when_moves_are_off() -> None:
    workload = make_workload("goodserve-mix", rate_per_s=1.0, duration_s=20, seed=3)
    policy = FakeRestless()
    result = run(policy, workload, Moves.OFF)
    assert not policy.asked
    assert not result.moves
    assert not result.engines[1].steps


def test_what_margin_said_is_held_against_what_came() -> None:
    workload = make_workload("goodserve-mix", rate_per_s=2.0, duration_s=20, seed=5)
    result = run(make_placement("margin"), workload, Moves.REFRESHED)
    window = Window(0.0, 20e3)
    bins = np.array(p_meet_bins(result, window))
    (scored,) = score(result, window).classes
    assert bins[:, 0].sum() == scored.jobs
    assert bins[:, 2].sum() == scored.attained
    told = bins[:, 0] > 0
    mean = bins[told, 1] / bins[told, 0]
    assert ((mean >= np.flatnonzero(told) / 10) & (mean <= (np.flatnonzero(told) + 1) / 10)).all()
