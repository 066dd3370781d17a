"""Cancelling, in every state a request can be in."""

import asyncio

import pytest

from paceline.common.v1 import attempt_pb2
from paceline_router.states import ENDS, NEXT, IllegalTransition, State
from paceline_runtime.errors import PacelineError, Reason

CANCELLED = attempt_pb2.FINISH_REASON_CANCELLED


async def engine_is_empty(line, name):
    """The engine itself has nothing left: cancels reach it."""
    await line.until(lambda: not line.executors[name].engine.live_table())


async def test_running(line, endless):
    await line.engine("e0", time_scale=1.0)
    router = await line.router()
    session = await router.session()
    answer = await session.submit(endless(request_id="r"))
    await session.until(lambda: answer.count > 3)
    assert await router.cancel("r") == attempt_pb2.REQUEST_STATE_CANCELLED
    await session.ended(answer)
    assert answer.reason == CANCELLED
    assert answer.finished.output_tokens >= answer.count
    await engine_is_empty(line, "e0")


async def test_by_the_session(line, endless):
    await line.engine("e0", time_scale=1.0)
    router = await line.router()
    session = await router.session()
    answers = [await session.submit(endless()) for _ in range(6)]
    await session.until(lambda: any(a.count for a in answers))
    for answer in answers:
        await session.cancel(answer)
    await session.ended(*answers)
    assert {a.reason for a in answers} == {CANCELLED}
    await engine_is_empty(line, "e0")


async def test_before_it_was_admitted(line, endless):
    await line.engine("e0")
    router = await line.router()
    session = await router.session()
    answers = []
    for _ in range(10):
        answers.append(await session.submit(endless()))
        await session.cancel(answers[-1])
    await session.ended(*answers)
    assert {a.reason for a in answers} == {CANCELLED}
    await engine_is_empty(line, "e0")


async def test_queued_behind_a_full_batch(line, endless):
    executor = await line.executor("e0", time_scale=1.0, max_batch=1, max_resident=1)
    await line.scheduler("e0", executor.address, policy="fcfs")
    router = await line.router()
    session = await router.session()
    running = await session.submit(endless())
    await session.until(lambda: running.count > 0)
    queued = await session.submit(endless(request_id="queued"))
    await session.until(lambda: queued.accepted is not None)
    assert (await router.record("queued")).state == attempt_pb2.REQUEST_STATE_QUEUED
    assert await router.cancel("queued") == attempt_pb2.REQUEST_STATE_CANCELLED
    assert running.finished is None


async def test_paused_for_lack_of_credit(line, spec):
    await line.engine("e0")
    router = await line.router()
    session = await router.session()
    answer = await session.submit(spec(tokens=500, request_id="p"), token_limit=4)
    await session.until(lambda: answer.count == 4)
    assert await router.cancel("p") == attempt_pb2.REQUEST_STATE_CANCELLED


async def test_waiting_for_an_engine(line, endless):
    await line.engine("e0", time_scale=1.0)
    router = await line.router()
    session = await router.session()
    answer = await session.submit(endless(request_id="w"))
    await session.until(lambda: answer.count > 0)
    await line.kill_executor("e0")
    await router.until(lambda: len(router.app.dispatcher.waiting) == 1)
    assert await router.cancel("w") == attempt_pb2.REQUEST_STATE_CANCELLED
    await session.ended(answer)
    assert not router.app.dispatcher.waiting


async def test_while_its_scheduler_is_away(line, endless):
    await line.engine("e0", time_scale=1.0)
    router = await line.router()
    session = await router.session()
    answer = await session.submit(endless(request_id="a"))
    await session.until(lambda: answer.count > 0)
    await line.stop(line.schedulers["e0"])
    await router.until(lambda: not router.app.fleet.get("e0").up)
    asked = asyncio.create_task(router.cancel("a"))
    await router.until(lambda: router.app.ledger.find("a").cancel_requested)
    assert answer.finished is None  # its scheduler may come back and say how it ended
    router.set(scheduler_grace_s=0.0)
    assert await asked == attempt_pb2.REQUEST_STATE_CANCELLED


async def test_ended_already(line, spec):
    await line.engine("e0")
    router = await line.router()
    await router.generate(spec(request_id="over"))
    assert await router.cancel("over") == attempt_pb2.REQUEST_STATE_FINISHED


async def test_never_heard_of(line, spec):
    router = await line.router(scheduler_grace_s=0.05)
    await router.until(router.app.adoption.settled.is_set)
    with pytest.raises(PacelineError) as caught:
        try:
            await router.cancel("nobody")
        except Exception as error:
            from paceline_runtime.status import from_rpc_error

            raise from_rpc_error(error) from None
    assert caught.value.reason is Reason.NOT_FOUND


def test_ends_are_final_and_illegal_steps_raise():
    from paceline.router.v1 import generation_pb2
    from paceline_core.slo import Slo, SloClass
    from paceline_router.request import Arrival, LiveRequest

    def request(state):
        made = LiveRequest(
            "r", generation_pb2.GenerationSpec(), Slo(SloClass.BEST_EFFORT), "", Arrival(0.0, 0)
        )
        made.state = state
        return made

    for old in State:
        for new in State:
            if old is new:
                continue
            if new in NEXT[old]:
                assert old not in ENDS
                request(old).move_to(new)
            else:
                with pytest.raises(IllegalTransition):
                    request(old).move_to(new)
