"""The router as a process, its drain, and what it shows of itself."""

import asyncio
import signal
import sys

import grpc
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from paceline.common.v1 import attempt_pb2
from paceline.router.v1 import generation_pb2, router_pb2, router_pb2_grpc
from paceline_core.slo import Slo, SloClass
from paceline_router.config import Config
from paceline_router.observation import RequestSpans
from paceline_router.request import Arrival, LiveRequest
from paceline_router.states import State
from paceline_runtime.config import load_config
from paceline_runtime.config_model import ConfigError
from paceline_runtime.errors import Reason

STARTED_S = 120.0
"""A process takes seconds of CPU time to import what it needs, and on a busy machine it gets little."""


async def start(folder, *sets, router_id="p"):
    """A router process and the address it serves at."""
    ready = folder / "address"
    command = [sys.executable, "-m", "paceline_router", "--set", "router.listen=127.0.0.1:0"]
    for item in (
        f"router.server.address_file={ready}",
        f"router.router_id={router_id}",
        "router.server.drain_grace_s=1.0",
        "router.detach_ttl_s=600",
        "router.scheduler_grace_s=600",
        "router.heartbeat_lost_s=600",
        "router.leave_out_after_ms=600000",
        *sets,
    ):
        command += ["--set", item]
    process = await asyncio.create_subprocess_exec(*command)
    try:
        async with asyncio.timeout(STARTED_S):
            while not ready.exists():
                assert process.returncode is None
                await asyncio.sleep(0.02)
    except BaseException:
        if process.returncode is None:
            process.kill()
            await process.wait()
        raise
    return process, ready.read_text()


async def engine_is_up(stub):
    """The process serves before its schedulers have answered."""
    async with asyncio.timeout(STARTED_S):
        while True:
            listed = await stub.ListEngines(router_pb2.ListEnginesRequest())
            if any(engine.state == router_pb2.ENGINE_STATE_UP for engine in listed.engines):
                return
            await asyncio.sleep(0.02)


async def finish(process):
    async with asyncio.timeout(STARTED_S):
        return await process.wait()


@pytest.mark.timeout(4 * STARTED_S)
async def test_kill_9_of_the_process_loses_nothing(line, spec, tmp_path):
    await line.engine("e0", time_scale=0.1)
    sets = [
        f'router.schedulers=["{line.schedulers["e0"].address}"]',
        f"store.url=sqlite+aiosqlite:///{tmp_path / 'p.db'}",
    ]
    process, address = await start(tmp_path, *sets)
    try:
        await engine_is_up(router_pb2_grpc.RouterServiceStub(line.connect(address)))
        session = await line.session(address)
        # Without more credit it cannot end before its router does, however long that takes.
        before = await session.submit(spec(tokens=150, request_id="k"), token_limit=60)
        await session.until(lambda: before.count > 10)
        process.kill()
        await finish(process)
        await session.closed()
        (tmp_path / "address").unlink()
        process, address = await start(tmp_path, *sets)
        session = await line.session(address)
        after = await session.attach("k", before.count)
        await session.ended(after)
        alone = await session.submit(spec(tokens=150))
        await session.ended(alone)
        assert after.reason == attempt_pb2.FINISH_REASON_LENGTH
        assert after.finished.attempts == 1
        assert before.ids + after.ids == alone.ids
        process.send_signal(signal.SIGTERM)
        assert await finish(process) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_drain_sends_clients_to_the_next_life_and_keeps_their_requests(line, spec):
    await line.engine("e0", time_scale=0.2)
    router = await line.router(server={"drain_grace_s": 600.0})
    session = await router.session()
    cancel = generation_pb2.ON_DISCONNECT_CANCEL
    before = await session.submit(spec(tokens=200, request_id="r", on_disconnect=cancel), token_limit=60)
    await session.until(lambda: before.count > 5)
    router.app.ledger.empty.set()  # as if nothing were live: it does not wait half the grace for the end of it
    await line.stop(router.app)
    await session.closed()
    assert session.error.reason is Reason.DRAINING
    router = await line.router()
    after = await router.attach("r", before.count)
    assert before.count + len(after.ids) == 200
    assert after.finished.attempts == 1


async def test_a_store_that_is_down_at_the_start_is_no_reason_not_to_serve(line, spec, monkeypatch):
    from paceline_router import app as app_module
    from paceline_store.errors import StoreUnavailable

    await line.engine("e0")

    async def down(url):
        raise StoreUnavailable("no connection")

    monkeypatch.setattr(app_module.Store, "open", down)
    line.folder = line.folder / "missing"
    router = await line.router(store=True, close_timeout_s=0.0)
    assert (await router.generate(spec())).count == 16
    await line.until(lambda: router.app.durability.degraded)
    error = await router.refused(spec(durability=generation_pb2.DURABILITY_SYNC))
    assert error.reason is Reason.STORE_UNAVAILABLE


async def test_readiness_and_reflection_are_served(line):
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    router = await line.router()
    async with grpc.aio.insecure_channel(router.app.address) as connection:
        health = health_pb2_grpc.HealthStub(connection)
        for name in ("liveness", "readiness", "paceline.router.v1.RouterService"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_spans_tell_a_request_from_arrival_to_end():
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    spans = RequestSpans(provider.get_tracer("test"))
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    given = generation_pb2.GenerationSpec(model="m", traceparent=parent)
    request = LiveRequest("r", given, Slo(SloClass.BEST_EFFORT), "t", Arrival(0.0, 0))
    spans.begin(request)
    assert request.spec.traceparent.split("-")[1] == parent.split("-")[1]
    assert request.spec.traceparent != parent
    request.state = State.FAILED
    request.finished = generation_pb2.Finished(output_tokens=3, engine_id="e0")
    spans.end(request)
    (span,) = exporter.get_finished_spans()
    assert span.attributes["paceline.request.id"] == "r"
    assert span.attributes["gen_ai.usage.output_tokens"] == 3
    assert not span.status.is_ok


def test_every_key_is_documented_and_unknown_ones_are_refused():
    config = load_config(Config, overrides=["router.placement=round-robin"], environ={})
    assert config.router.placement == "round-robin"
    with pytest.raises(ConfigError, match="scheduler_grace_s"):
        load_config(Config, overrides=["router.scheduler_grace=3"], environ={})
    for name, field in type(config.router).model_fields.items():
        assert field.description, f"router.{name} is not documented"
