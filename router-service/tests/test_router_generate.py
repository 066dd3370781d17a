"""Requests from clients to engines and back, over real sockets."""

import asyncio

import pytest

from paceline.common.v1 import attempt_pb2, slo_pb2
from paceline.router.v1 import generation_pb2, router_pb2
from paceline_runtime.errors import PacelineError, Reason

LENGTH = attempt_pb2.FINISH_REASON_LENGTH


async def test_generate_streams_an_answer_with_its_decision_and_outcome(line, spec):
    await line.engine("e0")
    router = await line.router()
    answer = await router.generate(spec(tokens=24, request_id="mine", app="chat"))
    assert answer.accepted.request_id == "mine"
    assert answer.accepted.engine_id == "e0"
    assert answer.accepted.slo.WhichOneof("target") == "latency"
    assert answer.accepted.prompt_tokens > 0
    assert answer.accepted.estimate_source == "fallback"
    assert answer.count == 24
    assert answer.reason == LENGTH
    assert answer.text
    assert answer.finished.output_tokens == 24
    assert answer.finished.attempts == 1
    assert answer.finished.outcome.tokens == 24
    assert answer.finished.outcome.slo_class == slo_pb2.SLO_CLASS_LATENCY
    assert 0 < answer.finished.outcome.ttft_ms <= answer.finished.outcome.ttlt_ms


async def test_a_session_carries_many_requests_at_once(line, spec):
    for name in ("e0", "e1"):
        await line.engine(name)
    router = await line.router(placement="round-robin")
    session = await router.session()
    answers = [await session.submit(spec(f"prompt {i}", 8 + i, request_id=f"r{i}")) for i in range(20)]
    await session.ended(*answers)
    assert [a.count for a in answers] == [8 + i for i in range(20)]
    assert {a.accepted.engine_id for a in answers} == {"e0", "e1"}
    await session.done_writing()
    await session.closed()
    assert session.error is None


async def test_the_same_request_gives_the_same_tokens_wherever_and_however_it_runs(line, spec):
    for name in ("e0", "e1"):
        await line.engine(name)
    router = await line.router(placement="round-robin")
    alone = await router.generate(spec("same", 32))
    session = await router.session()
    others = [await session.submit(spec("same", 32)) for _ in range(6)]
    await session.ended(*others)
    assert all(other.ids == alone.ids and other.text == alone.text for other in others)


async def test_token_ids_and_messages_are_inputs_too(line, spec):
    await line.engine("e0")
    router = await line.router()
    ids = b"".join(i.to_bytes(4, "little") for i in range(3, 40))
    by_ids = await router.generate(spec(token_ids=ids))
    assert by_ids.finished.prompt_tokens == 37
    messages = generation_pb2.Messages(messages=[generation_pb2.Message(role="user", content="hi")])
    by_chat = await router.generate(spec(messages=messages))
    assert by_chat.count == 16


async def test_what_is_not_streamed_gets_a_deadline_and_best_effort_must_be_asked_for(line, spec):
    await line.engine("e0")
    router = await line.router()
    answer = await router.generate(spec(streaming=False))
    assert answer.accepted.slo.deadline.e2e_ms >= 5000
    best = await router.generate(spec(slo=slo_pb2.Slo(best_effort=slo_pb2.BestEffortSlo())))
    assert best.accepted.slo.WhichOneof("target") == "best_effort"
    assert best.finished.outcome.attained


async def test_tokens_after_the_first_travel_together(line, spec):
    await line.engine("e0", time_scale=0.02)
    router = await line.router(coalesce_ms=600_000.0)
    answer = await router.generate(spec(tokens=200))
    assert answer.count == 200
    assert answer.messages < 5  # the first one, and what is there at the end


async def test_attach_after_the_end_reads_from_any_index(line, spec):
    await line.engine("e0")
    router = await line.router()
    whole = await router.generate(spec(tokens=30, request_id="past"))
    for start in (0, 1, 29, 30):
        tail = await router.attach("past", start)
        assert tail.ids == whole.ids[start:]
        assert whole.text.endswith(tail.text)
        assert tail.finished == whole.finished
    with pytest.raises(PacelineError, match="past them") as caught:
        await router.attach("past", 31)
    assert caught.value.reason is Reason.INVALID_ARGUMENT


async def test_a_broken_stream_is_continued_by_attach(line, spec):
    await line.engine("e0", time_scale=0.2)
    router = await line.router()
    request = router_pb2.GenerateRequest(spec=spec(tokens=120, request_id="broken"))
    call = router.stub.Generate(request)
    from_start = router.tape()
    await router.read(call, from_start, until=lambda: from_start.count >= 10)
    call.cancel()
    rest = await router.attach("broken", from_start.count)
    assert from_start.count + len(rest.ids) == 120
    assert rest.reason == LENGTH
    again = await router.generate(spec(tokens=120))
    assert from_start.ids + rest.ids == again.ids
    assert from_start.text + rest.text == again.text


async def test_a_request_nobody_returns_to_is_cancelled(line, endless):
    await line.engine("e0", time_scale=1.0)
    router = await line.router(detach_ttl_s=0.2)
    session = await router.session()
    left = await session.submit(endless(request_id="left"))
    await session.until(lambda: left.count > 0)
    await session.hang_up()
    await router.until(lambda: router.app.ledger.live_count == 0)
    record = await router.record("left")
    assert record.state == attempt_pb2.REQUEST_STATE_CANCELLED


async def test_on_disconnect_cancel_ends_at_once(line, endless):
    await line.engine("e0", time_scale=1.0)
    router = await line.router()
    session = await router.session()
    cancel = generation_pb2.ON_DISCONNECT_CANCEL
    left = await session.submit(endless(request_id="left", on_disconnect=cancel))
    await session.until(lambda: left.count > 0)
    await session.hang_up()
    await router.until(lambda: router.app.ledger.live_count == 0)
    assert (await router.record("left")).state == attempt_pb2.REQUEST_STATE_CANCELLED


async def test_several_may_read_the_same_request(line, spec):
    await line.engine("e0", time_scale=0.2)
    router = await line.router()
    session = await router.session()
    one = await session.submit(spec(tokens=60, request_id="shared"), token_limit=40)
    await session.until(lambda: one.count >= 5)
    # Credit is what the furthest reader allows: with those two it can end.
    two, three = await asyncio.gather(router.attach("shared"), router.attach("shared", 3))
    await session.credit(one, 60)
    await session.ended(one)
    assert two.ids == one.ids
    assert three.ids == one.ids[3:]
