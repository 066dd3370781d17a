"""From a view to what the engine is asked to do: the policy's plan, cut to what fits. Live and simulated alike."""

from dataclasses import dataclass, replace

import numpy as np

from paceline_core.batch.laxity import out_of_reach
from paceline_core.batch.plan import UNLIMITED_TOKENS, UNTIL_EVENT, BatchPlan, PlanReason
from paceline_core.batch.policy import BatchPolicy
from paceline_core.batch.pressure import fit
from paceline_core.batch.view import BatchView, IntArray


@dataclass(frozen=True, slots=True)
class Decision:
    """A plan that an engine can carry out. Indexes are rows of the view (0..N-1)."""

    chosen: BatchPlan
    """As the policy said it, but that requests which must finish are last instead of shed."""
    order: IntArray
    """[M] Rows to run, most wanted first; what has no room is cut, at most `plan_length` stay."""
    evict: IntArray
    """[E] Rows whose KV is dropped: the policy's choice, and what must go so that the head of `order` has room."""
    shed: IntArray
    """[S] Rows given up for good: the policy's choice, and those that asked for it and have missed their target."""
    max_batch: int
    """Most sequences decoded in one step; 0: the engine's limit."""
    prefill_budget_tokens: int
    """Most prompt tokens prefilled in one step."""
    valid_for_steps: int
    """Steps for which deciding again without an event gives the same."""


def decide(policy: BatchPolicy, view: BatchView, now_ms: float, plan_length: int) -> Decision:
    """What to run until further notice, at most `plan_length` requests of it listed."""
    return settle(view, policy.plan(view, now_ms), now_ms, plan_length)


def settle(view: BatchView, chosen: BatchPlan, now_ms: float, plan_length: int) -> Decision:
    """Cut a plan to what fits, and keep what clients were promised whatever the policy thinks of it: what has missed
    its target and asked for an end then is shed, and what asked to be finished is not, but comes last."""
    chosen = _finish_late(view, chosen)
    order, shed, evict = chosen.order, chosen.shed, chosen.evict
    asked = np.flatnonzero(view.drops)
    if len(asked):
        missed = asked[out_of_reach(view, asked, now_ms)]
        if len(missed):
            shed = np.union1d(shed, missed)
            order = order[~np.isin(order, missed)]
    fitting = fit(view, order, chosen.max_batch)
    if len(fitting.evict):
        evict = np.union1d(evict, fitting.evict)
    return Decision(
        chosen=chosen,
        order=fitting.order[:plan_length],
        evict=evict,
        shed=shed,
        max_batch=chosen.max_batch,
        prefill_budget_tokens=min(chosen.prefill_budget_tokens, UNLIMITED_TOKENS),
        valid_for_steps=min(chosen.valid_for_steps, fitting.valid_for_steps, UNTIL_EVENT),
    )


def _finish_late(view: BatchView, chosen: BatchPlan) -> BatchPlan:
    late = chosen.shed[view.finishes[chosen.shed]]
    if not len(late):
        return chosen
    last = late[view.runnable()[late] & ~np.isin(late, chosen.evict)]
    return replace(
        chosen,
        order=np.concatenate((chosen.order, last)),
        scores=np.concatenate((chosen.scores, np.full(len(last), -np.inf))),
        reasons=[*chosen.reasons, *[PlanReason.UNATTAINABLE] * len(last)],
        shed=chosen.shed[~view.finishes[chosen.shed]],
    )
