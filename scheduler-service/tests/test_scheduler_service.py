"""The service over real gRPC against the real executor service with a simulated engine."""

import asyncio

import grpc
import numpy as np
import pytest

from paceline.common.v1 import attempt_pb2, slo_pb2
from paceline.executor.v1 import executor_pb2
from paceline.scheduler.v1 import scheduler_pb2
from paceline_core.batch.state import RunState
from paceline_runtime.config_model import ConfigError
from paceline_runtime.errors import Reason
from paceline_runtime.status import from_rpc_error

CANCELLED = attempt_pb2.FINISH_REASON_CANCELLED
LENGTH = attempt_pb2.FINISH_REASON_LENGTH


async def nothing_left(bench, executor, scheduler):
    """Tables, KV and buffers are empty, above and below."""
    state = scheduler.loop.state
    await bench.until(lambda: not len(state.table) and not executor.engine.live_table())
    assert state.table.live == 0
    assert not state.table.live_rows().size


async def test_submit_runs_to_its_end_and_leaves_nothing(bench):
    executor, scheduler, router = await bench.pair()
    await router.run_all(bench.submit(1, tokens=20))
    assert router.accepted[1].prompt_ids == bench.submit(1).spec.token_ids
    assert len(router.ids[1]) == 20
    ended = router.ended[1]
    assert ended.finish_reason == LENGTH
    assert (ended.output_tokens, ended.prompt_tokens) == (20, 32)
    await router.send(releases=[1])
    await nothing_left(bench, executor, scheduler)


async def test_hello_ack_tells_engine_and_load(bench):
    executor, _scheduler, router = await bench.pair()
    ack = router.acks[0]
    assert ack.identity.incarnation == executor.identity.incarnation
    assert ack.capabilities.max_batch == 16
    assert ack.executor_endpoint == executor.address
    assert ack.load.engine_up
    assert len(ack.load.headroom.horizon_ms) == len(ack.load.headroom.free_decode_tokens) == 12
    assert not ack.live
    await router.until(lambda: len(router.loads) >= 2)


@pytest.mark.parametrize(
    "when", ["before_accepted", "queued", "running", "out_of_credit", "ended", "unknown"]
)
async def test_cancel_is_confirmed_in_every_state(bench, when):
    executor, scheduler, router = await bench.pair(**({"policy": "fcfs"} if when == "queued" else {}))
    table = scheduler.loop.state.table
    if when == "before_accepted":
        await router.send(submits=[bench.submit(1, tokens=bench.ENDLESS)], cancels=[1])
    elif when == "queued":
        ahead = [bench.submit(k, tokens=bench.ENDLESS, elapsed_ms=1000.0) for k in range(2, 18)]
        await router.send(submits=[*ahead, bench.submit(1)])
        await router.until(lambda: 1 in router.accepted)
        await router.send(cancels=[1])
    elif when == "running":
        await router.send(submits=[bench.submit(1, tokens=bench.ENDLESS)])
        await router.until(lambda: len(router.ids.get(1, [])) > 3)
        await router.send(cancels=[1])
    elif when == "out_of_credit":
        await router.send(submits=[bench.submit(1, tokens=500, token_limit=4)])
        await router.until(lambda: len(router.ids.get(1, [])) >= 4)
        await bench.until(lambda: table.state[table.get(1).row] != RunState.RUNNING)
        await router.send(cancels=[1])
    elif when == "ended":
        await router.run_all(bench.submit(1, tokens=3))
        del router.ended[1]
        await router.send(cancels=[1])
    else:
        await router.send(cancels=[1])
    await router.until(lambda: 1 in router.ended)
    assert router.ended[1].finish_reason == (LENGTH if when == "ended" else CANCELLED)
    await router.send(cancels=list(range(2, 18)))
    if when == "queued":
        await router.until(lambda: router.ended.keys() >= set(range(1, 18)))
    await router.send(releases=list(range(1, 18)))
    await nothing_left(bench, executor, scheduler)


async def test_credit_pauses_only_its_own_request(bench):
    _, _scheduler, router = await bench.pair()
    await router.send(submits=[bench.submit(1, tokens=200, token_limit=5), bench.submit(2, tokens=400)])
    await router.until(lambda: 2 in router.ended)
    assert 5 <= len(router.ids[1]) <= 7  # the steps in flight may overshoot
    assert 1 not in router.ended
    assert len(router.ids[2]) == 400
    explained = await router.stub.ExplainRequest(scheduler_pb2.ExplainRequestRequest(request_id="request-1"))
    assert (explained.position, explained.reason) == (-1, "waits_for_credit")
    await router.send(credits=[attempt_pb2.Credit(attempt_key=1, token_limit=50)])
    await router.until(lambda: len(router.ids[1]) >= 50)
    await router.send(credits=[attempt_pb2.Credit(attempt_key=1, token_limit=0)])
    await router.until(lambda: 1 in router.ended)
    assert len(router.ids[1]) == 200


