"""The engines of a simulation as a placement policy sees them, and the choice among them."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from paceline_core import lengths
from paceline_core.batch.policy import EstimateUse
from paceline_core.batch.state import RunState
from paceline_core.placement.demand import DemandWindow
from paceline_core.placement.fleet_table import EngineLimits, FleetTable
from paceline_core.placement.margin import Margin
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
        self, engines: Sequence[SimEngine], policy: PlacementPolicy | None, estimates: Estimates
    ) -> None:
        """`policy` is needed where there is more than one engine."""
        if policy is None and len(engines) > 1:
            raise ValueError("more than one engine needs a placement policy")
        self.engines = engines
        self._policy = policy
        self._estimates = estimates
        self._oracle = policy is not None and policy.estimates is EstimateUse.TRUE
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
        self.table.placed(placed.engine, call.key, request, now_ms)
        self.table.seen(call.key)
        return self.engines[placed.engine]

    def ended(self, call: SimCall, now_ms: float) -> None:
        """A call that was placed is over, well or not."""
        outcome = call.outcome
        if outcome is not None and np.isfinite(outcome.first_token_ms):
            self.table.first_token(call.key, call.released_ms + outcome.first_token_ms)
        self.table.ended(call.key, now_ms, 0 if outcome is None else outcome.tokens)

    def _request(self, call: SimCall, now_ms: float, call_due_ms: float) -> RequestView:
        oracle = self._oracle
        cdf = _BEYOND if oracle else self._estimates.initial[call.key].astype(np.float64)
        limit = call.call.output_tokens if oracle else int(self._estimates.limit[call.key])
        task = call.slo.slo_class is SloClass.TASK
        return RequestView(
            model=_MODEL,
            prompt_tokens=call.call.prompt_tokens,
            max_tokens=limit,
            length_cdf=cdf,
            slo=call.slo,
            # The budget of a task counts from its first call.
            elapsed_ms=now_ms - call.job.job.arrival_ms if task else 0.0,
            budget_ms=call_due_ms - call.job.job.arrival_ms if task else float("inf"),
            tenant=call.tenant,
            request_id=str(call.key),
        )

    def _report(self, now_ms: float) -> None:
        self._reported_ms = now_ms
        for row, engine in enumerate(self.engines):
            rows, generated = engine.written(now_ms)
            states = np.bincount(engine.table.state[rows], minlength=RunState.EVICTED + 1)
            self.table.costs(row, engine.fitter.model)
            keys = (engine.table.at(r).key for r in rows.tolist())
            self.table.progressed(row, keys, generated.tolist(), now_ms)
            load = {
                "queued": float(states[RunState.QUEUED]),
                "running": float(states[RunState.RUNNING]),
                "paused": float(states[RunState.PAUSED] + states[RunState.EVICTED]),
                "queued_prefill_tokens": float(engine.prefill_owed()),
                "expected_output_tokens": float(engine.table.lengths.mean_left(rows, generated).sum()),
                "kv_used_tokens": float(engine.kv_used),
            }
            self.table.report(row, load, now_ms)
