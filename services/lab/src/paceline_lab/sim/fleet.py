"""The engines of a simulation as a placement policy sees them, and the choice among them."""

from collections.abc import Sequence

import numpy as np

from paceline_core.batch.state import RunState
from paceline_core.placement.policy import PlacementPolicy
from paceline_core.placement.view import FleetView, Floats, RequestView, StepCosts
from paceline_lab.sim.call import SimCall
from paceline_lab.sim.engine import SimEngine
from paceline_lab.sim.estimates import Estimates


class Fleet:
    """Places calls. Reports are taken to be fresh: what an engine is told of, the next placement knows."""

    def __init__(
        self, engines: Sequence[SimEngine], policy: PlacementPolicy | None, estimates: Estimates
    ) -> None:
        """`policy` is needed where there is more than one engine."""
        if policy is None and len(engines) > 1:
            raise ValueError("more than one engine needs a placement policy")
        self.engines = engines
        self._policy = policy
        self._estimates = estimates
        count = len(engines)
        self._ids = tuple(f"sim-{engine.number}" for engine in engines)
        self._incarnations = tuple(range(1, count + 1))
        self._models = ("sim",) * count
        self._yes, self._no = np.ones(count, dtype=bool), np.zeros(count, dtype=bool)
        self._zero = np.zeros(count)
        self._kv_capacity = self._floats([engine.capacity.kv_tokens for engine in engines])
        self._max_batch = self._floats([engine.capacity.max_batch for engine in engines])
        self._max_context = self._floats([engine.capacity.max_context_tokens for engine in engines])
        fastest = min(engine.fitter.model.decode_ms(1, 0.0) for engine in engines)
        self._speed = self._floats([engine.fitter.model.decode_ms(1, 0.0) / fastest for engine in engines])

    def choose(self, call: SimCall, now_ms: float) -> SimEngine | None:
        """The engine for a call; None when it fits no engine."""
        need = call.call.prompt_tokens + call.call.output_tokens
        if not any(need < engine.capacity.max_context_tokens for engine in self.engines):
            return None
        if self._policy is None:
            return self.engines[0]
        request = RequestView(
            model="",
            prompt_tokens=call.call.prompt_tokens,
            max_tokens=int(self._estimates.limit[call.key]),
            length_cdf=self._estimates.initial[call.key].astype(np.float64),
            slo=call.slo,
            tenant=call.tenant,
        )
        placed = self._policy.place(request, self._view(now_ms), now_ms)
        return self.engines[placed.engine] if placed.found else None

    def _view(self, now_ms: float) -> FleetView:
        engines = self.engines
        states = np.stack([engine.states() for engine in engines]).astype(np.float64)
        models = [engine.fitter.model for engine in engines]
        costs = StepCosts(
            *(
                self._floats([getattr(model, name) for model in models])
                for name in ("a_ms", "b_ms", "c_ms", "a1_ms", "p0_ms", "d_ms", "e_ms")
            )
        )
        return FleetView(
            engine_ids=self._ids,
            incarnations=self._incarnations,
            models=self._models,
            up=self._yes,
            draining=self._no,
            stale=self._no,
            load_age_ms=self._zero,
            queued=states[:, RunState.QUEUED],
            running=states[:, RunState.RUNNING],
            paused=states[:, RunState.PAUSED] + states[:, RunState.EVICTED],
            pending_requests=self._zero,
            pending_prefill_tokens=self._zero,
            pending_output_tokens=self._zero,
            queued_prefill_tokens=self._floats([engine.prefill_owed() for engine in engines]),
            expected_output_tokens=self._floats([engine.output_owed(now_ms) for engine in engines]),
            kv_used_tokens=self._floats([engine.kv_used for engine in engines]),
            kv_capacity_tokens=self._kv_capacity,
            max_batch=self._max_batch,
            max_context_tokens=self._max_context,
            speed_factor=self._speed,
            tokens_per_s=self._zero,
            costs=costs,
        )

    @staticmethod
    def _floats(values: Sequence[float]) -> Floats:
        return np.asarray(values, dtype=np.float64)