async def test_a_place_that_credit_leaves_empty_is_filled(bench):
    """More requests than fit into the engine: those out of credit make room for those that have some."""
    executor = await bench.executor(max_batch=2, max_resident=2)
    scheduler = await bench.scheduler(executor.address)
    router = await bench.router(scheduler)
    await router.send(
        submits=[bench.submit(k, tokens=40, token_limit=10, elapsed_ms=10.0 - k) for k in range(1, 7)]
    )
    await router.until(lambda: all(len(router.ids.get(k, [])) >= 10 for k in range(1, 7)))
    await router.send(credits=[attempt_pb2.Credit(attempt_key=k, token_limit=0) for k in range(1, 7)])
    await router.until(lambda: router.ended.keys() == set(range(1, 7)))
    assert all(len(router.ids[k]) == 40 for k in range(1, 7))


async def test_an_older_fencing_token_is_refused(bench):
    _, scheduler, router = await bench.pair()
    old = bench.router_end(scheduler, "router-a", token=0)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await old.hello()
    assert from_rpc_error(caught.value).reason is Reason.FENCED
    await router.run_all(bench.submit(1))  # the younger one goes on


async def test_a_newer_session_of_the_router_closes_the_older(bench):
    _, scheduler, router = await bench.pair()
    newer = await bench.router(scheduler, "router-a", token=2)
    await router.until(lambda: router.error is not None)
    assert isinstance(router.error, grpc.aio.AioRpcError)
    assert from_rpc_error(router.error).reason is Reason.FENCED
    await newer.run_all(bench.submit(1))
    other = await bench.router(scheduler, "router-b", token=1)  # another router, another lease
    await other.run_all(bench.submit(2))
    assert 1 not in other.ids
    assert 2 not in newer.ids


async def test_a_session_begins_with_a_hello(bench):
    _, _scheduler, router = await bench.pair()
    call = router.stub.Session()
    await call.write(scheduler_pb2.SessionRequest(commands=scheduler_pb2.Commands(cancels=[1])))
    assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_router_that_comes_back_finds_its_attempts(bench):
    executor, scheduler, router = await bench.pair()
    await router.send(submits=[bench.submit(1, tokens=30), bench.submit(2, tokens=40, token_limit=10)])
    await router.until(lambda: len(router.ids.get(2, [])) >= 5)
    await router.hang_up()
    await bench.until(lambda: scheduler.loop.state.table.get(1).ended is not None)

    again = bench.router_end(scheduler, token=2)
    ack = await again.hello()
    live = {a.spec.attempt_key: a for a in ack.live}
    assert live.keys() == {1, 2}
    assert live[1].ended.finish_reason == LENGTH
    assert not live[2].HasField("ended")
    assert live[2].context == b"context-2"
    assert live[2].prompt_ids == live[2].spec.token_ids == bench.submit(2).spec.token_ids
    assert live[2].spec.max_tokens == 40
    await again.send(
        republishes=[attempt_pb2.Republish(attempt_key=key, from_index=0) for key in (1, 2)],
        credits=[attempt_pb2.Credit(attempt_key=2, token_limit=100)],
    )
    await again.until(lambda: len(again.ids.get(1, [])) == 30 and 2 in again.ended)
    assert again.ids[2][: len(router.ids[2])] == router.ids[2]
    assert len(again.ids[2]) == 40
    await again.send(releases=[1, 2])
    await nothing_left(bench, executor, scheduler)


async def test_requests_of_a_router_that_stays_away_are_cancelled(bench):
    executor, scheduler, router = await bench.pair(router_grace_s=0.05)
    await router.send(submits=[bench.submit(1, tokens=bench.ENDLESS), bench.submit(2, tokens=3)])
    await router.until(lambda: 2 in router.ended)
    await router.hang_up()
    await nothing_left(bench, executor, scheduler)


async def test_another_router_takes_over(bench):
    _executor, scheduler, router = await bench.pair()
    await router.send(submits=[bench.submit(1, tokens=60, token_limit=8)])
    await router.until(lambda: len(router.ids.get(1, [])) >= 8)
    heir = bench.router_end(scheduler, "router-b", token=1)
    ack = await heir.hello(adopt={"router-a": 5})
    assert [a.spec.attempt_key for a in ack.live] == [1]
    await router.until(lambda: router.error is not None)  # its lease is gone
    await heir.send(
        republishes=[attempt_pb2.Republish(attempt_key=1, from_index=0)],
        credits=[attempt_pb2.Credit(attempt_key=1, token_limit=0)],
    )
    await heir.until(lambda: 1 in heir.ended)
    assert len(heir.ids[1]) == 60
    late = bench.router_end(scheduler, "router-a", token=4)
    with pytest.raises(grpc.aio.AioRpcError):
        await late.hello()


