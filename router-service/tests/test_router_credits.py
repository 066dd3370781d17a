"""Credits: a client that takes nothing pauses its own requests and nobody else's."""

import grpc

from paceline.common.v1 import attempt_pb2
from paceline.router.v1 import router_pb2, router_pb2_grpc


async def test_a_request_stops_at_its_credit_and_goes_on_with_more(line, spec):
    await line.engine("e0", time_scale=0.02)
    router = await line.router()
    session = await router.session()
    paused = await session.submit(spec("slow", 100), token_limit=10)
    await session.until(lambda: paused.count == 10)
    other = await session.submit(spec("fast", 300))
    await session.ended(other)
    assert paused.count == 10
    live = next(router.app.ledger.live())
    # What the engine made beyond the credit are the steps that were in flight, no more.
    assert live.output.count < 30
    await session.credit(paused, 60)
    await session.until(lambda: paused.count == 60)
    await session.credit(paused, 0)
    await session.ended(paused)
    assert paused.count == 100
    alone = await router.generate(spec("slow", 100))
    assert paused.ids == alone.ids


async def test_the_end_waits_for_credit_too(line, spec):
    await line.engine("e0")
    router = await line.router()
    session = await router.session()
    answer = await session.submit(spec(tokens=12, request_id="r"), token_limit=11)
    await session.until(lambda: answer.count == 11)
    assert answer.finished is None
    await session.credit(answer, 12)
    await session.ended(answer)
    assert answer.count == 12


async def test_a_request_runs_at_most_a_window_ahead_of_its_reader(line, spec):
    await line.engine("e0", time_scale=0.02)
    router = await line.router(window_tokens=32)
    session = await router.session()
    answer = await session.submit(spec(tokens=1500))
    await session.ended(answer)
    assert answer.count == 1500


async def test_a_slow_reader_does_not_hold_up_a_fast_one(line, spec):
    await line.engine("e0", time_scale=0.02)
    router = await line.router(window_tokens=64)
    session = await router.session()
    slow = await session.submit(spec(tokens=400, request_id="shared"), token_limit=5)
    fast = await session.attach("shared")
    await session.ended(fast)
    assert fast.count == 400
    assert slow.count == 5
    assert slow.finished is None


async def test_a_client_that_stops_reading_pauses_its_requests_alone(line, spec):
    await line.engine("e0", time_scale=0.005, context_tokens=8192)
    router = await line.router(window_tokens=128)
    # A small fixed window: by default the transport itself would take in megabytes for a client that does not
    # read.
    options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536)]
    narrow = grpc.aio.insecure_channel(router.app.address, options)
    stuck = router_pb2_grpc.RouterServiceStub(narrow).Session()
    await stuck.write(router_pb2.SessionRequest(open=router_pb2.SessionOpen(client_id="stuck")))
    batch = router_pb2.SessionBatch(
        submits=[
            router_pb2.SessionSubmit(stream_id=i + 1, spec=spec(f"p{i}", 6000, request_id=f"s{i}"))
            for i in range(16)
        ]
    )
    await stuck.write(router_pb2.SessionRequest(batch=batch))
    session = await router.session()
    answer = await session.submit(spec(tokens=200))
    await session.ended(answer)
    assert answer.reason == attempt_pb2.FINISH_REASON_LENGTH

    def all_paused():
        live = [r for r in router.app.ledger.live() if r.attempt is not None]
        return len(live) == 16 and all(r.output.count >= r.attempt.token_limit - 1 > 0 for r in live)

    await line.until(all_paused)
    for live in router.app.ledger.live():
        assert live.output.count - live.outlets[0].sent <= 128 + 16
    assert (await router.generate(spec(tokens=50))).count == 50
    stuck.cancel()
    await narrow.close()
