"""The service over real gRPC against the real executor service with a simulated engine."""

from paceline.common.v1 import attempt_pb2


async def test_submit_runs_to_its_end_and_leaves_nothing(bench):
    executor, scheduler, router = await bench.pair()
    await router.run_all(bench.submit(1, tokens=20))
    assert router.accepted[1].prompt_ids == bench.submit(1).spec.token_ids
    assert len(router.ids[1]) == 20
    ended = router.ended[1]
    assert ended.finish_reason == attempt_pb2.FINISH_REASON_LENGTH
    assert (ended.output_tokens, ended.prompt_tokens) == (20, 32)
    await router.send(releases=[1])
    await bench.until(lambda: not len(scheduler.loop.state.table) and not executor.engine.live_table())