async def test_a_hello_that_adopts_with_an_old_token_leaves_no_session(bench):
    _, scheduler, router = await bench.pair()
    newer = await bench.router(scheduler, "router-b", 7)
    heir = bench.router_end(scheduler, "router-c", 1)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await heir.hello(adopt={"router-a": 1, "router-b": 6})
    assert from_rpc_error(refused.value).reason is Reason.FENCED
    assert {s.router_id for s in scheduler.loop.state.sessions.all()} == {"router-a", "router-b"}
    await newer.run_all(bench.submit(1))
    await router.run_all(bench.submit(2))


async def test_an_attempt_that_lands_after_it_was_given_up_is_ended(bench):
    executor, scheduler, router = await bench.pair()
    await router.send(submits=[bench.submit(1, tokens=1500, token_limit=4)])
    await router.until(lambda: 1 in router.accepted)
    state = scheduler.loop.state
    state.table.remove(1)
    acceptance = attempt_pb2.AttemptAccepted(attempt_key=1)
    scheduler.loop.report(executor_pb2.Report(accepted=[acceptance]))
    await nothing_left(bench, executor, scheduler)


async def test_a_late_request_that_asked_to_be_dropped_is(bench):
    executor, scheduler, router = await bench.pair()
    drop = slo_pb2.ON_MISS_DROP
    late = {"elapsed_ms": 30_000.0, "token_limit": 4}
    deadline = slo_pb2.DeadlineSlo(e2e_ms=29_000)
    latency = slo_pb2.LatencySlo(ttft_ms=29_000, tbt_ms=10)
    await router.send(
        submits=[
            bench.submit(1, slo=slo_pb2.Slo(deadline=deadline, on_miss=drop), **late),
            bench.submit(2, slo=slo_pb2.Slo(latency=latency, on_miss=drop), **late),
            bench.submit(3, slo=slo_pb2.Slo(deadline=deadline), **late),
            bench.submit(4, slo=slo_pb2.Slo(best_effort=slo_pb2.BestEffortSlo(), on_miss=drop), **late),
        ]
    )
    await router.until(lambda: {1, 2} <= router.ended.keys() and len(router.ids.get(4, ())) == 4)
    for key in (1, 2):
        assert router.ended[key].finish_reason == attempt_pb2.FINISH_REASON_EXPIRED
        assert router.ended[key].failure.reason == "SLO_UNATTAINABLE"
        assert not router.ended[key].failure.retryable
    assert "was due 29000 ms after the arrival" in router.ended[1].failure.message
    plan = await router.stub.GetPlan(scheduler_pb2.GetPlanRequest())
    assert dict(plan.shed) == {"missed": 2}
    assert not {3, 4} & router.ended.keys()
    await router.send(releases=[1, 2], cancels=[3, 4])
    await router.until(lambda: {3, 4} <= router.ended.keys())
    await router.send(releases=[3, 4])
    await nothing_left(bench, executor, scheduler)


async def test_waits_of_attempts_that_are_gone_do_not_pile_up(bench, monkeypatch):
    monkeypatch.setattr("paceline_scheduler.ends._WAITS_KEPT", 100)
    _, scheduler, router = await bench.pair()
    for first in range(0, 300, 50):
        await router.run_all(*(bench.submit(k, tokens=1, max_wait_ms=1e7) for k in range(first, first + 50)))
        await router.send(releases=range(first, first + 50))
    assert len(scheduler.loop.ends._waits) < 220


async def test_slots_held_without_credit_go_to_who_can_run(bench):
    executor = await bench.executor(max_batch=2, max_resident=4)
    scheduler = await bench.scheduler(executor.address)
    router = await bench.router(scheduler)
    await router.send(submits=[bench.submit(k, tokens=200, token_limit=4) for k in range(8)])
    await router.until(lambda: all(len(router.ids.get(k, ())) >= 4 for k in range(8)))
    await router.run_all(*(bench.submit(k, tokens=100) for k in range(10, 14)))
    assert not set(range(8)) & router.ended.keys()


