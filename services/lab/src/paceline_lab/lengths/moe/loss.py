"""What the experts are trained on: ranked probability score in log space plus a little log-likelihood, per row.

A row may be a survivor (L > g is known: the masses are conditioned before they are scored, as serving does) and may be
right-censored (L > c is all that is known). A censored row's target spreads its mass to the right of c as the model
itself says at this moment, held fixed while the gradient is taken: Efron's self-consistency (Proc. 5th Berkeley Symp.
1967), of which Kaplan-Meier is the case without features. Scoring a censored row only up to c, and others everywhere,
would teach that nothing is longer than c.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paceline_core.lengths import TAIL_MIX, K
from paceline_lab.lengths.moe.bins import EDGE_WEIGHTS, Array, bin_indices, share_above, with_tail

_LEAST = 1e-9


@dataclass(frozen=True, slots=True)
class Targets:
    """What is known of N lengths, in the typical model's tokens (a model's offset is taken out)."""

    lengths: NDArray[np.float64]
    """float64[N]: the length, or the tokens it is known to exceed when censored."""
    censored: NDArray[np.bool_]
    generated: NDArray[np.float64]
    """float64[N]: tokens that were out when the question was asked; 0 at arrival."""

    def __len__(self) -> int:
        return len(self.lengths)

    def rows(self, chosen: NDArray[np.int64]) -> "Targets":
        """The chosen rows, in that order."""
        return Targets(self.lengths[chosen], self.censored[chosen], self.generated[chosen])


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores of N rows and their gradient."""

    rps: NDArray[np.float64]
    """float64[N], nats of log length: against the target CDF, the part that is imputed included."""
    known_rps: NDArray[np.float64]
    """float64[N]: the same over the edges whose outcome is known, to judge by."""
    log_loss: NDArray[np.float64]
    """float64[N]: minus log of the mass of the bin, or of what lies above a censoring."""
    gradient: Array
    """[N, K]: of rps + likelihood * log_loss with respect to the masses that were scored."""


def score(masses: Array, targets: Targets, likelihood: float, goals: Array | None = None) -> Scored:
    """Scores of masses [N, K]. `goals`: target CDFs [N, K]; None: those that follow from the masses (`goal_cdfs`)."""
    dtype = masses.dtype
    ahead = share_above(targets.generated).astype(dtype)
    full = with_tail(masses)
    left = full * ahead
    total = left.sum(axis=1, keepdims=True)
    given = left / total
    if goals is None:
        goals = _goals(given, targets)
    gap = np.cumsum(given, axis=1) - goals
    weights = EDGE_WEIGHTS.astype(dtype)
    by_edge = weights * gap**2
    known_rps = (by_edge * known_edges(targets)).sum(axis=1)
    per_edge = 2 * weights * gap
    slope = np.cumsum(per_edge[:, ::-1], axis=1)[:, ::-1]
    seen = _seen(targets).astype(dtype)
    mass = np.maximum((given * seen).sum(axis=1, keepdims=True), _LEAST)
    slope = slope - likelihood * seen / mass
    inner = (given * slope).sum(axis=1, keepdims=True)
    gradient = (1 - TAIL_MIX) * ahead / total * (slope - inner)
    return Scored(
        by_edge.sum(axis=1, dtype=np.float64),
        known_rps.astype(np.float64),
        -np.log(mass[:, 0].astype(np.float64)),
        np.asarray(gradient, dtype),
    )


def goal_cdfs(masses: Array, targets: Targets) -> Array:
    """Target CDFs at the upper edges, [N, K]: a step at the length, or the masses' own tail above a censoring."""
    return _goals(_given(masses, targets), targets)


def given_cdfs(masses: Array, targets: Targets) -> Array:
    """CDFs at the upper edges, [N, K], of masses as they are scored: with the tail, given the tokens that are out."""
    return np.asarray(np.cumsum(_given(masses, targets), axis=1))


def _given(masses: Array, targets: Targets) -> Array:
    left = with_tail(masses) * share_above(targets.generated).astype(masses.dtype)
    return np.asarray(left / left.sum(axis=1, keepdims=True))


def _goals(given: Array, targets: Targets) -> Array:
    steps = (np.arange(K) >= bin_indices(targets.lengths)[:, None]).astype(given.dtype)
    if not targets.censored.any():
        return steps
    cut = targets.censored
    tail = given[cut] * share_above(targets.lengths[cut]).astype(given.dtype)
    steps[cut] = np.cumsum(tail, axis=1) / np.maximum(tail.sum(axis=1, keepdims=True), _LEAST)
    return steps


def known_edges(targets: Targets) -> NDArray[np.float64]:
    """1 where an edge's outcome is known: everywhere, or below the censoring, [N, K]."""
    known = np.ones((len(targets), K))
    cut = targets.censored
    known[cut] = np.arange(K) < bin_indices(targets.lengths[cut])[:, None]
    return known


def _seen(targets: Targets) -> NDArray[np.float64]:
    """Shares of the bins that the observation names: its bin, or all that is above a censoring, [N, K]."""
    seen = np.zeros((len(targets), K))
    seen[np.arange(len(targets)), bin_indices(targets.lengths)] = 1.0
    cut = targets.censored
    seen[cut] = share_above(targets.lengths[cut])
    return seen
