"""True step times of a simulated engine (evaluation.md, engine speeds), for scalars and for arrays alike.

    step = o + max((2P + KV bytes of the sequences in the step) / W, tokens * 2P/F) + attention FLOPs / F

with P in parameters (2P bytes in bf16) and tokens = decodes + prefill tokens. A profile without a roofline takes its
linear model for the truth: decode + prefill. Milliseconds and tokens; a decode's context counts the token it
processes.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from paceline_core.engines.profile import Profile


@dataclass(frozen=True, slots=True)
class StepTimes:
    """The lines of a profile in milliseconds. Scalars in, floats out: the simulator's inner loop."""

    base_ms: float
    """Every step, o."""
    weights_ms: float
    """Reading the weights."""
    kv_ms: float
    """Reading one token of KV."""
    token_ms: float
    """Products of one token."""
    attention_ms: float
    """One token's attention to one other."""
    linear: Profile | None = None
    """The profile itself where it has no roofline: the five lines above are then unused."""

    def step_ms(
        self,
        decode_batch: float,
        decode_context_sum: float,
        prefill_tokens: float = 0.0,
        prefill_context_products: float = 0.0,
        prefill_context_sum: float = 0.0,
        prefill_calls: int = 1,
    ) -> float:
        """One step; 0 for an empty one.

        `prefill_context_products` = sum over chunks of n * (context before it + n/2); `prefill_context_sum` = sum of
        those contexts (their KV is read once); `prefill_calls` chunks matter to a linear profile alone.
        """
        if decode_batch <= 0 and prefill_tokens <= 0:
            return 0.0
        if self.linear is not None:
            decode = _linear_decode_ms(self.linear, decode_batch, decode_context_sum)
            if prefill_tokens <= 0:
                return decode
            fixed = self.linear.p0_ms * prefill_calls
            return (
                decode
                + fixed
                + self.linear.d_ms * prefill_tokens
                + self.linear.e_ms * prefill_context_products
            )
        memory = self.weights_ms + self.kv_ms * (decode_context_sum + prefill_context_sum)
        compute = self.token_ms * (decode_batch + prefill_tokens)
        attention = self.attention_ms * (decode_context_sum + prefill_context_products)
        return self.base_ms + (memory if memory > compute else compute) + attention

    def decode_run_ms(self, batch: int, context_sum: float, steps: int) -> float:
        """The sum of `steps` pure decode steps, the first over `context_sum`, each next one over `batch` more.

        The memory line grows by the same amount each step and the compute line stands, so the sum is two
        arithmetic series: the steps before the lines cross, and those after.
        """
        if batch <= 0 or steps <= 0:
            return 0.0
        contexts = _series(context_sum, batch, steps)
        if self.linear is not None:
            return steps * _linear_decode_ms(self.linear, batch, 0.0) + self.linear.c_ms * contexts
        compute = self.token_ms * batch
        under = self._steps_under(batch, context_sum, compute)
        under = min(steps, under)
        over = steps - under
        memory = over * self.weights_ms + self.kv_ms * _series(context_sum + batch * under, batch, over)
        return steps * self.base_ms + under * compute + memory + self.attention_ms * contexts

    def decode_steps_within(self, batch: int, context_sum: float, budget_ms: float, limit: int) -> int:
        """The most steps, up to `limit`, whose `decode_run_ms` is at most `budget_ms`; by bisection."""
        if batch <= 0 or limit <= 0 or self.decode_run_ms(batch, context_sum, 1) > budget_ms:
            return 0
        low, high = 1, limit + 1
        while high - low > 1:
            middle = (low + high) // 2
            if self.decode_run_ms(batch, context_sum, middle) <= budget_ms:
                low = middle
            else:
                high = middle
        return low

    def _steps_under(self, batch: int, context_sum: float, compute_ms: float) -> int:
        """Steps from the first on whose memory line is below the compute line."""
        slack_ms = compute_ms - self.weights_ms - self.kv_ms * context_sum
        if slack_ms <= 0:
            return 0
        growth_ms = self.kv_ms * batch
        return math.ceil(slack_ms / growth_ms) if growth_ms > 0 else 1 << 62


def step_times(profile: Profile) -> StepTimes:
    """The lines of a profile. Keep it: making it costs more than a step."""
    roofline = profile.roofline
    if roofline is None:
        return StepTimes(0.0, 0.0, 0.0, 0.0, 0.0, profile)
    f_ms, w_ms = roofline.flops_per_s / 1e3, roofline.bytes_per_s / 1e3
    return StepTimes(
        base_ms=roofline.overhead_ms,
        weights_ms=roofline.parameters * roofline.weight_bytes / w_ms,
        kv_ms=profile.kv_bytes_per_token / w_ms,
        token_ms=2.0 * roofline.parameters / f_ms,
        attention_ms=roofline.attention_flops() / f_ms,
    )


def step_ms(
    profile: Profile,
    decode_batch: Any,
    decode_context_sum: Any,
    prefill_tokens: Any = 0.0,
    prefill_context_products: Any = 0.0,
    prefill_context_sum: Any = 0.0,
) -> Any:
    """`StepTimes.step_ms` for arrays that broadcast together (one prefill call a step); float64 of their shape."""
    times = step_times(profile)
    batch, context, tokens, products, before = np.broadcast_arrays(
        *(
            np.asarray(column, float)
            for column in (
                decode_batch,
                decode_context_sum,
                prefill_tokens,
                prefill_context_products,
                prefill_context_sum,
            )
        )
    )
    if times.linear is not None:
        line = times.linear
        single = line.a1_ms if line.a1_ms > 0 else line.a_ms + line.b_ms
        fixed = np.where(batch <= 1, single, line.a_ms + line.b_ms * batch)
        decode = np.where(batch > 0, fixed + line.c_ms * context, 0.0)
        prefill = line.p0_ms + line.d_ms * tokens + line.e_ms * products
        return decode + np.where(tokens > 0, prefill, 0.0)
    memory = times.weights_ms + times.kv_ms * (context + before)
    compute = times.token_ms * (batch + tokens)
    full = times.base_ms + np.maximum(memory, compute) + times.attention_ms * (context + products)
    return np.where((batch > 0) | (tokens > 0), full, 0.0)


def _linear_decode_ms(line: Profile, batch: float, context_sum: float) -> float:
    if batch <= 0:
        return 0.0
    if batch <= 1 and line.a1_ms > 0:
        return line.a1_ms + line.c_ms * context_sum
    return line.a_ms + line.b_ms * batch + line.c_ms * context_sum


def _series(first: float, growth: float, terms: int) -> float:
    """first + (first + growth) + ..., `terms` of them."""
    return terms * first + growth * (terms * (terms - 1) / 2)