async def test_a_live_table_larger_than_a_message_is_told_in_parts(bench):
    executor, scheduler, router = await bench.pair()
    keys = set(range(60))
    for first in range(0, 60, 15):
        submits = [bench.submit(k, tokens=40, token_limit=2) for k in range(first, first + 15)]
        for submit in submits:
            submit.context = b"c" * 400_000
        await router.send(submits=submits)
    await router.until(lambda: keys <= router.accepted.keys())
    await scheduler.stop(0.0)
    heir = await bench.scheduler(executor.address)
    router = await bench.router(heir)
    assert {live.spec.attempt_key for live in router.acks[-1].live} == keys
    assert {len(live.context) for live in router.acks[-1].live} == {400_000}
    assert len(heir.loop.state.table) == 60
    await router.send(cancels=keys)
    await router.until(lambda: keys <= router.ended.keys())
    await router.send(releases=keys)
    await nothing_left(bench, executor, heir)


async def test_a_new_scheduler_adopts_the_live_executor(bench):
    executor, first, router = await bench.pair()
    await router.send(
        submits=[
            bench.submit(1, tokens=120, token_limit=20, tenant="t", elapsed_ms=500.0),
            bench.submit(2, tokens=5),
        ]
    )
    await router.until(lambda: len(router.ids.get(1, [])) >= 20 and 2 in router.ended)
    await first.stop(0.0)  # no goodbye to the executor: its stream breaks
    second = await bench.scheduler(executor.address)
    heir = await bench.router(second, "router-a", token=1)
    live = {a.spec.attempt_key: a for a in heir.acks[0].live}
    assert live.keys() == {1, 2}
    assert live[1].output_tokens == len(router.ids[1])
    assert live[1].context == b"context-1"
    assert live[2].ended.finish_reason == LENGTH
    listed = await heir.stub.ListRequests(scheduler_pb2.ListRequestsRequest())
    row = next(r for r in listed.requests if r.attempt_key == 1)
    assert (row.tenant, row.router_id, row.slo.deadline.e2e_ms) == ("t", "router-a", 20_000)
    assert row.age_ms >= 500
    await heir.send(
        republishes=[attempt_pb2.Republish(attempt_key=1, from_index=20)],
        credits=[attempt_pb2.Credit(attempt_key=1, token_limit=0)],
    )
    heir.ids[1] = router.ids[1][:20]
    await heir.until(lambda: 1 in heir.ended)
    assert len(heir.ids[1]) == 120
    steps = [event for _, event, _ in second.loop.state.table.get(1).timeline]
    assert "evicted" not in steps  # its KV stayed
    await heir.send(releases=[1, 2])
    await nothing_left(bench, executor, second)


async def test_a_broken_stream_to_the_same_life_loses_nothing(bench):
    executor, scheduler, router = await bench.pair()
    submits = [bench.submit(k, tokens=300) for k in range(1, 8)]
    await router.send(submits=[*submits, bench.submit(8, tokens=300, token_limit=20)])
    await router.until(lambda: len(router.ids.get(1, [])) > 20)
    for _ in range(3):
        scheduler.link.interrupt()
        await bench.attached(scheduler, attached=False)
        await bench.attached(scheduler)
    # Submitted while no stream was open, and one that ended meanwhile: nothing is lost either.
    scheduler.link.interrupt()
    await bench.attached(scheduler, attached=False)
    await router.send(submits=[bench.submit(20, tokens=10)], cancels=[8])
    await router.until(lambda: router.ended.keys() >= {*range(1, 9), 20})
    assert not router.lost
    for key in range(1, 8):
        if len(router.ids[key]) < 300:  # a gap is the router's to ask for
            await router.send(
                republishes=[attempt_pb2.Republish(attempt_key=key, from_index=len(router.ids[key]))]
            )
            await router.until(lambda key=key: len(router.ids[key]) == 300)
    assert router.ended[8].finish_reason == CANCELLED
    assert len(router.ids[20]) == 10
    await router.send(releases=[*range(1, 9), 20])
    await nothing_left(bench, executor, scheduler)


