"""The same suite for every engine, over real sockets."""

import importlib.util
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from stack_process import StackProcess

from paceline_executor.app import ExecutorApp
from paceline_executor.config import ExecutorConfig, ExecutorServiceConfig, SimulatedSection
from paceline_executor.llamacpp.model_fetch import ModelFetchError, fetch_model
from paceline_executor.llamacpp.tiny import write_tiny_model
from paceline_executor.remote.config import RemoteSection
from paceline_executor.trtllm.config import TrtllmSection
from paceline_runtime.server import ServerConfig

from .fake_smg import smg_server
from .peer import Peer

# What each engine declares, beyond what all of them can do. A test that needs one of these says so by the mark `needs`,
# and the first test of the intake holds the declarations against the capabilities that the engines report.
ALL_ABILITIES = frozenset(
    {"iteration", "keep_kv", "kv_transfer", "prefill_budget", "exact_replay", "resume_draws"}
)
CAN: dict[str, frozenset[str]] = {
    "simulated": ALL_ABILITIES,
    "tiny": ALL_ABILITIES,
    "smollm2": ALL_ABILITIES,
    "trtllm-frame": frozenset({"steps", "resume_equal", "many", "breadth"}),
    "trtllm-plan": frozenset({"iteration", "keep_kv", "steps", "resume_equal", "many"}),
    "remote-gateway": frozenset(),
    "remote-smg": frozenset({"resume_equal"}),
}
OPTIONAL_ENGINES = frozenset({"smollm2"})

Start = Callable[..., Awaitable[ExecutorApp]]
Connect = Callable[..., Awaitable[Peer]]


@pytest.fixture(scope="session")
def tiny_model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what an engine declares that it cannot do: such a case is not skipped, there is no such promise."""
    kept = []
    for item in items:
        needed = {ability for mark in item.iter_markers("needs") for ability in mark.args}
        params = getattr(getattr(item, "callspec", None), "params", {})
        if needed <= CAN.get(params.get("backend", ""), ALL_ABILITIES):
            kept.append(item)
    items[:] = kept


@pytest.fixture
def abilities(backend: str) -> frozenset[str]:
    """What the engine declares."""
    return CAN[backend]


@pytest.fixture(params=[name for name in CAN if name not in OPTIONAL_ENGINES])
def backend(request: pytest.FixtureRequest) -> str:
    """Which engine. Tests that ask for it by `WITH_REAL_MODEL` run on the real model too."""
    name: str = request.param
    if name == "smollm2":
        try:
            fetch_model()
        except ModelFetchError as error:
            pytest.skip(f"NOT TESTED, the default model cannot be had: {error}")
    return name


@pytest.fixture
def settings(backend: str, tiny_model_path: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    """Settings of an executor with this engine."""
    common: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "server": ServerConfig(drain_grace_s=0.02),
        "max_batch": 8,
        "max_resident": 16,
        "context_tokens": 512,
    }
    if backend.startswith("trtllm"):
        section = TrtllmSection(
            emulated=True,
            mode="plan" if backend == "trtllm-plan" else "frame",
            time_scale=0.001,
            frame_ms=2.0,
        )
        return {**common, "backend": "trtllm", "trtllm": section}
    if backend.startswith("remote"):
        server, dialect, protocol = {
            "remote-gateway": ("gateway_url", "paceline", "openai"),
            "remote-smg": ("smg_target", "paceline", "smg-trtllm"),
        }[backend]
        section = RemoteSection.model_validate(
            {
                "url": request.getfixturevalue(server),
                "dialect": dialect,
                "protocol": protocol,
                "frame_ms": 5.0,
            }
        )
        words = "simulated" if backend == "remote-smg" else str(tiny_model_path)
        return {**common, "backend": "remote", "model_path": words, "remote": section}
    if backend == "simulated":
        # Steps of some 10 microseconds: the order of events is the same, the waiting is not.
        return {**common, "backend": "simulated", "simulated": SimulatedSection(time_scale=0.001)}
    return {**common, "model_path": str(tiny_model_path) if backend == "tiny" else ""}


@pytest.fixture(scope="session")
def gateway_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The project's own front door, before the whole line and a real engine with the tiny model."""
    stack = StackProcess(
        tmp_path_factory.mktemp("line"), "up.engines=1", "executor.context_tokens=1024"
    ).start()
    yield f"http://{stack.gateway}"
    stack.stop()


@pytest.fixture(scope="session")
def llama_server_url(tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """llama.cpp's own server with the tiny model, in a process of its own."""
    script = Path(__file__).with_name("serve_llama.py")
    log = tmp_path_factory.mktemp("llama-server") / "log"
    with log.open("wb") as errors:
        server = subprocess.Popen(
            [sys.executable, str(script), str(tiny_model_path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
    assert server.stdin is not None
    assert server.stdout is not None
    url = next((line.strip() for line in server.stdout if line.startswith("http://")), "")
    assert url, log.read_text()
    yield url
    server.stdin.close()
    try:
        server.wait(60)
    finally:
        server.kill()
        server.stdout.close()


@pytest.fixture
async def smg_target() -> AsyncIterator[str]:
    """A server on the stubs of smg-grpc-proto, with an emulated engine behind it."""
    if importlib.util.find_spec("smg_grpc_proto") is None:
        pytest.skip("NOT TESTED: the package smg-grpc-proto is not installed")
    async with smg_server() as target:
        yield target


@pytest.fixture
async def start(settings: dict[str, Any]) -> AsyncIterator[Start]:
    """Starts executors; they end with the test."""
    async with AsyncExitStack() as stack:

        async def make(**changes: Any) -> ExecutorApp:
            config = ExecutorServiceConfig(executor=ExecutorConfig(**{**settings, **changes}))
            return await stack.enter_async_context(ExecutorApp(config))

        yield make


@pytest.fixture
async def connect(start: Start) -> AsyncIterator[Connect]:
    """Attaches to an executor; the streams end with the test, before the executors do."""
    async with AsyncExitStack() as stack:

        async def make(app: ExecutorApp, token: int = 1, **how: Any) -> Peer:
            peer = Peer(app.address)
            stack.push_async_callback(peer.close)
            return await peer.attach(token, **how)

        yield make


@pytest.fixture
async def executor(start: Start) -> ExecutorApp:
    """One executor with default settings."""
    return await start()


@pytest.fixture
async def peer(executor: ExecutorApp, connect: Connect) -> Peer:
    """A scheduler attached to it."""
    return await connect(executor)


@pytest.fixture
def prompt() -> str:
    """A prompt of more than one chunk on every engine."""
    return "The quick brown fox jumps over the lazy dog, and the dog does not mind: it was asleep. " * 3
