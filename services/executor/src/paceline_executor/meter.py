"""Metrics of one executor. Summed up per report batch, so that a step costs no more than a few additions."""

from collections import Counter
from collections.abc import Iterable

from paceline_executor.contract import Engine, Event, StepReport
from paceline_runtime.telemetry.metrics import Instruments
from paceline_runtime.telemetry.names import (
    DEVIATIONS,
    ENGINE_TOKENS,
    KV_CAPACITY_TOKENS,
    KV_TOKENS,
    STEP_BATCH,
    STEP_DURATION,
)


class Meter:
    """Counts what passes through the control stream. Simulated fleets go without one."""

    def __init__(self, instruments: Instruments, engine: Engine, engine_id: str) -> None:
        self._instruments = instruments
        self._labels = {"engine": engine_id}
        instruments.observe(KV_TOKENS, lambda: [(engine.kv_use().used_tokens, self._labels)])
        capacity = engine.capabilities.kv_capacity_tokens
        instruments.observe(KV_CAPACITY_TOKENS, lambda: [(capacity, self._labels)])

    def count(self, events: Iterable[Event]) -> None:
        """Take in what one message carries."""
        decoded = prefilled = 0
        deviations: Counter[str] = Counter()
        for event in events:
            if not isinstance(event, StepReport):
                continue
            decoded += event.decode_batch
            prefilled += sum(call.tokens for call in event.prefill_calls)
            deviations.update(row.reason.value for row in event.deviations)
            if event.merged_reports == 1 and event.step_ms > 0:
                self._instruments.record(STEP_DURATION, event.step_ms / 1e3, **self._labels)
                if event.decode_batch:
                    self._instruments.record(STEP_BATCH, event.decode_batch, **self._labels)
        for phase, tokens in (("decode", decoded), ("prefill", prefilled)):
            if tokens:
                self._instruments.add(ENGINE_TOKENS, tokens, phase=phase, **self._labels)
        for reason, count in deviations.items():
            self._instruments.add(DEVIATIONS, count, reason=reason, **self._labels)