async def test_a_new_life_of_the_engine_ends_what_was_in_the_old_one(bench):
    executor = await bench.executor(max_batch=4)
    port = executor.address
    scheduler = await bench.scheduler(port)
    router = await bench.router(scheduler)
    submits = [bench.submit(k, tokens=bench.ENDLESS) for k in range(1, 5)]
    await router.send(submits=[*submits, bench.submit(5), bench.submit(6, token_limit=2, elapsed_ms=1.0)])
    await router.until(
        lambda: all(len(router.ids.get(k, [])) > 2 for k in range(1, 5)) and 5 in router.accepted
    )
    await bench.crash(executor)
    await bench.attached(scheduler, attached=False)
    assert not router.lost
    reborn = await bench.executor(port)
    await router.until(lambda: router.ended.keys() == set(range(1, 7)) and len(router.acks) == 2)
    assert len(router.lost) == 1
    assert router.lost[0].identity.incarnation == executor.identity.incarnation
    assert router.acks[1].identity.incarnation == reborn.identity.incarnation
    assert router.order.index("engine_lost") < router.order.index("ended 1") < len(router.order) - 1
    assert router.order[-1] == "hello_ack"
    for key in range(1, 5):
        ended = router.ended[key]
        assert (ended.finish_reason, ended.failure.reason) == (
            attempt_pb2.FINISH_REASON_FAILED,
            "ENGINE_LOST",
        )
        assert ended.in_flight
        assert ended.failure.retryable
    assert not router.ended[5].in_flight  # queued: not a suspect
    await router.run_all(bench.submit(7))
    assert len(router.ids[7]) == 16
    await router.send(releases=range(1, 8))
    await nothing_left(bench, reborn, scheduler)


async def test_an_engine_out_of_reach_is_lost_in_time_and_welcome_again(bench):
    executor = await bench.executor()
    scheduler = await bench.scheduler(executor.address, engine_lost_after_s=0.1)
    router = await bench.router(scheduler)
    await router.send(submits=[bench.submit(1, tokens=bench.ENDLESS), bench.submit(2, tokens=bench.ENDLESS)])
    await router.until(lambda: len(router.ids.get(1, [])) > 3)
    await bench.crash(executor)
    await router.send(cancels=[2])
    await router.until(lambda: {1, 2} <= router.ended.keys())
    assert router.ended[1].in_flight
    assert router.ended[2].finish_reason in (CANCELLED, attempt_pb2.FINISH_REASON_FAILED)
    await router.run_all(bench.submit(3))  # refused at once: the router may try elsewhere
    assert router.ended[3].failure.reason == "ENGINE_LOST"
    assert not router.ended[3].in_flight
    assert not router.loads[-1].engine_up
    reborn = await bench.executor(executor.address)
    await router.until(lambda: len(router.acks) == 2)
    await router.run_all(bench.submit(4))
    assert router.ended[4].finish_reason == LENGTH
    await router.send(releases=[1, 2, 3, 4])
    await nothing_left(bench, reborn, scheduler)


async def test_an_engine_that_shuts_down_in_good_order_makes_no_suspects(bench):
    executor, _, router = await bench.pair()
    await router.send(submits=[bench.submit(1, tokens=bench.ENDLESS)])
    await router.until(lambda: len(router.ids.get(1, [])) > 3)
    executor.engine.drain(0.0)
    await router.until(lambda: 1 in router.ended)
    ended = router.ended[1]
    assert (ended.finish_reason, ended.failure.reason) == (attempt_pb2.FINISH_REASON_FAILED, "ENGINE_LOST")
    assert not ended.in_flight


async def test_suspects_run_alone_one_at_a_time(bench):
    _, scheduler, router = await bench.pair()
    plans = []
    planned = scheduler.loop.planner.plan

    def noted(shed):
        plan = planned(shed)
        if plan is not None:
            plans.append(tuple(plan.attempt_keys))
        return plan

    scheduler.loop.planner.plan = noted
    await router.send(
        submits=[
            bench.submit(1, tokens=600),
            bench.submit(2, tokens=600, isolate_until_index=20),
            bench.submit(3, tokens=600, isolate_until_index=30),
        ]
    )
    await router.until(lambda: {1, 2, 3} <= router.ended.keys())
    alone = [p for p in plans if p and not set(p) >= {1}]
    assert alone.index((2,)) < alone.index((3,))
    assert all(
        len(p) == 1 for p in plans[: plans.index((3,)) + 1]
    )  # nobody beside a suspect, before both are through
    assert any(set(p) == {1, 2, 3} for p in plans)
    timeline = {e[1]: e[0] for e in scheduler.loop.state.table.get(1).timeline}
    others = {e[1]: e[0] for e in scheduler.loop.state.table.get(3).timeline}
    assert timeline["first_token"] > others["first_token"]


async def test_waiting_too_long_expires(bench):
    _executor, _scheduler, router = await bench.pair(policy="fcfs")
    ahead = [bench.submit(k, tokens=bench.ENDLESS, elapsed_ms=1000.0) for k in range(2, 18)]
    await router.send(submits=[*ahead, bench.submit(1, max_wait_ms=30.0)])
    await router.until(lambda: 1 in router.ended)
    assert router.ended[1].finish_reason == attempt_pb2.FINISH_REASON_EXPIRED
    assert router.ended[1].failure.reason == "QUEUE_TTL_EXPIRED"
    assert not router.ids.get(1)
    await router.send(cancels=range(2, 18), releases=[1])
    await router.until(lambda: len(router.ended) == 17)


