"""The scheduler as a process, its metrics, and its announcement to routers."""

import asyncio
import json
import signal
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from paceline.router.v1 import router_pb2, router_pb2_grpc
from paceline.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from paceline_runtime.channel import channel
from paceline_runtime.telemetry.config import TelemetryConfig
from paceline_runtime.telemetry.setup import Telemetry
from paceline_scheduler.app import SchedulerApp
from paceline_scheduler.config import DEFAULT_POLICY, SchedulerConfig


async def test_process_starts_serves_and_ends(bench, tmp_path):
    executor = await bench.executor()
    address_file = tmp_path / "address"
    config = tmp_path / "paceline.yaml"
    config.write_text(
        "scheduler:\n  listen: 127.0.0.1:0\n  policy: sarathi\n  policy_params: {token_budget: 300}\n"
        f"  server: {{address_file: {address_file}}}\nrouter: {{anything: 1}}\n"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "paceline_scheduler", "--config", str(config)),
        *("--set", f"scheduler.executor={executor.address}", "--set", "log.format=json"),
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        await bench.until(address_file.exists)
        async with channel(address_file.read_text()) as there:
            health = health_pb2_grpc.HealthStub(there)
            async with asyncio.timeout(200):
                async for answer in health.Watch(health_pb2.HealthCheckRequest(service="readiness")):
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        break
            stub = scheduler_pb2_grpc.SchedulerServiceStub(there)
            load = (await stub.GetLoad(scheduler_pb2.GetLoadRequest())).load
            assert load.identity.incarnation == executor.identity.incarnation
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(200):
            _, log = await process.communicate()
        assert process.returncode == 0
        messages = [json.loads(line)["message"] for line in log.decode().splitlines() if line.startswith("{")]
        assert "listening" in messages
        assert "attached to the engine" in messages
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_ready_only_while_the_engine_is_there(bench):
    executor = await bench.executor()
    scheduler = await bench.scheduler(executor.address, engine_lost_after_s=0.05)
    await bench.attached(scheduler)
    await bench.until(lambda: scheduler.server.health.ready)
    await bench.crash(executor)
    await bench.until(lambda: not scheduler.server.health.ready)


class FakeFleet(router_pb2_grpc.FleetServiceServicer):
    """The part of a router that hears announcements."""

    def __init__(self):
        self.heard = asyncio.Queue()

    async def Announce(self, request, context):
        self.heard.put_nowait(request)
        return router_pb2.AnnounceResponse(interval_ms=100)


async def test_announces_until_a_router_has_dialled(bench):
    fleet = FakeFleet()
    server = grpc.aio.server()
    router_pb2_grpc.add_FleetServiceServicer_to_server(fleet, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        executor = await bench.executor()
        scheduler = await bench.scheduler(executor.address, announce=[f"127.0.0.1:{port}"])
        async with asyncio.timeout(200):
            first, second = await fleet.heard.get(), await fleet.heard.get()
        assert first == second
        assert (first.scheduler_endpoint, first.engine_id) == (scheduler.address, "engine-1")
        await bench.router(scheduler)
        calm = 0
        async with asyncio.timeout(200):
            while calm < 3:  # one was on its way perhaps, and time may pass in leaps
                fleet.heard = asyncio.Queue()
                await asyncio.sleep(0.15)
                calm = calm + 1 if fleet.heard.empty() else 0
    finally:
        await server.stop(0)


async def test_metrics_tell_plans_and_rows(bench):
    executor = await bench.executor()
    telemetry = Telemetry(TelemetryConfig(), "scheduler", scrape=True)
    config = SchedulerConfig(listen="127.0.0.1:0", executor=executor.address)
    async with SchedulerApp(config, telemetry=telemetry) as app:
        router = await bench.router(app)
        await router.send(submits=[bench.submit(1, tokens=bench.ENDLESS, token_limit=3)])
        await router.until(lambda: len(router.ids.get(1, [])) >= 3)
        text = telemetry.prometheus_text().decode()
        assert "paceline_plans_total{" in text
        assert f'policy="{DEFAULT_POLICY}"' in text
        rows = [line for line in text.splitlines() if line.startswith("paceline_scheduler_requests")]
        assert sum(float(line.rsplit(" ", 1)[1]) for line in rows) == 1
        await router.close()
    telemetry.shutdown()
