"""A scheduler for tests: speaks the control stream over a real socket and checks what must always hold."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import grpc
import numpy as np

from paceline.common.v1 import attempt_pb2
from paceline.executor.v1 import executor_pb2, executor_pb2_grpc

PATIENCE_S = 300.0


def id_bytes(ids: Iterable[int]) -> bytes:
    return np.array(list(ids), "<i4").tobytes()


def ids_of(data: bytes) -> list[int]:
    ids: list[int] = np.frombuffer(data, "<i4").tolist()
    return ids


def rows_of(batch: attempt_pb2.TokenBatch) -> Iterable[tuple[int, int, list[int], list[str]]]:
    """(key, first index, ids, pieces) of each row. A piece that splits a character fails to decode."""
    payload = attempt_pb2.TokenPayload.FromString(batch.payload)
    ids = ids_of(payload.token_ids)
    lengths = np.frombuffer(payload.text_lengths, "<u4").tolist()
    assert len(ids) == len(lengths) == sum(batch.counts)
    assert sum(lengths) == len(payload.text)
    token = text = 0
    for key, first, count in zip(batch.attempt_keys, batch.first_indices, batch.counts, strict=True):
        pieces = []
        for length in lengths[token : token + count]:
            pieces.append(payload.text[text : text + length].decode())
            text += length
        yield key, first, ids[token : token + count], pieces
        token += count


class Peer:
    """One control stream. Everything that comes is kept; `until` waits for a condition on it."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.aio.insecure_channel(
            address,
            [
                ("grpc.use_local_subchannel_pool", 1),
                # Little is buffered on the way, so that a peer that does not read is felt.
                ("grpc.http2.bdp_probe", 0),
            ],
        )
        self.stub = executor_pb2_grpc.ExecutorServiceStub(self.channel)
        self.attached = executor_pb2.Attached()
        self.accepted: dict[int, attempt_pb2.AttemptAccepted] = {}
        self.ended: dict[int, attempt_pb2.AttemptEnded] = {}
        self.end_order: list[int] = []
        self.ids: dict[int, dict[int, int]] = {}
        self.pieces: dict[int, dict[int, str]] = {}
        self.republished: dict[int, dict[int, tuple[int, str]]] = {}
        self.steps: list[executor_pb2.StepReport] = []
        self.states: dict[int, int] = {}
        self.tickets: dict[int, executor_pb2.IssuedTicket] = {}
        self.deviations: list[executor_pb2.Deviation] = []
        self.kv = executor_pb2.KvUse()
        self.error: grpc.aio.AioRpcError | None = None
        self._call: Any = None
        self._reader: asyncio.Task[None] | None = None
        self._changed = asyncio.Condition()
        self._plan_id = 0

    async def attach(self, token: int = 1, *, read: bool = True) -> "Peer":
        self._call = self.stub.Run()
        await self._call.write(
            executor_pb2.RunRequest(attach=executor_pb2.Attach(scheduler_id="test", fencing_token=token))
        )
        first = await asyncio.wait_for(self._call.read(), PATIENCE_S)
        if first is grpc.aio.EOF:
            # Reading the status raises nothing; a call that ended says why.
            raise AssertionError(f"not attached: {await self._call.code()} {await self._call.details()}")
        self.attached = first.attached
        self.kv = executor_pb2.KvUse()
        if read:
            self.read()
        return self

    def read(self) -> None:
        """Start to read what comes."""
        self._reader = asyncio.create_task(self._read())

    def live(self) -> dict[int, executor_pb2.LiveAttempt]:
        """The live table at the attach."""
        return {row.spec.attempt_key: row for row in self.attached.live}

    async def send(self, **commands: Any) -> None:
        await self._call.write(executor_pb2.RunRequest(commands=executor_pb2.Commands(**commands)))

    async def add(self, key: int, prompt: str | list[int] | None = "Tell me a story.", **fields: Any) -> None:
        await self.send(adds=[new_attempt(key, prompt, **fields)])

    async def plan(self, *keys: int, **fields: Any) -> None:
        self._plan_id += 1
        await self.send(plan=executor_pb2.Plan(plan_id=self._plan_id, attempt_keys=keys, **fields))

    async def run(self, *adds: executor_pb2.AddAttempt) -> None:
        """Add all, list all in order, wait for all the ends."""
        await self.send(adds=adds)
        keys = [add.spec.attempt_key for add in adds]
        await self.plan(*keys)
        await self.until_ended(*keys)

    async def until(self, done: Callable[[], bool], what: str = "") -> None:
        async def wait() -> None:
            async with self._changed:
                await self._changed.wait_for(lambda: done() or self.error is not None)

        try:
            await asyncio.wait_for(wait(), PATIENCE_S)
        except TimeoutError:
            raise AssertionError(f"not in time: {what} {self.states} {self.counts()} {self.ended}") from None
        assert done(), f"the stream ended: {self.error}"

    async def until_ended(self, *keys: int) -> None:
        await self.until(lambda: all(key in self.ended for key in keys), f"ends of {keys}")

    async def until_count(self, key: int, count: int) -> None:
        await self.until(lambda: len(self.ids.get(key, {})) >= count, f"{count} tokens of {key}")

    async def until_state(self, key: int, state: int) -> None:
        await self.until(lambda: self.states.get(key) == state, f"state {state} of {key}")

    def counts(self) -> dict[int, int]:
        return {key: len(ids) for key, ids in self.ids.items()}

    def output(self, key: int) -> list[int]:
        ids = self.ids.get(key, {})
        return [ids[index] for index in sorted(ids)]

    def text(self, key: int) -> str:
        pieces = self.pieces.get(key, {})
        return "".join(pieces[index] for index in sorted(pieces))

    async def republish(self, key: int, from_index: int) -> dict[int, tuple[int, str]]:
        """Ask again, wait until everything from that index on is there."""
        self.republished.pop(key, None)
        await self.send(republishes=[attempt_pb2.Republish(attempt_key=key, from_index=from_index)])
        await self.until(lambda: key in self.republished, f"republished {key}")
        return self.republished[key]

    async def break_stream(self) -> None:
        """End the stream without a word."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
            self._reader = None
        if self._call is not None:
            self._call.cancel()

    async def close(self) -> None:
        await self.break_stream()
        await self.channel.close()

    async def _read(self) -> None:
        try:
            while True:
                message = await self._call.read()
                if message is grpc.aio.EOF:
                    code = await self._call.code()
                    self.error = grpc.aio.AioRpcError(
                        code, await self._call.initial_metadata(), await self._call.trailing_metadata(),
                        await self._call.details(),
                    )  # fmt: skip
                    return
                self._take(message.report)
                async with self._changed:
                    self._changed.notify_all()
        except grpc.aio.AioRpcError as error:
            self.error = error
        finally:
            async with self._changed:
                self._changed.notify_all()

    def _take(self, report: executor_pb2.Report) -> None:
        for accepted in report.accepted:
            self.accepted[accepted.attempt_key] = accepted
        for step in report.steps:
            self.steps.append(step)
            for key, first, ids, pieces in rows_of(step.tokens):
                known, texts = self.ids.setdefault(key, {}), self.pieces.setdefault(key, {})
                assert key not in self.ended, f"{key} made a token after its end"
                for index, (token, piece) in enumerate(zip(ids, pieces, strict=True), first):
                    assert index not in known, f"token {index} of {key} came twice"
                    assert not known or index - 1 in known, f"token {index} of {key} came out of order"
                    known[index], texts[index] = token, piece
            self.states.update(zip(step.progress_keys, step.progress_states, strict=True))
        for batch in report.republished:
            for key, first, ids, pieces in rows_of(batch):
                self.republished[key] = dict(enumerate(zip(ids, pieces, strict=True), first))
        for ended in report.ended:
            if ended.attempt_key not in self.ended:
                self.end_order.append(ended.attempt_key)
            self.ended[ended.attempt_key] = ended
        for ticket in report.tickets:
            self.tickets[ticket.attempt_key] = ticket
        self.deviations.extend(report.deviations)
        if report.HasField("kv"):
            self.kv = report.kv


def new_attempt(
    key: int, prompt: str | list[int] | None = "Tell me a story.", *, context: bytes = b"", forced: Iterable[int] = (),
    max_tokens: int = 24, ignore_eos: bool = True, sampling: dict[str, Any] | None = None, **fields: Any,
) -> executor_pb2.AddAttempt:  # fmt: skip
    """An attempt that by default goes on to max_tokens, so that its length is known."""
    spec = attempt_pb2.AttemptSpec(
        attempt_key=key,
        request_id=f"request-{key}",
        max_tokens=max_tokens,
        forced_ids=id_bytes(forced),
        sampling=attempt_pb2.SamplingParams(ignore_eos=ignore_eos, seed=7, **(sampling or {})),
        **fields,
    )
    if isinstance(prompt, str):
        spec.text = prompt
    elif prompt is not None:
        spec.token_ids = id_bytes(prompt)
    return executor_pb2.AddAttempt(spec=spec, context=context)
