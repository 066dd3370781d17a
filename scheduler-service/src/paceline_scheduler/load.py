"""The load report: what a placement policy needs to price a new request here."""

import numpy as np

from paceline.common.v1 import slo_pb2
from paceline.scheduler.v1 import scheduler_pb2
from paceline_core.batch.laxity import p_meet
from paceline_core.batch.state import RunState
from paceline_core.headroom import HORIZONS_MS, headroom
from paceline_scheduler.state import SchedulerState
from paceline_scheduler.wire import model_to

_RATE_MEMORY_MS = 2_000.0
_IDLE_REFRESH_MS = 1_000.0
_AT_RISK = 0.5
_SAFE_AGAIN = 0.8


class LoadReporter:
    """Makes load reports, and tells which attempts have come to be at risk."""

    def __init__(self, state: SchedulerState) -> None:
        self._state = state
        self._rate = 0.0
        self._rate_ms = state.now_ms()
        self._rate_tokens = 0
        self._idle = scheduler_pb2.Load()
        self._idle_ms = 0.0
        self._at_rest: tuple[bool, bool, bool, int] | None = None

    def load(self) -> scheduler_pb2.Load:
        """Load now. That of an idle engine is made again every second only: there may be many of them in a process."""
        state = self._state
        now = state.now_ms()
        engine = state.engine
        at_rest = (engine.attached, engine.lost, state.draining, state.tokens)
        idle = not state.table.live
        if idle and at_rest == self._at_rest and now - self._idle_ms < _IDLE_REFRESH_MS:
            load = scheduler_pb2.Load()
            load.CopyFrom(self._idle)
            if engine.last_step_ms:
                load.age_ms = now - engine.last_step_ms
            return load
        load = self._measure(now)
        self._at_rest = at_rest if idle else None
        self._idle, self._idle_ms = load, now
        return load

    def _measure(self, now: float) -> scheduler_pb2.Load:
        state = self._state
        engine, table = state.engine, state.table
        view = table.view(engine.capacity, state.fitter.model)
        remaining = table.remaining_mean(view.row_id)
        states = np.bincount(view.state, minlength=RunState.EVICTED + 1)
        curves = headroom(view, now, remaining)
        load = scheduler_pb2.Load(
            identity=engine.identity,
            age_ms=now - engine.last_step_ms if engine.last_step_ms else 0.0,
            queued=int(states[RunState.QUEUED]),
            running=int(states[RunState.RUNNING]),
            paused=int(states[RunState.PAUSED]),
            evicted=int(states[RunState.EVICTED]),
            queued_prefill_tokens=int(view.prefill_left().sum()),
            expected_output_tokens=float(remaining.sum()),
            kv_used_tokens=max(int(view.kv_tokens.sum()), engine.kv.used_tokens if len(view) else 0),
            kv_capacity_tokens=engine.capabilities.kv_capacity_tokens,
            max_batch=engine.capacity.max_batch,
            model=model_to(state.fitter.model),
            tokens_per_s=self._tokens_per_s(now),
            draining=state.draining,
            engine_up=engine.attached,
        )
        load.headroom.horizon_ms.extend(HORIZONS_MS.tolist())
        load.headroom.free_decode_tokens.extend(curves.free_decode_tokens.tolist())
        load.headroom.free_prefill_tokens.extend(curves.free_prefill_tokens.tolist())
        load.headroom.free_kv_tokens.extend(curves.free_kv_tokens.tolist())
        load.headroom.next_step_ms = curves.next_step_ms
        load.headroom.start_delay_ms = curves.start_delay_ms
        for slo_class, window in state.tracker.attainment(now).items():
            load.attainment.add(
                slo_class=slo_pb2.SloClass.ValueType(slo_class), ended=window.ended, attained=window.attained
            )
        return load

    def tell_risks(self) -> None:
        """Tell owners of attempts whose objective has come to be at risk; once until it is safe again."""
        state = self._state
        table = state.table
        if not table.live or not state.fitter.model.known:
            return
        # Requests that have run: what waits for its first run is priced by its place in the queue, above.
        rows = np.flatnonzero(table.alive & table.started)
        view = table.view(state.engine.capacity, state.fitter.model, rows)
        chance, laxity = p_meet(view, state.now_ms())
        known = table.at_risk[view.row_id]
        # Who waits for credit is late by its client's doing.
        for i in np.flatnonzero((chance < _AT_RISK) & ~known & view.runnable()).tolist():
            attempt = table.at(int(view.row_id[i]))
            session = state.sessions.get(attempt.router_id)
            if session is not None:
                session.risk(
                    scheduler_pb2.Risk(
                        attempt_key=attempt.key, p_meet=float(chance[i]), laxity_ms=float(laxity[i])
                    )
                )
        table.at_risk[view.row_id] = chance < np.where(known, _SAFE_AGAIN, _AT_RISK)

    def _tokens_per_s(self, now_ms: float) -> float:
        """Output rate over about two seconds."""
        passed = now_ms - self._rate_ms
        if passed >= 50.0:
            rate = (self._state.tokens - self._rate_tokens) / passed * 1000
            share = 1.0 - float(np.exp(-passed / _RATE_MEMORY_MS))
            self._rate += share * (rate - self._rate)
            self._rate_ms, self._rate_tokens = now_ms, self._state.tokens
        return self._rate
