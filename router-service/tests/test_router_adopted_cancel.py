"""A cancel that overtakes the tokens of an adopted request: the end still counts what the client has had."""

from paceline.common.v1 import attempt_pb2
from paceline_router.scheduler_link import SchedulerLink


async def test_a_cancelled_request_ends_with_the_tokens_of_its_earlier_life(line, endless, monkeypatch):
    await line.engine("e0", time_scale=0.1)
    router = await line.router(store=True)
    session = await router.session()
    before = await session.submit(endless(request_id="r"), token_limit=30)
    await session.until(lambda: before.count == 30)
    await line.stop(router.app)
    await session.closed()

    held: list[tuple[SchedulerLink, int, int]] = []
    with monkeypatch.context() as slow:
        slow.setattr(SchedulerLink, "republish", lambda link, key, index: held.append((link, key, index)))
        router = await line.router(store=True, wait=False)
        session = await router.session()
        after = await session.attach("r", before.count)
        await line.until(lambda: held)
        request = router.app.ledger.find("r")
        attempt = request.attempt
        await session.cancel(after)
        await line.until(lambda: attempt.ended is not None or request.ended)
        assert not request.ended, "it ended without the tokens that its client has"
    for link, key, index in held:
        link.republish(key, index)
    await session.ended(after)
    assert after.reason == attempt_pb2.FINISH_REASON_CANCELLED
    assert after.finished.output_tokens == after.count >= before.count
    record = await router.record("r")
    assert record.output_tokens == after.count
