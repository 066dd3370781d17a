"""What goes down to the executor in one message, and in which order."""

import asyncio

from paceline.common.v1 import attempt_pb2
from paceline.executor.v1 import executor_pb2
from paceline_scheduler.outbox import CommandOutbox

LARGEST_MESSAGE_BYTES = 16 * 1024 * 1024


async def test_a_flood_of_long_prompts_goes_in_messages_that_the_transport_takes():
    outbox = CommandOutbox()
    for key in range(500):
        spec = attempt_pb2.AttemptSpec(attempt_key=key, text="x" * 50_000)
        outbox.add(executor_pb2.AddAttempt(spec=spec))
    outbox.cancel(499)
    outbox.plan(executor_pb2.Plan(plan_id=3))
    outbox.flush()
    added: list[int] = []
    async with asyncio.timeout(60):
        while True:
            request = await outbox.take()
            assert request.ByteSize() < LARGEST_MESSAGE_BYTES
            added += [add.spec.attempt_key for add in request.commands.adds]
            if request.commands.cancels:
                break
    assert added == list(range(500))
    assert request.commands.plan.plan_id == 3
