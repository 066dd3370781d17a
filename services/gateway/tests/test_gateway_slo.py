"""What clients declare about time, in every form."""

from typing import Any

import httpx
import pytest
from fake_router import FakeRouter

from paceline.common.v1 import slo_pb2
from paceline_gateway.slo_declaration import declared_slo
from paceline_runtime.errors import PacelineError, Reason

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}]}


def _latency(ttft_ms: float, tbt_ms: float, **rest: Any) -> slo_pb2.Slo:
    return slo_pb2.Slo(latency=slo_pb2.LatencySlo(ttft_ms=ttft_ms, tbt_ms=tbt_ms), **rest)


def _deadline(e2e_ms: float, **rest: Any) -> slo_pb2.Slo:
    return slo_pb2.Slo(deadline=slo_pb2.DeadlineSlo(e2e_ms=e2e_ms), **rest)


CASES: list[tuple[dict[str, str], slo_pb2.Slo | None]] = [
    ({}, None),
    ({"content-type": "x", "x-slow": "1"}, None),
    ({"x-slo-class": "latency", "x-slo-ttft-ms": "500", "x-slo-tbt-ms": "50.5"}, _latency(500, 50.5)),
    ({"X-SLO-Class": " Latency ", "X-SLO-TTFT-ms": "5e2", "X-Slo-Tpot-Ms": "50"}, _latency(500, 50)),
    ({"x-slo-ttft-ms": "500", "x-slo-tbt-ms": "50"}, _latency(500, 50)),
    ({"x-slo-tbt-ms": "50", "x-slo-tpot-ms": "50", "x-slo-ttft-ms": "1"}, _latency(1, 50)),
    ({"x-slo-class": "deadline", "x-slo-e2e-ms": "2000"}, _deadline(2000)),
    ({"x-slo-e2e-ms": "2000"}, _deadline(2000)),
    ({"x-slo-e2e-ms": "2000", "x-slo-on-miss": "drop"}, _deadline(2000, on_miss=slo_pb2.ON_MISS_DROP)),
    ({"x-slo-on-miss": "finish"}, slo_pb2.Slo(on_miss=slo_pb2.ON_MISS_FINISH)),
    ({"x-slo-class": "best-effort"}, slo_pb2.Slo(best_effort=slo_pb2.BestEffortSlo())),
    ({"x-slo-class": "best_effort"}, slo_pb2.Slo(best_effort=slo_pb2.BestEffortSlo())),
    ({"x-slo-program-id": "p:1"}, slo_pb2.Slo(task=slo_pb2.TaskSlo(task_id="p:1"))),
    (
        {
            "x-slo-class": "task",
            "x-slo-program-id": "p",
            "x-slo-program-deadline-ms": "9000",
            "x-slo-program-final": "True",
            "x-slo-program-stage": "search",
            "x-slo-program-parents": "a, b",
        },
        slo_pb2.Slo(
            task=slo_pb2.TaskSlo(
                task_id="p", e2e_ms=9000, final=True, stage="search", parent_request_ids=["a", "b"]
            )
        ),
    ),
]


