"""Outcomes of concurrent streams, learned in small batches between answers."""

import asyncio
from collections.abc import Sequence
from functools import partial

from paceline_predictor.keeping import Keeper
from paceline_predictor.model import LengthModel, Outcome
from paceline_predictor.state_parts import LENGTHS

OUTCOMES_A_TURN = 16
"""Learning one takes some 0.3 ms of the event loop: answers get their turn in between."""


class Learner:
    """Feeds outcomes to a model, and tells the keeper what it learned."""

    def __init__(self, model: LengthModel, keeper: Keeper, *, thread_from: int = 4) -> None:
        """`thread_from`: batches of so many outcomes have their bases computed in a thread."""
        self._model = model
        self._keeper = keeper
        self._thread_from = thread_from

    async def learn(self, outcomes: Sequence[Outcome]) -> int:
        """Learn all, in order; returns how many held something to learn."""
        learned = 0
        for begin in range(0, len(outcomes), OUTCOMES_A_TURN):
            part = outcomes[begin : begin + OUTCOMES_A_TURN]
            questions = [outcome.question for outcome in part]
            if len(part) >= self._thread_from:
                bases = await asyncio.to_thread(self._model.bases, questions)
            else:
                bases = self._model.bases(questions)
                await asyncio.sleep(0)
            count = self._model.learn(part, bases)
            self._keeper.learned(LENGTHS, count, partial(self._model.learn, part, bases))
            learned += count
        return learned
