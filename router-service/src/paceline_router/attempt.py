"""One stay of a request on one engine incarnation."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from paceline.common.v1 import attempt_pb2
from paceline_core.placement.policy import Placement

if TYPE_CHECKING:
    from paceline_router.fleet import Engine
    from paceline_router.request import LiveRequest


@dataclass(frozen=True, slots=True)
class Explained:
    """Why a placement came out as it did, kept for ExplainRequest: small, bounded by MAX_SCORES."""

    policy: str
    engine_id: str
    reason: str
    scores: tuple[tuple[str, float, str], ...]
    predicted_ms: float

    @classmethod
    def of(cls, policy: str, placement: Placement, engine_ids: tuple[str, ...]) -> "Explained":
        """The chosen engine and the best alternatives."""
        ranked = np.argsort(placement.scores, kind="stable")[:MAX_SCORES]  # engines left out are NaN: last
        scores = tuple(
            (engine_ids[i], float(placement.scores[i]), placement.excluded[i]) for i in ranked.tolist()
        )
        chosen = engine_ids[placement.engine] if placement.found else ""
        return cls(policy, chosen, placement.reason, scores, placement.predicted_ms)


MAX_SCORES = 8


@dataclass(slots=True, eq=False)
class Attempt:
    """One attempt.

    `ended` is the engine's word that it ended; the request takes it over once all its tokens are here.
    `displaced`: it is being cancelled so that the request can go elsewhere. `token_limit` is the credit sent
    down; 0: no bound. `landing`: it gets ready to take over from another attempt, and is not the request's yet;
    `hand_over` is what it was told then, to be said again after a broken session.
    """

    key: int
    number: int
    request: "LiveRequest"
    engine: "Engine"
    incarnation: int
    from_index: int
    isolate_until: int
    placed_ms: float
    placed_unix_ms: int
    explained: Explained
    token_limit: int = 0
    accepted: bool = False
    cancel_sent: bool = False
    displaced: bool = False
    landing: bool = False
    hand_over: attempt_pb2.ForcedTokens | None = None
    republish_asked_at: int = -1
    ended: attempt_pb2.AttemptEnded | None = None
    finish_reason: int = 0

    @property
    def over(self) -> bool:
        """True once the request has taken its end over."""
        return self.finish_reason != 0
