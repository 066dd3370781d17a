"""Fair shares of an engine among tenants: an account per tenant, in tokens of service, as in deficit round robin.

While several tenants have requests, each is owed its share of what the engine does, and pays for what it gets. A policy
reads the balance as `BatchView.tenant_lag_tokens`. Live scheduler and simulator keep the accounts by the same code.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from paceline_core.batch.view import BoolArray, FloatArray, IntArray

BOUND_TOKENS: Final = 50_000.0
"""Farthest that an account goes from 0: who was served too much or too little is not held to it for long."""

Tenants = NDArray[np.int32] | IntArray


def settled(
    lag_tokens: FloatArray,
    served_tokens: FloatArray,
    present: BoolArray,
    weight: FloatArray,
    bound_tokens: float = BOUND_TOKENS,
) -> FloatArray:
    """[T] The accounts after the engine served `served_tokens` [T], owed by `weight` [T] to the tenants `present` [T].

    Accounts of absent tenants are empty: who asks for nothing saves nothing up, and owes nothing.
    """
    shares = np.where(present, weight, 0.0)
    total = float(shares.sum())
    owed = shares * (float(served_tokens.sum()) / total) if total > 0 else shares
    lag = np.clip(lag_tokens + owed - served_tokens, -bound_tokens, bound_tokens)
    return np.asarray(np.where(present, lag, 0.0))


class TenantAccounts:
    """The accounts of one engine, by the small numbers that stand for tenants (`LiveTable.tenant`).

    A number may be given to another tenant once nobody uses it: `open` tells so, unless `serve` was told meanwhile that
    nobody of it was present.
    """

    def __init__(
        self, weights: Mapping[int, float] | None = None, bound_tokens: float = BOUND_TOKENS
    ) -> None:
        self._weights = dict(weights or {})
        """Share of a tenant relative to others; 1 where nothing is said."""
        self._bound = bound_tokens
        self._lag = np.zeros(16)

    def open(self, tenant: int, weight: float = 1.0) -> None:
        """The number `tenant` stands for somebody new, who is owed by `weight`: an empty account."""
        self._weights[tenant] = weight
        if tenant < len(self._lag):
            self._lag[tenant] = 0.0

    def serve(self, present: Tenants, tenants: Tenants, tokens: IntArray | FloatArray) -> None:
        """The engine worked `tokens` [M] for requests of `tenants` [M]; live requests are of `present` [N]."""
        size = 1 + max(len(self._lag) - 1, *(int(t.max(initial=0)) for t in (present, tenants)))
        weight = np.ones(size)
        for tenant, share in self._weights.items():
            if tenant < size:
                weight[tenant] = share
        self._lag = settled(
            np.concatenate([self._lag, np.zeros(size - len(self._lag))]),
            np.bincount(tenants, weights=tokens, minlength=size).astype(np.float64),
            np.bincount(present, minlength=size) > 0,
            weight,
            self._bound,
        )

    def lag_tokens(self, tenants: Tenants) -> FloatArray:
        """[N] How far each of `tenants` [N] is behind its share; negative: ahead of it."""
        known = np.minimum(tenants, len(self._lag) - 1)
        return np.asarray(np.where(tenants < len(self._lag), self._lag[known], 0.0))
