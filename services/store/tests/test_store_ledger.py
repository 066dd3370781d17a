"""Rows go in and come out the same, on both databases."""

import struct
from dataclasses import replace
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import func, select

from paceline_runtime.telemetry.config import TelemetryConfig
from paceline_runtime.telemetry.setup import Telemetry
from paceline_store import (
    AttemptRow,
    CheckpointRow,
    EngineRow,
    EstimateRow,
    OutcomeRow,
    RequestChange,
    RequestRow,
    Row,
    Store,
    StoreRejected,
    TaskCallRow,
    TaskRow,
    tables,
)

REQUEST = RequestRow(
    "r1", "router-0", "model", "tenant", "chat", 1, '{"deadline":{}}', 2, 1_000, b"\0spec\xff"
)
TOP = 2**64 - 1


def tokens(request_id: str, first: int, text: bytes) -> CheckpointRow:
    n = len(text)
    return CheckpointRow(
        request_id, first, n, struct.pack(f"<{n}i", *text), struct.pack(f"<{n}I", *[1] * n), text
    )


async def count(store: Store, table: Any) -> int:
    async with store._database.reading() as connection:
        return int((await connection.execute(select(func.count()).select_from(table))).scalar_one())


async def test_a_request_comes_back_with_attempts_and_tokens(store: Store) -> None:
    request = replace(REQUEST, prompt_ids=b"\1\0\0\0", prompt_tokens=1, max_tokens=64, task_id="task")
    first = AttemptRow("r1", 1, TOP, "cpu-0", TOP, "least predicted", 0, 7, 1_001)
    second = AttemptRow("r1", 2, 0, "cpu-1", 2**63, "replay", 3, 0, 1_002)
    await store.apply(
        [request, second, first, tokens("r1", 3, b"de"), tokens("r1", 0, b"abc"), tokens("r1", 9, b"z")]
    )
    found = await store.get_request("r1")
    assert found is not None
    assert found.request == request
    assert found.attempts == (first, second)
    assert (found.tokens.count, found.tokens.text) == (5, b"abcde")
    assert struct.unpack("<5i", found.tokens.token_ids) == tuple(b"abcde")
    assert await store.has_request("r1")
    assert not await store.has_request("r2")
    assert await store.get_request("r2") is None


async def test_the_last_write_wins_and_a_change_leaves_the_rest_alone(store: Store) -> None:
    await store.apply([REQUEST])
    await store.apply(
        [RequestChange("r1", 4, prompt_ids=b"\2\0\0\0", prompt_tokens=1), RequestChange("nobody", 4)]
    )
    await store.apply([RequestChange("r1", 5)])
    found = await store.get_request("r1")
    assert found is not None
    assert found.request == replace(REQUEST, state=5, prompt_ids=b"\2\0\0\0", prompt_tokens=1)
    await store.apply([replace(REQUEST, state=8, tenant="other")])
    found = await store.get_request("r1")
    assert found is not None
    assert found.request == replace(REQUEST, state=8, tenant="other")
    assert not await store.has_request("nobody")


async def test_writing_twice_does_no_harm_and_a_shorter_checkpoint_takes_nothing_back(store: Store) -> None:
    rows: list[Row] = [REQUEST, tokens("r1", 0, b"abcd"), AttemptRow("r1", 1, 5, "e", 6, "", 0, 0, 1)]
    await store.apply(rows)
    await store.apply(rows)
    await store.apply([tokens("r1", 0, b"ab")])
    await store.apply([tokens("r1", 2, b"cdef")])
    found = await store.get_request("r1")
    assert found is not None
    assert found.tokens.text == b"abcdef"
    assert len(found.attempts) == 1


async def test_unfinished_requests_are_those_a_new_life_adopts(store: Store) -> None:
    await store.apply(
        [
            replace(REQUEST, request_id="late", arrived_unix_ms=3),
            replace(REQUEST, request_id="early", arrived_unix_ms=2),
            replace(REQUEST, request_id="foreign", router_id="router-1"),
            replace(REQUEST, request_id="done", state=8, finished=b"f", finished_unix_ms=5),
            tokens("early", 0, b"xy"),
            tokens("foreign", 0, b"no"),
        ]
    )
    found = await store.unfinished("router-0")
    assert [(one.request.request_id, one.tokens.text) for one in found] == [("early", b"xy"), ("late", b"")]
    await store.apply([RequestChange("early", 8, finished=b"f", finished_unix_ms=6)])
    assert [one.request.request_id for one in await store.unfinished("router-0")] == ["late"]


async def test_the_end_of_a_request_makes_its_checkpoints_one_row(store: Store) -> None:
    await store.apply([REQUEST])
    for first in range(0, 20, 2):
        await store.apply([tokens("r1", first, b"ab")])
    assert await count(store, tables.checkpoints) == 10
    await store.apply([tokens("r1", 20, b"c"), RequestChange("r1", 8, finished=b"f", finished_unix_ms=6)])
    assert await count(store, tables.checkpoints) == 1
    found = await store.get_request("r1")
    assert found is not None
    assert found.tokens.text == b"ab" * 10 + b"c"


