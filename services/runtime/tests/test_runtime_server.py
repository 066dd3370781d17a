"""The gRPC frame over real sockets: errors, health, reflection, deadlines, drain."""

import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from paceline_runtime.channel import ChannelConfig, channel
from paceline_runtime.config_model import ConfigError
from paceline_runtime.errors import REASONS, PacelineError, Reason
from paceline_runtime.server import Server, ServerConfig
from paceline_runtime.shutdown import Shutdown
from paceline_runtime.status import from_rpc_error

WAIT_S = 60.0
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
async def server(echo, add_echo_to):
    server = Server(ServerConfig(drain_grace_s=60.0))
    server.add(add_echo_to, echo)
    async with server:
        yield server


@pytest.fixture
async def stub(server, echo_stub):
    async with channel(server.address) as opened:
        yield echo_stub(opened)


async def check(address: str, service: str) -> int:
    async with channel(address) as opened:
        stub = health_pb2_grpc.HealthStub(opened)
        return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status


@pytest.mark.parametrize("reason", list(Reason))
async def test_every_reason_arrives_whole(stub, echo, reason):
    sent = PacelineError(reason, "why: ü", retry_after_ms=1500.5, metadata={"field": "x"})

    async def fail(_):
        raise sent

    echo.behaviour = fail
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.unary(b"")
    assert raised.value.code() is REASONS[reason].code
    got = from_rpc_error(raised.value)
    assert (got.reason, got.message, got.retryable) == (reason, "why: ü", REASONS[reason].retryable)
    assert got.retry_after_ms == pytest.approx(1500.5)
    assert got.metadata == {"field": "x"}


@pytest.mark.parametrize("text", ["x" * 20_000, "語" * 600, "語" * 20_000, "\n" * 3000])
async def test_an_error_with_a_long_message_keeps_its_reason(stub, echo, text):
    """Texts of clients get into messages, and a header block that is too long would be refused by the peer."""

    async def fail(_):
        raise PacelineError(Reason.NOT_FOUND, f"no such thing: {text}", metadata={"field": text})

    echo.behaviour = fail
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.unary(b"")
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    got = from_rpc_error(raised.value)
    assert got.reason is Reason.NOT_FOUND
    assert got.message.startswith("no such thing: " + text[:300])


async def test_error_after_messages_of_a_stream_keeps_them(stub, echo):
    echo.failure = PacelineError(Reason.ENGINE_LOST, "gone", retryable=False)
    got = []
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        async for message in stub.count(b"3"):
            got.append(message)
    assert got == [b"0", b"1", b"2"]
    error = from_rpc_error(raised.value)
    assert error.reason is Reason.ENGINE_LOST
    assert not error.retryable


async def test_unexpected_error_has_an_id_that_the_log_has_too(stub, echo, caplog):
    async def fail(_):
        raise ZeroDivisionError("secret detail")

    echo.behaviour = fail
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.unary(b"")
    error = from_rpc_error(raised.value)
    assert error.reason is Reason.INTERNAL
    assert "secret" not in error.message
    logged = [record for record in caplog.records if getattr(record, "error_id", None)]
    assert [record.error_id for record in logged] == [error.metadata["error_id"]]
    assert logged[0].exc_info is not None


async def test_what_a_service_down_the_line_said_is_passed_on(server, echo, echo_stub, add_echo_to):
    async def fail(_):
        raise PacelineError(Reason.QUEUE_FULL, "full", retry_after_ms=10)

    echo.behaviour = fail
    front = type(echo)()
    front_server = Server(ServerConfig())
    front_server.add(add_echo_to, front)
    async with front_server, channel(server.address) as inner, channel(front_server.address) as outer:

        async def forward(request):
            return await echo_stub(inner).unary(request)

        front.behaviour = forward
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await echo_stub(outer).unary(b"")
    assert from_rpc_error(raised.value).reason is Reason.QUEUE_FULL


async def test_transport_errors_have_a_reason(echo_stub, stub):
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.missing(b"")
    assert from_rpc_error(raised.value).reason is Reason.UNIMPLEMENTED
    async with channel("127.0.0.1:1") as nobody:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await echo_stub(nobody).unary(b"")
    error = from_rpc_error(raised.value)
    assert error.reason is Reason.UNAVAILABLE
    assert error.retryable


async def test_oversized_message_is_named(server, echo_stub):
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        async with channel(server.address) as opened:
            await echo_stub(opened).unary(b"x" * (17 * 1024 * 1024))
    assert from_rpc_error(raised.value).reason is Reason.MESSAGE_TOO_LARGE


async def test_all_kinds_of_rpc_pass_the_layers(stub, echo):
    async def upper(request):
        return request.upper()

    echo.behaviour = upper

    async def ask():
        for word in (b"a", b"b"):
            yield word

    async def numbers():
        for number in (b"1", b"2", b"3"):
            yield number

    assert await stub.unary(b"x") == b"X"
    assert [message async for message in stub.count(b"2")] == [b"0", b"1"]
    assert [message async for message in stub.forever(ask())] == [b"A", b"B"]
    assert [message async for message in stub.written(ask())] == [b"A", b"B"]
    assert await stub.total(numbers()) == b"6"


