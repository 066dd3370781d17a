"""The gateway as a process: command line, SIGTERM in the middle of a stream, exit codes."""

import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

import httpx
from fake_router import PATIENCE_S, FakeRouter, Script

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}]}
WORDS = [f"w{i} ".encode() for i in range(40)]


async def _start(*args: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "paceline_gateway", *args, stderr=asyncio.subprocess.PIPE
    )


async def test_sigterm_drains(router: FakeRouter, tmp_path: Path) -> None:
    script = Script(list(WORDS), hold_at=5)
    router.script = lambda spec: script
    config = tmp_path / "paceline.yaml"
    address_file = tmp_path / "address"
    config.write_text(
        f"gateway:\n  listen: 127.0.0.1:0\n  router: {router.address}\n  address_file: {address_file}\n"
        "router:\n  listen: not ours\nlog:\n  format: json\n"
    )
    process = await _start("--config", str(config), "--set", "gateway.drain_limit_s=200")
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not address_file.exists():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        async with httpx.AsyncClient(
            base_url=f"http://{address_file.read_text()}", timeout=PATIENCE_S
        ) as http:
            running = asyncio.create_task(http.post("/v1/chat/completions", json=CHAT))
            await router.until(lambda: bool(router.requests) and router.only().blocked.is_set())
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(PATIENCE_S):
                while await _listens(http):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            await script.release()
            assert (await running).json()["usage"]["completion_tokens"] == len(WORDS)
        async with asyncio.timeout(PATIENCE_S):
            _, log = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, log.decode()
    assert '"message": "draining"' in log.decode()
    assert not address_file.exists()


async def _listens(http: httpx.AsyncClient) -> bool:
    url = http.base_url
    try:
        _, writer = await asyncio.open_connection(url.host, url.port)
    except OSError:
        return False
    writer.close()
    return True


async def test_unusable_configuration() -> None:
    process = await _start("--set", "gateway.listen=0.0.0.0:0")
    async with asyncio.timeout(PATIENCE_S):
        _, errors = await process.communicate()
    assert process.returncode == 2
    assert b"gateway.api_keys" in errors
