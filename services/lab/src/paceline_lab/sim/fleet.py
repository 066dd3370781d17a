"""The engines of a simulation as a placement policy sees them, and the choice among them."""

from collections.abc import Iterable, Sequence
from typing import Final, cast

import numpy as np

from paceline_core import lengths
from paceline_core.batch.policy import EstimateUse
from paceline_core.batch.state import RunState
from paceline_core.batch.view import IntArray
from paceline_core.lengths import FloatArray
from paceline_core.placement.demand import DemandWindow
from paceline_core.placement.fleet_table import EngineLimits, FleetTable
from paceline_core.placement.margin import Margin
from paceline_core.placement.moves import Move, Rectifier
from paceline_core.placement.policy import PlacementPolicy
from paceline_core.placement.prices import reprice
from paceline_core.placement.view import RequestView
from paceline_core.slo import SloClass
from paceline_lab.sim.call import SimCall
from paceline_lab.sim.engine import SimEngine
from paceline_lab.sim.estimates import Estimates

REPORT_MS: Final = 200.0
"""Engines report their load so often, as live schedulers do; in between the in-flight ledger knows."""
_REPRICE_MS: Final = 1000.0
_MODEL: Final = "sim"
_BEYOND: Final = np.concatenate([np.zeros(lengths.K - 1), [1.0]])
"""A length past every bin: the limit, which an oracle is given the truth for, decides alone."""