async def test_drain_refuses_new_work_and_waits_for_the_old(bench):
    _, _scheduler, router = await bench.pair()
    await router.send(submits=[bench.submit(1, tokens=200, token_limit=20)])
    await router.until(lambda: 1 in router.ids)
    answer = await router.stub.Drain(scheduler_pb2.DrainRequest(timeout_ms=0))
    assert answer.live == 1
    await router.run_all(bench.submit(2))
    assert router.ended[2].finish_reason == attempt_pb2.FINISH_REASON_REJECTED
    assert (router.ended[2].failure.reason, router.ended[2].failure.retryable) == ("DRAINING", True)
    await router.send(credits=[attempt_pb2.Credit(attempt_key=1, token_limit=0)])
    answer = await router.stub.Drain(scheduler_pb2.DrainRequest(timeout_ms=60_000), timeout=90)
    assert answer.live == 0
    await router.until(lambda: 1 in router.ended and router.loads[-1].draining)
    assert len(router.ids[1]) == 200


async def test_moves_give_a_ticket_and_end_as_moved(bench):
    executor, _scheduler, router = await bench.pair()
    await router.send(submits=[bench.submit(1, tokens=bench.ENDLESS)])
    await router.until(lambda: len(router.ids.get(1, [])) > 5)
    await router.send(move_outs=[1, 99])
    await router.until(lambda: len(router.tickets) == 2)
    tickets = {t.attempt_key: t for t in router.tickets}
    assert tickets[1].ticket.token
    assert tickets[1].ticket.endpoint == executor.address
    assert tickets[99].failure.reason == "NOT_FOUND"
    landing_ids = np.asarray(router.ids[1], dtype="<i4")
    # The landing side, here on the same engine: forced ids come in two parts.
    spec = bench.submit(1, tokens=bench.ENDLESS).spec
    spec.attempt_key, spec.forced_ids, spec.await_more_forced = 2, landing_ids[:4].tobytes(), True
    await router.send(submits=[scheduler_pb2.Submit(spec=spec, slo=slo_pb2.Slo())])
    await router.until(lambda: 2 in router.accepted)
    await router.send(moved=[1])
    await router.until(lambda: 1 in router.ended)
    assert router.ended[1].finish_reason == attempt_pb2.FINISH_REASON_MOVED
    assert router.ended[1].output_tokens == len(router.ids[1])
    rest = np.asarray(router.ids[1][4:], dtype="<i4").tobytes()
    router.ids[2] = list(router.ids[1])
    await router.send(forced=[attempt_pb2.ForcedTokens(attempt_key=2, first_index=4, ids=rest, final=True)])
    await router.until(lambda: len(router.ids[2]) > len(router.ids[1]) + 5)
    await router.send(cancels=[2], releases=[1])


async def test_forced_ids_outlive_a_broken_stream(bench):
    executor, scheduler, router = await bench.pair()
    await router.run_all(bench.submit(1, tokens=40))
    answer = router.ids[1]
    spec = bench.submit(1, tokens=40).spec
    spec.attempt_key, spec.await_more_forced = 2, True
    spec.forced_ids = np.asarray(answer[:4], dtype="<i4").tobytes()
    await router.send(submits=[scheduler_pb2.Submit(spec=spec, slo=slo_pb2.Slo())])
    await router.until(lambda: 2 in router.accepted)
    scheduler.link.interrupt()
    await bench.attached(scheduler, attached=False)
    rest = np.asarray(answer[4:9], dtype="<i4").tobytes()
    forced = attempt_pb2.ForcedTokens(attempt_key=2, first_index=4, ids=rest, final=True)
    router.ids[2] = answer[:9]
    await router.send(forced=[forced])
    await bench.attached(scheduler)
    await router.until(lambda: 2 in router.ended)
    assert (router.ended[2].finish_reason, router.ids[2]) == (LENGTH, answer)
    await router.send(releases=[1, 2])
    await nothing_left(bench, executor, scheduler)


