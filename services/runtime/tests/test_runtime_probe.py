"""The probe of container health checks, against a real server over a loopback socket."""

import asyncio
import http.server
import threading

import pytest

from paceline_runtime.auth import AuthConfig, TokenConfig
from paceline_runtime.probe import EXIT_CONFIG, EXIT_UNWELL, EXIT_WELL, main
from paceline_runtime.server import Server, ServerConfig


@pytest.fixture
async def server(echo, add_echo_to):
    """A server that asks callers for a token: health checks must pass without one."""
    auth = AuthConfig(tokens=(TokenConfig(token="secret", tenant="someone"),))
    server = Server(ServerConfig(), auth=auth)
    server.add(add_echo_to, echo)
    async with server:
        yield server


@pytest.mark.parametrize("service", ["readiness", "test.v1.EchoService"])
async def test_follows_readiness(server, capsys, service):
    probe = [server.address, "--service", service, "--timeout", "10"]
    assert await asyncio.to_thread(main, probe) == EXIT_UNWELL
    assert "NOT_SERVING" in capsys.readouterr().err
    await server.health.set_ready(True)
    assert await asyncio.to_thread(main, probe) == EXIT_WELL
    assert capsys.readouterr().err == ""


async def test_a_server_that_is_alive_but_not_ready_must_not_be_killed(server):
    assert await asyncio.to_thread(main, [server.address, "--service", "liveness", "--timeout", "10"]) == 0


async def test_an_unknown_service_is_unwell(server, capsys):
    assert await asyncio.to_thread(main, [server.address, "--service", "nobody", "--timeout", "10"]) == 1
    assert "NOT_FOUND" in capsys.readouterr().err


async def test_a_stopped_server_is_unwell(server, capsys):
    address = server.address
    await server.drain(grace_s=0)
    assert await asyncio.to_thread(main, [address, "--timeout", "10"]) == EXIT_UNWELL
    assert "UNAVAILABLE" in capsys.readouterr().err


async def test_a_configuration_that_cannot_be_used_is_not_taken_for_an_unwell_server(
    server, tmp_path, capsys
):
    config = tmp_path / "paceline.yaml"
    config.write_text(f"router: {{}}\ntls:\n  server_ca_file: {tmp_path / 'missing.pem'}\n")
    assert await asyncio.to_thread(main, [server.address, "--config", str(config)]) == EXIT_CONFIG
    assert "tls.server_ca_file" in capsys.readouterr().err


class _Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/healthz" else 503)
        self.end_headers()
        self.wfile.write(b"draining")

    def log_message(self, format, *args):
        pass


def test_http(capsys):
    with http.server.HTTPServer(("127.0.0.1", 0), _Answers) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{web.server_port}"
        try:
            assert main([f"{url}/healthz"]) == EXIT_WELL
            assert main([f"{url}/readyz"]) == EXIT_UNWELL
            assert "503: draining" in capsys.readouterr().err
        finally:
            web.shutdown()
            thread.join(timeout=60)
    assert main([url]) == EXIT_UNWELL
