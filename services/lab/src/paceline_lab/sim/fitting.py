"""What a simulated engine's step reports teach the engine model that policies see. The truth stays hidden."""

from typing import Final

from paceline_core.engine_model import EngineModelFitter
from paceline_core.engines.roofline import StepTimes

_ALWAYS_UNTIL: Final = 256
_EVERY: Final = 8
_LEAST_SHARE: Final = 0.25
"""Prompt chunks that cost a smaller share of an empty decode step than this hide behind the reading of weights and KV:
what they leave over is rounding, and a fit by relative errors would come to believe that prefill is free."""


class Fitting:
    """Feeds the fitter the first step after a plan, as a live scheduler thins out its reports."""

    def __init__(self, fitter: EngineModelFitter, times: StepTimes) -> None:
        self._fitter = fitter
        self._times = times
        self._seen = 0

    def observe(
        self,
        step_ms: float,
        batch: int,
        context_tokens: float,
        prefill_tokens: int,
        products: float,
        calls: int,
    ) -> None:
        """One step: `batch` sequences decoded over `context_tokens`, prompt chunks in `calls` pieces.

        An engine that decodes and prefills apart reports both times. One that does both in one pass has one time to
        report: prefill is what the model's decode step leaves over (without decodes: its constant, the weights).
        """
        self._seen += 1
        if self._seen > _ALWAYS_UNTIL and self._seen % _EVERY:
            return
        fitter = self._fitter
        if not prefill_tokens:
            fitter.observe_decode(batch, int(context_tokens), step_ms)
            return
        before = max(0, round((products / prefill_tokens) - prefill_tokens / calls / 2))
        if self._times.linear is not None:
            decode_ms = self._times.step_ms(batch, context_tokens)
            fitter.observe_decode(batch, int(context_tokens), decode_ms)
            fitter.observe_prefill(prefill_tokens // calls, before, (step_ms - decode_ms) / calls)
            return
        model = fitter.model
        rest_ms = step_ms - (model.decode_ms(batch, context_tokens) if batch else model.a_ms)
        if rest_ms >= _LEAST_SHARE * model.a_ms:
            fitter.observe_prefill(prefill_tokens, before, rest_ms)