async def test_explain_plan_and_list_tell_why(bench):
    _, _scheduler, router = await bench.pair(policy="edf")
    slo = slo_pb2.Slo(latency=slo_pb2.LatencySlo(ttft_ms=900, tbt_ms=90))
    await router.send(
        submits=[
            bench.submit(1, tokens=bench.ENDLESS, slo=slo),
            bench.submit(2, tokens=bench.ENDLESS, tenant="acme"),
        ]
    )
    await router.until(lambda: len(router.ids.get(1, [])) > 9 and len(router.ids.get(2, [])) > 9)
    explained = await router.stub.ExplainRequest(scheduler_pb2.ExplainRequestRequest(request_id="request-1"))
    assert (explained.policy, explained.position, explained.reason) == ("edf", 0, "deadline")
    assert [e.event for e in explained.timeline][:4] == ["queued", "accepted", "running", "first_token"]
    assert explained.estimates["length_p90"] > explained.estimates["length_p50"] > 0
    assert explained.estimates["step_ms"] > 0
    assert explained.request.slo.latency.tbt_ms == 90
    plan = await router.stub.GetPlan(scheduler_pb2.GetPlanRequest())
    assert [e.request_id for e in plan.entries] == ["request-1", "request-2"]
    assert plan.valid_for_steps >= 1
    assert plan.plan_ms > 0
    listed = await router.stub.ListRequests(scheduler_pb2.ListRequestsRequest(limit=1))
    assert (listed.total, len(listed.requests)) == (2, 1)
    await router.until(lambda: bool(router.loads) and router.loads[-1].tokens_per_s > 0)
    load = (await router.stub.GetLoad(scheduler_pb2.GetLoadRequest())).load
    assert (load.running, load.queued) == (2, 0)
    assert load.model.decode_samples > 0
    assert load.expected_output_tokens > 0
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await router.stub.ExplainRequest(scheduler_pb2.ExplainRequestRequest(request_id="nobody"))
    assert from_rpc_error(caught.value).reason is Reason.NOT_FOUND
    await router.send(cancels=[1, 2])


async def test_a_submit_that_is_repeated_runs_once(bench):
    _, scheduler, router = await bench.pair()
    await router.send(submits=[bench.submit(1, tokens=400, token_limit=20)])
    await router.until(lambda: len(router.ids.get(1, [])) > 3)
    await router.send(
        submits=[bench.submit(1, tokens=400, token_limit=20)],
        credits=[attempt_pb2.Credit(attempt_key=1, token_limit=0)],
    )
    await router.until(lambda: 1 in router.ended)
    assert len(router.ids[1]) == 400
    assert scheduler.loop.state.counts["submitted_again"] == 1


async def test_full_table_refuses_and_invalid_work_is_rejected_below(bench):
    _, _scheduler, router = await bench.pair(2048, max_live=2)
    await router.send(submits=[bench.submit(k, tokens=1900, token_limit=1) for k in (1, 2, 3)])
    await router.until(lambda: 3 in router.ended)
    assert router.ended[3].failure.reason == "QUEUE_FULL"
    await router.send(cancels=[1, 2])
    await router.until(lambda: {1, 2} <= router.ended.keys())
    await router.run_all(bench.submit(4, prompt=5000))
    assert router.ended[4].finish_reason == attempt_pb2.FINISH_REASON_REJECTED
    assert router.ended[4].failure.reason == "CONTEXT_LENGTH_EXCEEDED"


async def test_ended_attempts_nobody_releases_are_bounded(bench):
    executor, scheduler, router = await bench.pair(max_ended=3, ended_ttl_s=60.0)
    await router.run_all(*(bench.submit(k, tokens=2) for k in range(1, 9)))
    await bench.until(lambda: len(scheduler.loop.state.table) == 3)
    assert scheduler.loop.state.counts["ended_forgotten"] == 5
    await bench.until(lambda: len(executor.engine.live_table()) == 3)


async def test_nothing_is_left_after_many_mixed_requests(bench):
    executor, scheduler, router = await bench.pair(2048)
    rng = np.random.default_rng(7)
    other = await bench.router(scheduler, "router-b")
    keys = list(range(1, 301))
    slos = [
        slo_pb2.Slo(latency=slo_pb2.LatencySlo(ttft_ms=500, tbt_ms=50)),
        slo_pb2.Slo(deadline=slo_pb2.DeadlineSlo(e2e_ms=5000)),
        slo_pb2.Slo(task=slo_pb2.TaskSlo(task_id="task", e2e_ms=9000)),
        slo_pb2.Slo(best_effort=slo_pb2.BestEffortSlo()),
    ]
    ends = {1: router, 0: other}
    for start in range(0, len(keys), 25):
        for parity, end in ends.items():
            batch = [k for k in keys[start : start + 25] if k % 2 == parity]
            submits = [
                bench.submit(
                    k,
                    tokens=int(rng.integers(1, 60)),
                    prompt=int(rng.choice([1, 20, 150, 3000], p=[0.2, 0.5, 0.25, 0.05])),
                    slo=slos[k % 4],
                    token_limit=int(rng.choice([0, 5, 100])),
                    max_wait_ms=float(rng.choice([0.0, 20.0, 5000.0])),
                    isolate_until_index=int(rng.choice([0, 3], p=[0.97, 0.03])),
                    tenant=f"tenant-{k % 3}",
                    priority=int(rng.integers(-1, 2)),
                )
                for k in batch
            ]
            await end.send(submits=submits)
            await end.send(cancels=[k for k in batch if rng.random() < 0.3])
        if start == 100:
            scheduler.link.interrupt()
    for parity, end in ends.items():
        mine = {k for k in keys if k % 2 == parity}
        await end.send(credits=[attempt_pb2.Credit(attempt_key=k, token_limit=0) for k in mine])
        await end.until(lambda end=end, mine=mine: mine <= end.ended.keys())
        await end.send(releases=mine)
    await nothing_left(bench, executor, scheduler)
    load = (await router.stub.GetLoad(scheduler_pb2.GetLoadRequest())).load
    assert (load.queued, load.running, load.paused, load.evicted, load.kv_used_tokens) == (0, 0, 0, 0, 0)
    reasons = {e.finish_reason for end in ends.values() for e in end.ended.values()}
    assert reasons >= {LENGTH, CANCELLED, attempt_pb2.FINISH_REASON_REJECTED}