class Fleet:
    """Places calls. The table of the live router is fed with what its engines would report."""

    def __init__(
        self,
        engines: Sequence[SimEngine],
        policy: PlacementPolicy | None,
        estimates: Estimates,
        refreshed: bool = True,
    ) -> None:
        """`policy` is needed where there is more than one engine. `refreshed`: it is told of estimates that come with
        progress."""
        if policy is None and len(engines) > 1:
            raise ValueError("more than one engine needs a placement policy")
        self.engines = engines
        self._policy = policy
        self._estimates = estimates
        self._oracle = policy is not None and policy.estimates is EstimateUse.TRUE
        self._rectifier = cast(Rectifier, policy) if hasattr(policy, "rectify") else None
        self._refreshed = refreshed and self._rectifier is not None and not self._oracle
        self._live: dict[int, SimCall] = {}
        self.table = FleetTable()
        self._demand = DemandWindow()
        self._value = policy.value if isinstance(policy, Margin) else lambda _: 1.0
        self._reported_ms = self._priced_ms = float("-inf")
        for engine in engines:
            row = self.table.join(f"sim-{engine.number}")
            capacity = engine.capacity
            limits = EngineLimits(capacity.max_batch, capacity.kv_tokens, capacity.max_context_tokens)
            self.table.came_up(row, engine.number + 1, _MODEL, limits, 0.0)

    def choose(self, call: SimCall, now_ms: float, call_due_ms: float = float("inf")) -> SimEngine | None:
        """The engine for a call that is wanted by `call_due_ms`; None when it fits no engine."""
        need = call.call.prompt_tokens + call.call.output_tokens
        if not any(need < engine.capacity.max_context_tokens for engine in self.engines):
            return None
        if self._policy is None:
            return self.engines[0]
        if now_ms - self._reported_ms >= REPORT_MS:
            self._report(now_ms)
        request = self._request(call, now_ms, call_due_ms)
        self._demand.add(request, now_ms, self._value(request))
        if now_ms - self._priced_ms >= _REPRICE_MS:
            self._priced_ms = now_ms
            table = self.table
            table.prices = reprice(table.prices, table.view(now_ms), self._demand.demand(now_ms))
        placed = self._policy.place(request, self.table.view(now_ms), now_ms)
        if not placed.found:
            return None
        call.p_meet = placed.p_meet
        self._put(call, placed.engine, request, now_ms)
        return self.engines[placed.engine]

    def ended(self, call: SimCall, now_ms: float) -> None:
        """A call that was placed is over, well or not."""
        outcome = call.outcome
        if outcome is not None and np.isfinite(outcome.first_token_ms) and not call.moves:
            self.table.first_token(call.attempt, call.released_ms + outcome.first_token_ms)
        self._live.pop(call.attempt, None)
        self.table.ended(call.attempt, now_ms, 0 if outcome is None else outcome.tokens)

    # -- moves ---------------------------------------------------------------------------------------------------

    @property
    def rectifies(self) -> bool:
        """True if the policy also looks at calls under way."""
        return self._rectifier is not None

    def rectify(self, now_ms: float) -> Sequence[Move]:
        """Moves that the policy wants now, best first."""
        if self._rectifier is None or self.table.residents is None or not self._live:
            return ()
        if now_ms - self._reported_ms >= REPORT_MS:
            self._report(now_ms)
        found = self._rectifier.rectify(self.table.view(now_ms), now_ms)
        self.table.residents.checked(found.checked)
        return found.moves

    def live(self, attempt: int) -> SimCall | None:
        """The call of an attempt that was placed and has not ended."""
        return self._live.get(attempt)

    def calls(self) -> Iterable[SimCall]:
        """All of them."""
        return self._live.values()

    def lands(self, landing: SimCall, row: int, generated: int, now_ms: float) -> None:
        """A call is being moved to an engine, with so many output tokens."""
        due_ms = float(self.engines[row].table.call_due_ms[landing.row])
        self._put(landing, row, self._request(landing, now_ms, due_ms, generated), now_ms)

    def left(self, call: SimCall, now_ms: float) -> None:
        """A call is not on its engine any more, though it may go on elsewhere."""
        self._live.pop(call.attempt, None)
        self.table.ended(call.attempt, now_ms)

    def _put(self, call: SimCall, row: int, request: RequestView, now_ms: float) -> None:
        self._live[call.attempt] = call
        self.table.placed(row, call.attempt, request, now_ms, call.moves)
        self.table.seen(call.attempt)

    def _request(self, call: SimCall, now_ms: float, call_due_ms: float, generated: int = 0) -> RequestView:
        oracle = self._oracle
        cdf = _BEYOND if oracle else self._cdf(call, generated)
        limit = call.call.output_tokens if oracle else int(self._estimates.limit[call.key])
        task = call.slo.slo_class is SloClass.TASK
        return RequestView(
            model=_MODEL,
            prompt_tokens=call.call.prompt_tokens,
            max_tokens=limit,
            length_cdf=cdf,
            slo=call.slo,
            # The budget of a task counts from its first call.
            elapsed_ms=now_ms - (call.job.job.arrival_ms if task else call.released_ms),
            replayed_tokens=generated,
            budget_ms=call_due_ms - call.job.job.arrival_ms if task else float("inf"),
            tenant=call.tenant,
            request_id=str(call.key),
        )

    def _cdf(self, call: SimCall, generated: int) -> FloatArray:
        stage = self._stage(generated) if self._refreshed else 0
        if not stage:
            return np.asarray(self._estimates.initial[call.key], dtype=np.float64)
        return np.asarray(self._estimates.refined(np.array([call.key]), np.array([stage]))[0])

    def _stage(self, generated: int) -> int:
        every = self._estimates.refine_every
        return min(generated // every, self._estimates.refinements) if every else 0

    def _refine(self, calls: Sequence[SimCall], generated: IntArray) -> None:
        """Tell the residents of estimates that came with progress."""
        assert self.table.residents is not None
        for call, tokens in zip(calls, generated.tolist(), strict=True):
            stage = self._stage(tokens)
            if stage > call.told:
                call.told = stage
                cdf = self._estimates.refined(np.array([call.key]), np.array([stage]))[0]
                self.table.residents.reestimated(call.attempt, cdf)

    def _report(self, now_ms: float) -> None:
        self._reported_ms = now_ms
        for row, engine in enumerate(self.engines):
            rows, generated = engine.written(now_ms)
            states = np.bincount(engine.table.state[rows], minlength=RunState.EVICTED + 1)
            self.table.costs(row, engine.fitter.model)
            calls = [engine.table.at(r) for r in rows.tolist()]
            self.table.progressed(row, [call.attempt for call in calls], generated.tolist(), now_ms)
            if self._refreshed and self._estimates.refine_every:
                self._refine(calls, generated)
            load = {
                "queued": float(states[RunState.QUEUED]),
                "running": float(states[RunState.RUNNING]),
                "paused": float(states[RunState.PAUSED] + states[RunState.EVICTED]),
                "queued_prefill_tokens": float(engine.prefill_owed()),
                "expected_output_tokens": float(engine.table.lengths.mean_left(rows, generated).sum()),
                "kv_used_tokens": float(engine.kv_used),
            }
            self.table.report(row, load, now_ms)
