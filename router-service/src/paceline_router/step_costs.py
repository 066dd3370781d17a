"""Step-time coefficients that placement reads: an engine with few samples borrows from engines of its kind.

A fit from a few steps is noise, and placement that compares noise with a prior sends a whole burst to one of
two equal engines. So each coefficient is the engine's own, weighted by its samples, and its peers', weighted
by `BORROWED_SAMPLES`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from paceline.common.v1 import engine_pb2

DECODE: Final = ("a_ms", "b_ms", "c_ms", "a1_ms")
PREFILL: Final = ("p0_ms", "d_ms", "e_ms")
COST_COLUMNS: Final = (*DECODE, *PREFILL)

# What an engine is taken to cost before any of its kind has reported a step: the order of magnitude of a
# small model on a CPU. Only the ratio between engines matters for placement.
_PRIOR: Final = np.array([8.0, 1.0, 0.0, 9.0, 1.0, 0.5, 0.0])
BORROWED_SAMPLES: Final = 200.0
_MOST_SAMPLES: Final = 2000.0

Floats = NDArray[np.float64]


@dataclass(slots=True)
class _Fit:
    """One engine's fit at full speed, float64[7], and how many samples each coefficient stands on,
    float64[7]."""

    coefficients: Floats = field(default_factory=lambda: np.zeros(len(COST_COLUMNS)))
    samples: Floats = field(default_factory=lambda: np.zeros(len(COST_COLUMNS)))


class StepCostPool:
    """Fits of the whole fleet by kind of engine. Sums are kept, so that a report costs the same in any fleet."""

    def __init__(self) -> None:
        self._fits: dict[str, tuple[str, _Fit]] = {}
        self._sums: dict[str, _Fit] = {}

    def take(
        self, engine_id: str, capabilities: engine_pb2.EngineCapabilities, model: engine_pb2.EngineModel
    ) -> Iterator[tuple[str, float]]:
        """A new fit of one engine; its coefficients for placement by name, milliseconds at its declared
        speed."""
        kind = "/".join(
            (capabilities.backend, capabilities.build, capabilities.device, capabilities.model_hash)
        )
        factor = capabilities.speed_factor or 1.0
        fit = _Fit(
            np.array([getattr(model, name) for name in COST_COLUMNS]) / factor,
            np.minimum(
                np.array(
                    [model.decode_samples] * len(DECODE) + [model.prefill_samples] * len(PREFILL), float
                ),
                _MOST_SAMPLES,
            ),
        )
        if fit.coefficients[3] == 0:  # "no term of its own": a + b
            fit.coefficients[3] = fit.coefficients[0] + fit.coefficients[1]
        self._add(*self._fits.pop(engine_id, (kind, _Fit())), sign=-1.0)
        self._fits[engine_id] = (kind, fit)
        self._add(kind, fit, sign=1.0)
        pool = self._sums[kind]
        peers = np.where(pool.samples > 0.5, pool.coefficients / np.maximum(pool.samples, 1.0), _PRIOR)
        own: Floats = (fit.samples * fit.coefficients + BORROWED_SAMPLES * peers) / (
            fit.samples + BORROWED_SAMPLES
        )
        return zip(COST_COLUMNS, (own * factor).tolist(), strict=True)

    def _add(self, kind: str, fit: _Fit, *, sign: float) -> None:
        total = self._sums.setdefault(kind, _Fit())
        total.coefficients += sign * fit.samples * fit.coefficients
        total.samples += sign * fit.samples
