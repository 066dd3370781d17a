"""The supervisor, with processes that do nothing but live and die."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from paceline_cli.stack.backoff import Backoff
from paceline_cli.stack.child import ChildSpec, ChildState
from paceline_cli.stack.logs import RotatingLog, tail
from paceline_cli.stack.ports import free_ports
from paceline_cli.stack.settings import UpConfig
from paceline_cli.stack.statefile import StateDir, StateDirBusyError
from paceline_cli.stack.supervisor import StackStartError, Supervisor

FAKE = Path(__file__).with_name("fake_service.py")


def spec(state: StateDir, name: str, *arguments: str, rank: int = 0) -> ChildSpec:
    (port,) = free_ports("127.0.0.1", 1)
    argv = (sys.executable, str(FAKE), "--port", str(port), "--name", name, *arguments)
    return ChildSpec(name, argv, f"127.0.0.1:{port}", state.logs / f"{name}.log", rank)


def supervisor_of(state: StateDir, *specs: ChildSpec, **up: object) -> Supervisor:
    settings = UpConfig.model_validate({"stop_timeout_s": 100.0, "restart_delay_ms": 10.0, **up})
    return Supervisor(specs, settings, state, gateway="127.0.0.1:1", router="127.0.0.1:2", model="none")


async def until(condition: Callable[[], bool], timeout_s: float = 100.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - the condition is the state of another process
            await asyncio.sleep(0.01)


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    folder = StateDir(tmp_path / "state")
    folder.acquire()
    return folder


@asynccontextmanager
async def running(supervisor: Supervisor) -> AsyncIterator[None]:
    task = asyncio.create_task(supervisor.run())
    try:
        await until(supervisor.all_ready)
        yield
    finally:
        supervisor.stop()
        await task


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_killed_child_is_started_again_and_all_end_at_stop(state: StateDir) -> None:
    supervisor = supervisor_of(state, spec(state, "a"), spec(state, "b"))
    async with running(supervisor):
        first, other = supervisor.children
        killed, untouched = first.pid, other.pid
        assert killed is not None
        assert untouched is not None
        os.kill(killed, signal.SIGKILL)
        await until(lambda: first.pid not in (None, killed) and first.state is ChildState.READY)
        assert first.restarts == 1
        assert first.last_exit == "killed by SIGKILL"
        assert other.pid == untouched
        reborn = first.pid
        assert reborn is not None
    assert not any(alive(pid) for pid in (killed, untouched, reborn))
    assert {child.state for child in supervisor.children} == {ChildState.STOPPED}


async def test_children_end_in_the_order_of_their_ranks(state: StateDir, tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    names = {"executor": 3, "router": 1, "gateway": 0}
    specs = [spec(state, name, "--ended-file", str(ended), rank=rank) for name, rank in names.items()]
    async with running(supervisor_of(state, *specs)):
        pass
    assert ended.read_text().split() == ["gateway", "router", "executor"]


async def test_child_that_ignores_sigterm_is_killed(state: StateDir) -> None:
    told: list[str] = []
    supervisor = supervisor_of(state, spec(state, "deaf", "--ignore-term"), stop_timeout_s=0.2)
    supervisor.on_event = told.append
    async with running(supervisor):
        pid = supervisor.children[0].pid
        assert pid is not None
    assert not alive(pid)
    assert any("was killed" in line for line in told)


async def test_child_that_never_starts_ends_the_stack_with_its_last_words(state: StateDir) -> None:
    supervisor = supervisor_of(state, spec(state, "good"), spec(state, "bad", "--fail"), start_attempts=2)
    with pytest.raises(StackStartError) as caught:
        async with asyncio.timeout(100):
            await supervisor.run()
    assert "bad does not start (exit code 3)" in str(caught.value)
    assert "no such model: unobtainium" in str(caught.value)
    assert all(child.pid is None for child in supervisor.children)


async def test_state_file_tells_pids_and_readiness(state: StateDir) -> None:
    supervisor = supervisor_of(state, spec(state, "a"))
    async with running(supervisor):
        supervisor.ready.set()
        await until(lambda: (seen := state.read()) is not None and seen.ready)
        seen = state.read()
        assert seen is not None
        assert seen.alive()
        assert [(row.name, row.pid, row.state) for row in seen.services] == [
            ("a", supervisor.children[0].pid, "ready")
        ]
        assert seen.router == "127.0.0.1:2"
    state.release()
    assert state.read() is None


async def test_children_die_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    script = textwrap.dedent(f"""
        import asyncio, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import test_stack_supervisor as t
        from pathlib import Path
        async def main():
            state = t.StateDir(Path({str(tmp_path / "other")!r}))
            state.acquire()
            supervisor = t.supervisor_of(state, t.spec(state, "a"), t.spec(state, "b"))
            task = asyncio.create_task(supervisor.run())
            await t.until(supervisor.all_ready)
            print(*[child.pid for child in supervisor.children], flush=True)
            await task
        asyncio.run(main())
    """)
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=subprocess.PIPE)
    assert process.stdout is not None
    async with asyncio.timeout(100):
        pids = [int(word) for word in (await process.stdout.readline()).split()]
        assert len(pids) == 2
        process.kill()
        await process.wait()
    await until(lambda: not any(alive(pid) for pid in pids))


def test_second_stack_in_the_same_folder_is_refused(state: StateDir) -> None:
    with pytest.raises(StateDirBusyError, match="already running"):
        StateDir(state.path).acquire()
    state.release()
    again = StateDir(state.path)
    again.acquire()
    again.release()


def test_backoff_restarts_at_once_then_doubles_and_forgets_after_a_stable_life() -> None:
    backoff = Backoff(delay_s=0.1, max_s=0.5, stable_s=30.0)
    assert [backoff.next_wait_s(1.0) for _ in range(6)] == [0.0, 0.1, 0.2, 0.4, 0.5, 0.5]
    assert backoff.next_wait_s(31.0) == 0.0
    assert backoff.next_wait_s(1.0) == 0.1


def test_logs_are_bounded_and_keep_the_newest(tmp_path: Path) -> None:
    path = tmp_path / "service.log"
    log = RotatingLog(path, max_bytes=100, keep=2)
    for number in range(50):
        log.write(f"line {number:04d}\n".encode())
    log.close()
    files = sorted(file.name for file in tmp_path.iterdir())
    assert files == ["service.log", "service.log.1", "service.log.2"]
    assert all(file.stat().st_size <= 100 for file in tmp_path.iterdir())
    assert tail(path, 1) == ["line 0049"]
    assert tail(tmp_path / "absent", 3) == []
