"""Batches over concurrent calls, with a model that works in a thread, as those in ONNX files will."""

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import pytest

from paceline_core.lengths import K
from paceline_predictor.batching import Batcher
from paceline_predictor.model import Bases, LengthAnswers, LengthQuestion, ModelReport, Outcome
from paceline_runtime.errors import PacelineError, Reason

WAIT_S = 60


class FakeSlowModel:
    """Waits for permission in its thread, then answers with the number in the app's name as the first mass."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.entered = threading.Semaphore(0)
        self.go_on = threading.Semaphore(0)

    def bases(self, questions: Sequence[LengthQuestion]) -> Bases:
        self.batches.append(len(questions))
        self.entered.release()
        assert self.go_on.acquire(timeout=WAIT_S)
        if any(question.app == "fail" for question in questions):
            raise ArithmeticError("scripted")
        rows = np.zeros((len(questions), K))
        rows[:, 0] = [float(question.app) for question in questions]
        return Bases(f"slow-{len(self.batches)}", "qrf", rows, np.ones(len(questions), dtype=np.bool_))

    def answers(self, questions: Sequence[LengthQuestion], bases: Bases) -> LengthAnswers:
        n = len(questions)
        return LengthAnswers(bases.masses, ["qrf"] * n, [0.0] * n, [bases.version] * n)

    def learn(self, outcomes: Sequence[Outcome], bases: Bases) -> int:
        return 0

    def report(self) -> ModelReport:
        return ModelReport("slow", "slow", "qrf", 0, 0.0, "")


def ask(batcher: Batcher, *apps: str) -> "asyncio.Task[LengthAnswers]":
    return asyncio.create_task(batcher.predict([LengthQuestion("m", app) for app in apps]))


async def entered(model: FakeSlowModel) -> None:
    assert await asyncio.to_thread(model.entered.acquire, timeout=WAIT_S)


async def test_calls_that_come_while_the_model_works_form_one_batch() -> None:
    model = FakeSlowModel()
    async with Batcher(model, max_batch=8, thread_from=1) as batcher, asyncio.timeout(WAIT_S):
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
        split = await too_much
        assert split.sources == ["qrf"] * 3
        assert split.probabilities[:, 0].tolist() == [1.0, 2.0, 3.0]
        assert split.versions == ["slow-2", "slow-2", "slow-3"]
    assert model.batches == [1, 8, 1]


async def test_a_large_call_takes_turns_with_small_ones() -> None:
    model = FakeSlowModel()
    async with Batcher(model, max_batch=8, thread_from=1) as batcher, asyncio.timeout(WAIT_S):
        large = ask(batcher, *map(str, range(40)))
        await entered(model)
        small = ask(batcher, "77")
        model.go_on.release(2)
        assert (await small).probabilities[:, 0].tolist() == [77.0]
        assert not large.done()
        model.go_on.release(9)
        assert (await large).probabilities[:, 0].tolist() == list(range(40))


async def test_a_model_that_fails_fails_its_batch_alone() -> None:
    model = FakeSlowModel()
    async with Batcher(model, thread_from=1) as batcher, asyncio.timeout(WAIT_S):
        model.go_on.release(2)
        with pytest.raises(ArithmeticError):
            await ask(batcher, "fail")
        assert (await ask(batcher, "7")).probabilities[0, 0] == 7.0


async def test_waiting_questions_are_bounded_and_the_end_answers_them() -> None:
    model = FakeSlowModel()
    async with asyncio.timeout(WAIT_S):
        async with Batcher(model, max_waiting=4, thread_from=1) as batcher:
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


async def test_calls_that_come_one_after_the_other_share_a_batch() -> None:
    model = FakeSlowModel()
    model.go_on.release(100)

    async def later(turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        await ask(batcher, str(turns))

    async with Batcher(model) as batcher, asyncio.timeout(WAIT_S):
        await asyncio.gather(*(later(4 * number) for number in range(6)))
    assert model.batches == [6]
