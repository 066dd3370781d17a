"""What a simulated engine's step reports teach the engine model that policies see. The truth stays hidden."""

from typing import Final

from paceline_core.engine_model import EngineModelFitter

_ALWAYS_UNTIL: Final = 256
_EVERY: Final = 8
_LEAST_SHARE: Final = 0.02


class Fitting:
    """Feeds the fitter the first step after a plan, as a live scheduler thins out its reports."""

    def __init__(self, fitter: EngineModelFitter) -> None:
        self._fitter = fitter
        self._seen = 0

    def observe(
        self, step_ms: float, batch: int, context_tokens: float, prefill_tokens: int, products: float
    ) -> None:
        """One step. Where decode rode along (one pass, one time), prefill is what the model's decode time
        leaves over."""
        self._seen += 1
        if self._seen > _ALWAYS_UNTIL and self._seen % _EVERY:
            return
        fitter = self._fitter
        if not prefill_tokens:
            fitter.observe_decode(batch, int(context_tokens), step_ms)
            return
        before = max(0, round(products / prefill_tokens - prefill_tokens / 2))
        rest = step_ms - fitter.model.decode_ms(batch, context_tokens) if batch else step_ms
        fitter.observe_prefill(prefill_tokens, before, max(rest, _LEAST_SHARE * step_ms))