async def test_a_router_that_does_not_read_is_cut_off_and_loses_nothing(bench):
    _, scheduler, router = await bench.pair(session_backlog_bytes=1024)
    session = scheduler.loop.state.sessions.get("router-a")
    session.write_all = None  # unused from here on: what follows is put in without a reader
    batch = attempt_pb2.TokenBatch(attempt_keys=[1], first_indices=[0], counts=[1], payload=b"x" * 2000)
    session.tokens(batch)
    await router.until(lambda: router.error is not None)
    assert isinstance(router.error, grpc.aio.AioRpcError)
    assert from_rpc_error(router.error).reason is Reason.QUEUE_FULL


async def test_a_newer_scheduler_fences_the_older_one_off(bench):
    executor, _first, router = await bench.pair()
    await router.send(submits=[bench.submit(1, tokens=bench.ENDLESS, token_limit=3)])
    await router.until(lambda: len(router.ids.get(1, [])) >= 3)
    await asyncio.sleep(0.002)  # fencing tokens are Unix milliseconds
    second = await bench.scheduler(executor.address)
    await bench.attached(second)
    await router.until(lambda: router.error is not None)
    assert from_rpc_error(router.error).reason is Reason.UNAVAILABLE
    assert not router.lost
    heir = await bench.router(second)
    assert [a.spec.attempt_key for a in heir.acks[0].live] == [1]
    await heir.send(cancels=[1])
    await heir.until(lambda: 1 in heir.ended)


async def test_unknown_policy_is_a_configuration_error(bench):
    executor = await bench.executor()
    with pytest.raises(ConfigError, match="unknown batch policy"):
        await bench.scheduler(executor.address, policy="magic")
    with pytest.raises(ConfigError, match="no parameter"):
        await bench.scheduler(executor.address, policy="sarathi", policy_params={"chunk": 3})


async def test_a_crash_in_the_first_step_makes_a_suspect(bench):
    """No step was reported, but the plan had put it into one."""
    executor = await bench.executor(scale=50.0, max_batch=1)  # a step takes most of a second
    scheduler = await bench.scheduler(executor.address, engine_lost_after_s=0.05)
    router = await bench.router(scheduler)
    await router.send(submits=[bench.submit(1, elapsed_ms=5.0), bench.submit(2)])
    await router.until(lambda: {1, 2} <= router.accepted.keys())
    await bench.until(lambda: list(scheduler.loop.planner.record.plan.attempt_keys) == [1, 2])
    await bench.crash(executor)
    await router.until(lambda: {1, 2} <= router.ended.keys())
    assert router.ended[1].in_flight
    assert not router.ended[2].in_flight


async def test_an_end_waits_for_tokens_that_a_broken_stream_swallowed(bench):
    """Told at the attach that it has ended, but some of its tokens never came: first those, then the end."""
    _, scheduler, router = await bench.pair()
    await router.run_all(bench.submit(1, tokens=30))
    state = scheduler.loop.state
    attempt = state.table.get(1)
    # As if the last report had not arrived: here, and at the router.
    attempt.ended = None
    state.table.generated[attempt.row] = 12
    state.table.alive[attempt.row] = True
    del router.ended[1], router.ids[1][12:]
    scheduler.link.interrupt()
    await router.until(lambda: 1 in router.ended)
    assert len(router.ids[1]) == 30
    assert router.ended[1].finish_reason == LENGTH
    assert "gap 1" not in router.order
