"""How good the estimates are, as metrics: what is read by the exporter's thread is copied on the event loop first."""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Self

from paceline_predictor.model import LengthModel, ModelReport
from paceline_runtime.telemetry.metrics import Instruments
from paceline_runtime.telemetry.names import (
    PREDICTION_BIAS,
    PREDICTION_COVERAGE,
    PREDICTION_COVERAGE_BY_KEY,
    PREDICTION_FALLBACKS,
    PREDICTION_PIT_DRIFT,
    PREDICTOR_MODEL_BYTES,
)

_log = logging.getLogger(__name__)

_EXPORTED_KEYS = 32
"""Models and apps with rows of their own; label values are capped besides."""

Rows = Iterable[tuple[float, Mapping[str, str]]]


class Monitor:
    """Reads a model's report every `interval_s` seconds. Use as `async with`."""

    def __init__(self, model: LengthModel, instruments: Instruments, *, interval_s: float = 2.0) -> None:
        self._model = model
        self._interval_s = interval_s
        self._report = model.report()
        self._task: asyncio.Task[None] | None = None
        instruments.observe(PREDICTION_COVERAGE, lambda: _coverage(self._report))
        instruments.observe(PREDICTION_COVERAGE_BY_KEY, lambda: _coverage_by_key(self._report))
        instruments.observe(PREDICTION_BIAS, lambda: _by_model(self._report, "bias_log"))
        instruments.observe(PREDICTION_PIT_DRIFT, lambda: _by_model(self._report, "drift"))
        instruments.observe(PREDICTION_FALLBACKS, lambda: [(float(_fallbacks(self._report)), {})])
        instruments.observe(PREDICTOR_MODEL_BYTES, lambda: _file(self._report))

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="predictor-monitor")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    @property
    def warning(self) -> str:
        """What is wrong with the model, as last read; empty: nothing. For any thread."""
        return self._report.warning

    def refresh(self) -> None:
        """Read the report now; on the event loop. A new warning, and its end, are logged."""
        before, self._report = self._report, self._model.report()
        if self._report.warning != before.warning:
            if self._report.warning:
                _log.warning("length estimates", extra={"problem": self._report.warning})
            else:
                _log.info("length estimates are well again")

    async def _run(self) -> None:
        while True:
            self.refresh()
            await asyncio.sleep(self._interval_s)


def _levels(report: object) -> Iterable[tuple[float, str]]:
    for level in ("p50", "p90", "p95"):
        share = float(getattr(report, f"coverage_{level}"))
        if share > 0:
            yield share, level


def _coverage(report: ModelReport) -> Rows:
    return [(share, {"level": level}) for share, level in _levels(report)]


def _coverage_by_key(report: ModelReport) -> Rows:
    rows = [row for row in report.keys if not row.whole_model][:_EXPORTED_KEYS]
    return [
        (share, {"model": row.model, "app": row.app, "level": level})
        for row in rows
        for share, level in _levels(row)
    ]


def _by_model(report: ModelReport, name: str) -> Rows:
    rows = [row for row in report.keys if row.whole_model][:_EXPORTED_KEYS]
    return [(float(getattr(row, name)), {"model": row.model}) for row in rows]


def _fallbacks(report: ModelReport) -> int:
    return sum(row.fallback for row in report.keys if not row.whole_model)


def _file(report: ModelReport) -> Rows:
    return [(float(report.file_bytes), {"kind": report.kind})]