async def test_generator_is_closed_when_the_client_leaves(stub, echo):
    call = stub.forever()
    await call.write(b"x")
    await call.read()
    call.cancel()
    await asyncio.wait_for(echo.closed.wait(), WAIT_S)


async def test_request_id_is_kept_or_made(stub):
    assert (await stub.unary(b"", metadata=(("x-request-id", "mine"),))) == b"mine|"
    made = (await stub.unary(b"")).decode().removesuffix("|")
    assert len(made) == 32


async def test_unary_call_ends_at_the_servers_limit(echo, echo_stub, add_echo_to):
    never = asyncio.Event()

    async def hang(_):
        await never.wait()

    echo.behaviour = hang
    server = Server(ServerConfig(unary_timeout_s=0.05))
    server.add(add_echo_to, echo)
    async with server, channel(server.address) as opened:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await echo_stub(opened).unary(b"")
    assert from_rpc_error(raised.value).reason is Reason.DEADLINE_EXCEEDED
    assert "0.05 s" in raised.value.details()


async def test_channel_sets_a_deadline_on_unary_calls(server, echo, echo_stub):
    never = asyncio.Event()

    async def hang(_):
        await never.wait()

    echo.behaviour = hang
    async with channel(server.address, ChannelConfig(unary_timeout_s=0.05)) as opened:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await echo_stub(opened).unary(b"")
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_health_names(server):
    assert await check(server.address, "liveness") == SERVING
    assert await check(server.address, "readiness") == NOT_SERVING
    assert await check(server.address, "test.v1.EchoService") == NOT_SERVING
    await server.health.set_ready(True)
    for service in ("liveness", "readiness", "test.v1.EchoService", ""):
        assert await check(server.address, service) == SERVING
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await check(server.address, "unknown")
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("enabled", [True, False])
async def test_reflection_follows_the_config(echo, add_echo_to, enabled):
    server = Server(ServerConfig(reflection=enabled))
    server.add(add_echo_to, echo)
    async with server, channel(server.address) as opened:
        stub = reflection_pb2_grpc.ServerReflectionStub(opened)
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        if enabled:
            answer = await call.read()
            names = {service.name for service in answer.list_services_response.service}
            assert {"test.v1.EchoService", "grpc.health.v1.Health"} <= names
        else:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await call.read()
            assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_unix_socket(echo, echo_stub, add_echo_to, tmp_path):
    server = Server(ServerConfig(listen=f"unix:{tmp_path}/echo.sock"))
    server.add(add_echo_to, echo)
    async with server, channel(server.address) as opened:
        assert (await echo_stub(opened).unary(b"")).endswith(b"|")


async def test_taken_port_is_a_config_error(server):
    other = Server(ServerConfig(listen=server.address))
    with pytest.raises(ConfigError, match=server.address):
        await other.start()
    await other.grpc.stop(0)


async def test_drain_lets_running_calls_end_and_refuses_new_ones(server, stub, echo):
    release = asyncio.Event()
    hook_ran = asyncio.Event()

    async def slow(_):
        await release.wait()
        return b"done"

    async def hook():
        await server.health.set_ready(True)  # by somebody who does not know of the drain
        hook_ran.set()

    echo.behaviour = slow
    server.on_drain(hook)
    await server.health.set_ready(True)
    running = asyncio.ensure_future(stub.unary(b""))
    await asyncio.wait_for(echo.started.wait(), WAIT_S)
    drain = asyncio.create_task(server.drain())
    await asyncio.wait_for(hook_ran.wait(), WAIT_S)
    assert await check(server.address, "readiness") == NOT_SERVING
    assert await check(server.address, "liveness") == SERVING
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.unary(b"")
    error = from_rpc_error(raised.value)
    assert error.reason is Reason.DRAINING
    assert error.retryable
    assert server.in_flight == 1
    release.set()
    assert await running == b"done"
    await asyncio.wait_for(drain, WAIT_S)
    assert server.in_flight == 0


async def test_drain_cancels_what_is_left_after_the_grace(server, stub, echo):
    call = stub.forever()
    await call.write(b"x")
    await asyncio.wait_for(echo.started.wait(), WAIT_S)
    await asyncio.wait_for(server.drain(grace_s=0.01), WAIT_S)
    await asyncio.wait_for(echo.closed.wait(), WAIT_S)
    assert server.in_flight == 0


async def test_failing_drain_hook_does_not_stop_the_drain(server, caplog):
    async def hook():
        raise RuntimeError("hook")

    server.on_drain(hook)
    await asyncio.wait_for(server.drain(), WAIT_S)
    assert "a drain hook failed" in caplog.text


async def test_serve_writes_its_address_and_removes_it(echo, add_echo_to, tmp_path):
    file = tmp_path / "address"
    server = Server(ServerConfig(address_file=file))
    server.add(add_echo_to, echo)
    shutdown = Shutdown()
    shutdown.request("test")
    server.on_drain(lambda: seen.put(file.read_text()))
    seen: asyncio.Queue[str] = asyncio.Queue(1)
    await asyncio.wait_for(server.serve(shutdown), WAIT_S)
    assert seen.get_nowait() == server.address
    assert not file.exists()
