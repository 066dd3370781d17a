"""The step-time model of an engine (algorithms C), and how it is fitted while the engine runs.

    decode  = a + b*B + c*sum(context)        B = 1: a1 + c*context
    prefill = p0 + d*n + e*n*(context + n/2)

Milliseconds and tokens throughout.
"""

from dataclasses import dataclass

from paceline_core.rls import BoundedRls


@dataclass(frozen=True, slots=True)
class EngineModel:
    """Coefficients, as in `paceline.common.v1.EngineModel`. All zero: nothing is known."""

    a_ms: float = 0.0
    b_ms: float = 0.0
    c_ms: float = 0.0
    a1_ms: float = 0.0
    p0_ms: float = 0.0
    d_ms: float = 0.0
    e_ms: float = 0.0
    decode_samples: int = 0
    prefill_samples: int = 0

    @property
    def known(self) -> bool:
        """True when decode steps have a time at all."""
        return self.a_ms + self.b_ms + self.a1_ms > 0.0

    def decode_ms(self, batch: float, context_tokens: float) -> float:
        """A decode step of `batch` sequences whose contexts sum to `context_tokens`; 0 for an empty batch."""
        if batch <= 0:
            return 0.0
        if batch <= 1 and self.a1_ms > 0.0:
            return self.a1_ms + self.c_ms * context_tokens
        return self.a_ms + self.b_ms * batch + self.c_ms * context_tokens

    def prefill_ms(self, tokens: float, context_tokens: float = 0.0) -> float:
        """One prefill call of `tokens` after `context_tokens`; 0 for no tokens."""
        if tokens <= 0:
            return 0.0
        return self.p0_ms + self.d_ms * tokens + self.e_ms * tokens * (context_tokens + tokens / 2)

    def step_ms(
        self,
        batch: float,
        context_tokens: float,
        prefill_tokens: float = 0.0,
        prefill_context_tokens: float = 0.0,
    ) -> float:
        """A whole step: one decode call and one prefill call."""
        return self.decode_ms(batch, context_tokens) + self.prefill_ms(prefill_tokens, prefill_context_tokens)

    def prefill_token_ms(self, chunk_tokens: float) -> float:
        """Time per prompt token when prompts come in chunks of `chunk_tokens`, at short contexts."""
        return self.prefill_ms(chunk_tokens) / chunk_tokens if chunk_tokens > 0 else 0.0


_DECODE_SPREAD = (100.0, 20.0, 0.01, 100.0)
_DECODE_UPPER = (10_000.0, 1_000.0, 1.0, 10_000.0)
_PREFILL_SPREAD = (100.0, 5.0, 0.005)
_PREFILL_UPPER = (10_000.0, 1_000.0, 1.0)
_PROFILE_SPREAD = 0.3
"""How far off a profile may be, as a share of each coefficient (and of the blank spread, for coefficients at 0)."""


class EngineModelFitter:
    """Fits an `EngineModel` from step reports, from nothing or from a profile."""

    def __init__(self, profile: EngineModel | None = None) -> None:
        decode_spread, prefill_spread = list(_DECODE_SPREAD), list(_PREFILL_SPREAD)
        start, prefill_start = [0.0] * 4, [0.0] * 3
        if profile is not None:
            start = [profile.a_ms, profile.b_ms, profile.c_ms, profile.a1_ms or profile.a_ms + profile.b_ms]
            prefill_start = [profile.p0_ms, profile.d_ms, profile.e_ms]
            decode_spread = _around(start, decode_spread)
            prefill_spread = _around(prefill_start, prefill_spread)
        self._decode = BoundedRls(start, decode_spread, _DECODE_UPPER)
        self._prefill = BoundedRls(prefill_start, prefill_spread, _PREFILL_UPPER)
        self._has_profile = profile is not None
        self._single = 0
        self._many = 0
        self._model: EngineModel | None = profile

    def observe_decode(self, batch: int, context_tokens: int, decode_ms: float) -> None:
        """One decode call: sequences, sum of their contexts, duration."""
        if batch <= 0 or decode_ms <= 0:
            return
        if batch == 1:
            self._single += 1
            self._decode.update((0.0, 0.0, context_tokens, 1.0), decode_ms)
        else:
            self._many += 1
            self._decode.update((1.0, batch, context_tokens, 0.0), decode_ms)
        self._model = None

    def observe_prefill(self, tokens: int, context_tokens: int, prefill_ms: float) -> None:
        """One prefill call: its tokens, the context before it, duration."""
        if tokens <= 0 or prefill_ms <= 0:
            return
        self._prefill.update((1.0, tokens, tokens * (context_tokens + tokens / 2)), prefill_ms)
        self._model = None

    @property
    def model(self) -> EngineModel:
        """The model now. While only single sequences were seen, a batch is taken to cost what one sequence does."""
        if self._model is None:
            a, b, c, a1 = (float(value) for value in self._decode.theta)
            if not self._has_profile and not self._many:
                a, b = a1, 0.0
            if not self._has_profile and not self._single:
                a1 = 0.0
            p0, d, e = (float(value) for value in self._prefill.theta)
            self._model = EngineModel(a, b, c, a1, p0, d, e, self._decode.samples, self._prefill.samples)
        return self._model


def _around(start: list[float], blank: list[float]) -> list[float]:
    return [_PROFILE_SPREAD * (value or wide) for value, wide in zip(start, blank, strict=True)]