async def test_lists_are_paged_newest_first_without_doubles(store: Store) -> None:
    rows = [
        replace(
            REQUEST,
            request_id=f"r{i:02}",
            arrived_unix_ms=1_000 + i // 3,
            tenant="ab"[i % 2],
            state=1 + i % 3,
        )
        for i in range(20)
    ]
    attempt = AttemptRow("r19", 1, 1, "e", 1, "", 0, 0, 1)
    await store.apply([*rows, attempt])
    expected = [
        row.request_id for row in sorted(rows, key=lambda r: (r.arrived_unix_ms, r.request_id), reverse=True)
    ]
    seen: list[str] = []
    before: tuple[int, str] | None = None
    while page := await store.list_requests(7, before=before):
        seen += [one.request.request_id for one in page]
        before = (page[-1].request.arrived_unix_ms, page[-1].request.request_id)
    assert seen == expected
    newest = (await store.list_requests(1))[0]
    assert newest.attempts == (attempt,)
    assert newest.request.spec == b""
    only = await store.list_requests(100, state=1, tenant="a")
    assert {one.request.request_id for one in only} == {
        r.request_id for r in rows if r.state == 1 and r.tenant == "a"
    }


async def test_tasks_come_back_with_their_calls(store: Store) -> None:
    task = TaskRow("t1", "agent", "tenant", 2_000.5, 10, router_id="router-0")
    calls = [TaskCallRow("t1", "r2", 1, '["r1"]'), TaskCallRow("t1", "r1", 0, "[]")]
    await store.apply([task, *calls, replace(task, task_id="t2", ended_unix_ms=20, attained=False)])
    found = await store.get_task("t1")
    assert found is not None
    assert found.task == task
    assert [call.request_id for call in found.calls] == ["r1", "r2"]
    assert [one.task.task_id for one in await store.open_tasks("router-0")] == ["t1"]
    await store.apply([replace(task, ended_unix_ms=30, attained=True, calls=2)])
    assert await store.open_tasks("router-0") == []
    again = await store.get_task("t1")
    assert again is not None
    assert (again.task.attained, again.task.calls) == (True, 2)
    assert await store.get_task("t3") is None


async def test_every_kind_of_row_is_stored(store: Store) -> None:
    rows: list[tuple[Row, Any]] = [
        (EngineRow("cpu-0", TOP, "127.0.0.1:7420", b"caps", 5, None), tables.engines),
        (EstimateRow("r1", 50, "histogram", "v1", 10.5, 99.0, b"\0\0\x80\x3f"), tables.estimates),
        (OutcomeRow("r1", 12, None, 10.25, None, 100.0, 12), tables.outcomes),
    ]
    await store.apply([row for row, _ in rows])
    for row, table in rows:
        async with store._database.reading() as connection:
            found = (await connection.execute(select(table))).one()
        assert type(row)(**found._mapping) == row


async def test_pruning_takes_old_ended_work_with_everything_that_belongs_to_it(store: Store) -> None:
    ended = {"state": 8, "finished": b"f"}
    await store.apply(
        [
            replace(REQUEST, request_id="old", finished_unix_ms=10, **ended),  # type: ignore[arg-type]
            replace(REQUEST, request_id="new", finished_unix_ms=100, **ended),  # type: ignore[arg-type]
            replace(REQUEST, request_id="live"),
            *(tokens(name, 0, b"a") for name in ("old", "new", "live")),
            OutcomeRow("old", 1, True, 1, 1, 1, 1),
            TaskRow("t-old", "a", "t", 0, 1, 10),
            TaskCallRow("t-old", "old", 0, "[]"),
            TaskRow("t-live", "a", "t", 0, 1),
            EngineRow("e", 1, "", b"", 1, 10),
            EngineRow("e", 2, "", b"", 1, None),
        ]
    )
    assert await store.prune(50) == 3
    assert [one.request.request_id for one in await store.list_requests(10)] == ["new", "live"]
    assert await count(store, tables.checkpoints) == 2
    assert await count(store, tables.outcomes) == 0
    assert await count(store, tables.task_calls) == 0
    assert await count(store, tables.engines) == 1
    assert await store.get_task("t-live") is not None
    assert await store.prune(50) == 0


async def test_statements_are_traced_without_their_values(backend: Any) -> None:
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    telemetry = Telemetry(TelemetryConfig(), "test")
    telemetry.tracer = provider.get_tracer("test")
    traced = await Store.open(backend.url, telemetry=telemetry)
    spans.clear()
    await traced.apply([replace(REQUEST, request_id="secret-id")])
    await traced.close()
    telemetry.shutdown()
    texts = [str(dict(span.attributes or {})) for span in spans.get_finished_spans()]
    assert any("INSERT INTO requests" in text for text in texts)
    assert not any("secret-id" in text for text in texts)


async def test_states_of_learners_are_kept_by_name(store: Store, other_store: Store) -> None:
    assert await store.load_state("predictor") is None
    await store.save_state("predictor", b"one")
    await store.save_state("predictor", b"\0two")
    assert await other_store.load_state("predictor") == b"\0two"
    assert await other_store.load_state("other") is None


async def test_a_number_that_does_not_fit_is_refused_not_retried(store: Store) -> None:
    with pytest.raises(StoreRejected):
        await store.apply([AttemptRow("r1", 1, TOP + 1, "e", 1, "", 0, 0, 1)])
    await store.apply([REQUEST])
