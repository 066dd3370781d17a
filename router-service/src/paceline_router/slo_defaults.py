"""Objectives and limits of requests that declare none: multiples of what the fleet measures when idle."""

from collections.abc import Iterable
from dataclasses import replace

from paceline_core.engine_model import EngineModel
from paceline_core.slo import Slo, SloClass
from paceline_router.config import SloDefaults
from paceline_router.engine import Engine


def default_slo(
    defaults: SloDefaults,
    engines: Iterable[Engine],
    *,
    streaming: bool,
    prompt_tokens: int,
    p90_tokens: float,
) -> Slo:
    """Streaming: latency class; else deadline class. From the fastest engine of the model; floors when none
    is measured."""
    measured = [model for model in map(_model, engines) if model.known]
    step_ms = min((m.decode_ms(1, prompt_tokens) for m in measured), default=0.0)
    first_ms = min(
        (m.prefill_ms(prompt_tokens) + m.decode_ms(1, prompt_tokens) for m in measured), default=0.0
    )
    if streaming:
        return Slo(
            SloClass.LATENCY,
            ttft_ms=max(defaults.ttft_floor_ms, defaults.ttft_factor * first_ms),
            tbt_ms=max(defaults.tbt_floor_ms, defaults.tbt_factor * step_ms),
        )
    whole_ms = first_ms + step_ms * p90_tokens
    return Slo(SloClass.DEADLINE, e2e_ms=max(defaults.e2e_floor_ms, defaults.e2e_factor * whole_ms))


def with_budget(slo: Slo, e2e_ms: float) -> Slo:
    """A task objective whose budget was found."""
    return replace(slo, e2e_ms=e2e_ms)


def _model(engine: Engine) -> EngineModel:
    m = engine.load.model
    return EngineModel(m.a_ms, m.b_ms, m.c_ms, m.a1_ms, m.p0_ms, m.d_ms, m.e_ms)
