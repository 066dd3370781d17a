"""Keys, exposure, drain, limits, probes, metrics and the dashboard."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fake_router import PATIENCE_S, FakeRouter, Script

from paceline.router.v1 import router_pb2
from paceline_gateway.app import GatewayApp
from paceline_gateway.config import GatewayConfig
from paceline_runtime.config_model import ConfigError

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}]}
WORDS = [f"w{i} ".encode() for i in range(40)]
KEYS = {"sk-one": "acme", "sk-two": "umbrella"}

StartGateway = Callable[..., Awaitable[GatewayApp]]


async def test_keys_name_tenants(start_gateway: StartGateway, router: FakeRouter) -> None:
    gateway = await start_gateway(api_keys=KEYS)
    for key, tenant in KEYS.items():
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0) as ai:
            await ai.chat.completions.create(
                model="tiny", messages=CHAT["messages"], extra_headers={"x-request-id": key}
            )
        assert router.requests[key].spec.tenant == tenant
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="sk-on", max_retries=0) as ai:
        with pytest.raises(openai.AuthenticationError) as caught:
            await ai.models.list()
    assert caught.value.code == "invalid_api_key"


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/tiny", "/api/fleet", "/metrics"])
async def test_what_needs_a_key(start_gateway: StartGateway, path: str) -> None:
    gateway = await start_gateway(api_keys=KEYS, metrics_need_key=True)
    async with httpx.AsyncClient(base_url=gateway.url, timeout=PATIENCE_S) as http:
        for authorization in ("", "Basic sk-one", "Bearer", "Bearer nope"):
            reply = await http.get(path, headers={"authorization": authorization} if authorization else {})
            assert reply.status_code == 401
            assert reply.headers["www-authenticate"] == "Bearer"
        assert (await http.get(path, headers={"authorization": "bearer sk-one"})).status_code == 200
        for open_path in ("/", "/healthz", "/readyz"):
            assert (await http.get(open_path)).status_code == 200


async def test_tenants_see_their_own_requests(start_gateway: StartGateway, router: FakeRouter) -> None:
    gateway = await start_gateway(api_keys=KEYS)
    async with httpx.AsyncClient(base_url=gateway.url, timeout=PATIENCE_S) as http:
        for key, tenant in KEYS.items():
            headers = {"authorization": f"Bearer {key}", "x-request-id": tenant}
            assert (await http.post("/v1/chat/completions", json=CHAT, headers=headers)).status_code == 200
        fleet = (await http.get("/api/fleet", headers={"authorization": "Bearer sk-one"})).json()
    assert [request["request_id"] for request in fleet["requests"]] == ["acme"]


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "192.0.2.1:80", "example.org:80"])
def test_no_open_address_without_keys(listen: str) -> None:
    with pytest.raises(ConfigError, match="api_keys"):
        GatewayApp(GatewayConfig(listen=listen))


async def test_open_address_when_said_so(router: FakeRouter) -> None:
    config = GatewayConfig(listen="0.0.0.0:0", router=router.address, allow_without_keys=True)
    async with GatewayApp(config) as app, httpx.AsyncClient() as http:
        port = app.address.rpartition(":")[2]
        assert (await http.get(f"http://127.0.0.1:{port}/healthz")).status_code == 200


async def test_scripts_of_other_web_pages_are_refused(client: httpx.AsyncClient, router: FakeRouter) -> None:
    foreign = await client.post("/v1/chat/completions", json=CHAT, headers={"origin": "https://evil.example"})
    assert foreign.status_code == 403
    assert router.submits == 0
    own = await client.get("/api/fleet", headers={"origin": str(client.base_url).rstrip("/")})
    assert own.status_code == 200


async def test_drain_lets_running_streams_end(start_gateway: StartGateway, router: FakeRouter) -> None:
    gateway = await start_gateway(drain_limit_s=PATIENCE_S)
    script = Script(list(WORDS), hold_at=5)
    router.script = lambda spec: script
    async with httpx.AsyncClient(base_url=gateway.url, timeout=PATIENCE_S) as http:
        # Connections of their own, open before the drain: a probe's and a late client's.
        async with httpx.AsyncClient(base_url=gateway.url, timeout=PATIENCE_S) as late:
            await late.get("/healthz")
            running = asyncio.create_task(http.post("/v1/chat/completions", json=CHAT))
            await router.until(lambda: bool(router.requests) and router.only().blocked.is_set())
            gateway.admission.draining = True
            assert (await late.get("/readyz")).text == "draining"
            refused = await late.post("/v1/chat/completions", json=CHAT)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
            gateway.admission.draining = False
        draining = asyncio.create_task(gateway.drain())
        await asyncio.sleep(0)
        assert gateway.admission.draining
        await script.release()
        assert (await running).json()["usage"]["completion_tokens"] == len(WORDS)
        async with asyncio.timeout(PATIENCE_S):
            await draining
    with pytest.raises(httpx.ConnectError):
        await httpx.AsyncClient().get(f"{gateway.url}/healthz")


async def test_drain_cancels_what_outlasts_its_limit(start_gateway: StartGateway, router: FakeRouter) -> None:
    gateway = await start_gateway(drain_limit_s=0.05)
    router.script = lambda spec: Script(list(WORDS), hold_at=5)
    async with httpx.AsyncClient(base_url=gateway.url, timeout=PATIENCE_S) as http:
        running = asyncio.create_task(http.post("/v1/chat/completions", json=CHAT))
        await router.until(lambda: bool(router.requests) and router.only().blocked.is_set())
        async with asyncio.timeout(PATIENCE_S):
            await gateway.drain()
        assert router.only().cancelled
        assert gateway.session.live == 0
        await asyncio.wait([running])


async def test_limit_of_live_requests(start_gateway: StartGateway, router: FakeRouter) -> None:
    gateway = await start_gateway(max_live_requests=1)
    script = Script(list(WORDS), hold_at=5)
    router.script = lambda spec: script
    async with httpx.AsyncClient(base_url=gateway.url, timeout=PATIENCE_S) as http:
        running = asyncio.create_task(http.post("/v1/chat/completions", json=CHAT))
        await router.until(lambda: bool(router.requests) and router.only().blocked.is_set())
        refused = await http.post("/v1/chat/completions", json=CHAT)
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        await script.release()
        assert (await running).status_code == 200
        assert (await http.post("/v1/chat/completions", json=CHAT)).status_code == 200


async def test_ready_only_with_an_engine(client: httpx.AsyncClient, router: FakeRouter) -> None:
    assert (await client.get("/readyz")).status_code == 200
    for engine in router.engines:
        engine.state = router_pb2.ENGINE_STATE_DOWN
    reply = await client.get("/readyz")
    assert (reply.status_code, reply.text) == (503, "no engine is up")


async def test_dashboard(client: httpx.AsyncClient) -> None:
    page = await client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "http://" not in page.text
    assert "https://" not in page.text
    await client.post("/v1/chat/completions", json=CHAT, headers={"x-request-id": "seen"})
    fleet = (await client.get("/api/fleet")).json()
    assert [engine["engine_id"] for engine in fleet["engines"]] == ["cpu-0", "cpu-1"]
    assert fleet["engines"][0]["state"] == "up"
    assert fleet["requests"][0]["request_id"] == "seen"
    assert {"slo_class": "latency", "requests": 1, "attained": 1} in fleet["attainment"]


async def test_metrics(client: httpx.AsyncClient) -> None:
    await client.post("/v1/chat/completions", json=CHAT)
    await client.post("/v1/chat/completions", json=CHAT | {"n": 2})
    await client.get("/wp-login.php")
    text = (await client.get("/metrics")).text
    assert 'paceline_http_requests_total{code="200",method="/v1/chat/completions"} 1.0' in text
    assert 'paceline_http_requests_total{code="400",method="/v1/chat/completions"} 1.0' in text
    assert 'paceline_http_requests_total{code="404",method="other"} 1.0' in text


async def test_address_file_and_unix_socket(router: FakeRouter, tmp_path: Path) -> None:
    config = GatewayConfig(
        listen=f"unix:{tmp_path}/http.sock", router=router.address, address_file=tmp_path / "address"
    )
    async with GatewayApp(config) as app:
        assert (tmp_path / "address").read_text() == app.address == f"unix:{tmp_path}/http.sock"
        transport = httpx.AsyncHTTPTransport(uds=f"{tmp_path}/http.sock")
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
            assert (await http.get("/healthz")).text == "ok"
    assert not (tmp_path / "address").exists()


async def test_port_in_use(gateway: GatewayApp, router: FakeRouter) -> None:
    with pytest.raises(ConfigError, match="cannot listen"):
        await GatewayApp(GatewayConfig(listen=gateway.address, router=router.address)).__aenter__()


async def test_body_that_does_not_come(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(body_timeout_s=0.05)
    host, port = gateway.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{")
    async with asyncio.timeout(PATIENCE_S):
        answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"body_timeout" in answer
    writer.close()
