"""Batches over concurrent calls, with a model that works in a thread, as those in ONNX files will."""

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import pytest

from paceline_core.lengths import K
from paceline_predictor.batching import Batcher
from paceline_predictor.model import LengthAnswers, LengthQuestion, ModelReport, Outcome
from paceline_runtime.errors import PacelineError, Reason

WAIT_S = 20


class FakeSlowModel:
    """Waits for permission in its thread, then answers with the number in the app's name as the first mass."""

    version = "slow-1"
    off_loop = True

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.entered = threading.Semaphore(0)
        self.go_on = threading.Semaphore(0)

    def predict(self, questions: Sequence[LengthQuestion]) -> LengthAnswers:
        self.batches.append(len(questions))
        self.entered.release()
        assert self.go_on.acquire(timeout=WAIT_S)
        if any(question.app == "fail" for question in questions):
            raise ArithmeticError("scripted")
        rows = np.zeros((len(questions), K))
        rows[:, 0] = [float(question.app) for question in questions]
        return LengthAnswers(rows, ["qrf"] * len(questions), [0.0] * len(questions))

    def observe(self, outcome: Outcome) -> bool:
        return False

    def report(self) -> ModelReport:
        return ModelReport("slow", self.version, "qrf", 0, 0.0, "")


def ask(batcher: Batcher, *apps: str) -> "asyncio.Task[LengthAnswers]":
    return asyncio.create_task(batcher.predict([LengthQuestion("m", app) for app in apps]))


async def entered(model: FakeSlowModel) -> None:
    assert await asyncio.to_thread(model.entered.acquire, timeout=WAIT_S)


async def test_calls_that_come_while_the_model_works_form_one_batch() -> None:
    model = FakeSlowModel()
    async with Batcher(model, max_batch=8) as batcher, asyncio.timeout(WAIT_S):
        first = ask(batcher, "1")
        await entered(model)
        later = [ask(batcher, f"{i}0", f"{i}1") for i in range(2, 5)]
        left = ask(batcher, "99")
        await asyncio.sleep(0)
        left.cancel()
        too_much = ask(batcher, *"123")
        model.go_on.release(3)
        assert (await first).probabilities[:, 0].tolist() == [1.0]
        for number, task in enumerate(later, start=2):
            assert (await task).probabilities[:, 0].tolist() == [10.0 * number, 10.0 * number + 1]
        assert (await too_much).sources == ["qrf"] * 3
    assert model.batches == [1, 6, 3]


async def test_a_model_that_fails_fails_its_batch_alone() -> None:
    model = FakeSlowModel()
    async with Batcher(model) as batcher, asyncio.timeout(WAIT_S):
        model.go_on.release(2)
        with pytest.raises(ArithmeticError):
            await ask(batcher, "fail")
        assert (await ask(batcher, "7")).probabilities[0, 0] == 7.0


async def test_waiting_questions_are_bounded_and_the_end_answers_them() -> None:
    model = FakeSlowModel()
    async with asyncio.timeout(WAIT_S):
        async with Batcher(model, max_waiting=4) as batcher:
            running = ask(batcher, "1")
            await entered(model)
            waiting = ask(batcher, *"1234")
            await asyncio.sleep(0)
            with pytest.raises(PacelineError) as refused:
                await batcher.predict([LengthQuestion("m", "5")])
            assert refused.value.reason is Reason.QUEUE_FULL
            assert len((await batcher.predict([])).sources) == 0
        model.go_on.release(1)
        for task in (running, waiting):
            with pytest.raises(PacelineError) as ended:
                await task
            assert ended.value.reason is Reason.DRAINING