@pytest.mark.parametrize(("said", "expected"), CASES)
@pytest.mark.parametrize("place", ["headers", "metadata"])
def test_declarations(said: dict[str, str], expected: slo_pb2.Slo | None, place: str) -> None:
    slo = declared_slo(said.items(), None) if place == "headers" else declared_slo([], said)
    assert slo == expected


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ({"x-slo-class": "urgent"}, "x-slo-class"),
        ({"x-slo-class": ""}, "x-slo-class"),
        ({"x-slo-speed": "fast"}, "x-slo-speed"),
        ({"x-slo-ttft-ms": "-5"}, "x-slo-ttft-ms"),
        ({"x-slo-ttft-ms": "0", "x-slo-tbt-ms": "1"}, "x-slo-ttft-ms"),
        ({"x-slo-ttft-ms": "nan", "x-slo-tbt-ms": "1"}, "x-slo-ttft-ms"),
        ({"x-slo-e2e-ms": "inf"}, "x-slo-e2e-ms"),
        ({"x-slo-e2e-ms": "1e300"}, "x-slo-e2e-ms"),
        ({"x-slo-e2e-ms": "soon"}, "x-slo-e2e-ms"),
        ({"x-slo-e2e-ms": ""}, "x-slo-e2e-ms"),
        ({"x-slo-e2e-ms": "1_000"}, "x-slo-e2e-ms"),
        ({"x-slo-e2e-ms": "٣"}, "x-slo-e2e-ms"),
        ({"x-slo-ttft-ms": "500"}, "x-slo-tbt-ms"),
        ({"x-slo-class": "latency", "x-slo-tbt-ms": "5"}, "x-slo-ttft-ms"),
        ({"x-slo-class": "deadline"}, "x-slo-e2e-ms"),
        ({"x-slo-class": "task"}, "x-slo-program-id"),
        ({"x-slo-program-deadline-ms": "5"}, "x-slo-program-id"),
        ({"x-slo-ttft-ms": "5", "x-slo-tbt-ms": "5", "x-slo-e2e-ms": "5"}, "x-slo-e2e-ms"),
        ({"x-slo-class": "latency", "x-slo-e2e-ms": "5"}, "x-slo-e2e-ms"),
        ({"x-slo-class": "deadline", "x-slo-e2e-ms": "5", "x-slo-program-id": "p"}, "x-slo-program-id"),
        ({"x-slo-class": "best-effort", "x-slo-e2e-ms": "5"}, "x-slo-e2e-ms"),
        ({"x-slo-program-id": "p", "x-slo-e2e-ms": "5"}, "x-slo-program-id"),
        ({"x-slo-program-id": "a b"}, "x-slo-program-id"),
        ({"x-slo-program-id": "p", "x-slo-program-final": "maybe"}, "x-slo-program-final"),
        ({"x-slo-on-miss": "panic"}, "x-slo-on-miss"),
        ({"x-slo-tbt-ms": "5", "x-slo-tpot-ms": "6"}, "x-slo-tpot-ms"),
    ],
)
def test_refused(said: dict[str, str], names: str) -> None:
    with pytest.raises(PacelineError) as caught:
        declared_slo(said.items(), None)
    assert caught.value.reason is Reason.INVALID_SLO
    assert caught.value.metadata["field"] == names
    assert names in caught.value.message


def test_header_and_metadata_must_agree() -> None:
    assert declared_slo([("x-slo-e2e-ms", "5")], {"x-slo-e2e-ms": 5, "other": [1]}) == _deadline(5)
    with pytest.raises(PacelineError, match="x-slo-e2e-ms says '6'"):
        declared_slo([("x-slo-e2e-ms", "5")], {"x-slo-e2e-ms": "6"})
    with pytest.raises(PacelineError, match="says"):
        declared_slo([("x-slo-e2e-ms", "5"), ("x-slo-e2e-ms", "7")], None)


async def test_over_http_and_back(client: httpx.AsyncClient, router: FakeRouter) -> None:
    headers = {
        "x-request-id": "mine",
        "x-slo-e2e-ms": "2000",
        "x-paceline-app": "search",
        "x-paceline-durability": "sync",
        "x-paceline-priority": "-7",
        "x-paceline-max-wait-ms": "100",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }
    reply = await client.post("/v1/chat/completions", json=CHAT, headers=headers)
    assert reply.status_code == 200
    spec = router.only().spec
    assert spec.slo == _deadline(2000)
    assert (spec.request_id, spec.app, spec.durability, spec.priority, spec.max_wait_ms) == (
        "mine",
        "search",
        3,
        -7,
        100,
    )
    assert "0af7651916cd43dd8448eb211c80319c" in spec.traceparent
    assert reply.headers["x-request-id"] == "mine"
    assert reply.headers["x-slo-class"] == "deadline"
    assert reply.headers["x-slo-e2e-ms"] == "2000"
    assert reply.headers["x-paceline-engine"] == "cpu-0"
    assert reply.headers["x-paceline-predicted-ms"] == "1234.5"
    assert reply.headers["x-paceline-estimate-source"] == "fallback"


async def test_default_is_the_routers(client: httpx.AsyncClient, router: FakeRouter) -> None:
    body = CHAT | {"stream": True, "metadata": {"topic": "weather"}}
    reply = await client.post("/v1/chat/completions", json=body)
    assert not router.only().spec.HasField("slo")
    assert reply.headers["x-slo-class"] == "latency"
    assert (reply.headers["x-slo-ttft-ms"], reply.headers["x-slo-tbt-ms"]) == ("500", "50")
    assert reply.headers["content-type"].startswith("text/event-stream")


async def test_metadata_over_http(client: httpx.AsyncClient, router: FakeRouter) -> None:
    body = CHAT | {"metadata": {"x-slo-ttft-ms": "300", "x-slo-tpot-ms": "30"}}
    assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
    assert router.only().spec.slo == _latency(300, 30)
