"""`paceline up` and `paceline down`."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

from paceline_cli.errors_base import CommandError
from paceline_cli.fleet import FleetReader, FleetView
from paceline_cli.stack.run import RunningStack, StackPlan, running_stack
from paceline_cli.stack.statefile import StateDir
from paceline_cli.stack.supervisor import Supervisor
from paceline_cli.stack.table import picture
from paceline_cli.target import DEFAULT_STATE_DIR, StateDirOption
from paceline_scheduler.config import DEFAULT_POLICY, LIVE_POLICIES

_REFRESH_S = 1.0
_DOWN_TIMEOUT_S = 60.0
_POLL_S = 0.1


def up(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="YAML file; see `paceline config show`.")
    ] = None,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    engines: Annotated[int | None, typer.Option(min=1, max=64, help="Number of engines. Default: 2.")] = None,
    backend: Annotated[str | None, typer.Option(help="llamacpp (default) or simulated.")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="`tiny` (a random test model), or a GGUF file. Default: SmolLM2 135M Instruct."),
    ] = None,
    policy: Annotated[
        str | None, typer.Option(help=f"Batch policy: {', '.join(LIVE_POLICIES)}. Default: {DEFAULT_POLICY}.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="HTTP port of the gateway. Default: 8080.")] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any key of the configuration: section.key=value. Repeatable."),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return once the stack is ready; end it with `paceline down`.")
    ] = False,
) -> None:
    """Start the local stack: engines, schedulers, predictor, router and gateway, as separate processes.

    What dies is started again. Ctrl-C ends everything in order.

    Examples:

      paceline up

      paceline up --engines 1 --port 9000

      paceline up --backend simulated --engines 8 --policy edf
    """
    overrides = list(sets or ())
    if engines is not None:
        overrides.append(f"up.engines={engines}")
    if backend is not None:
        overrides.append(f"executor.backend={backend}")
    if model is not None:
        overrides.append(f"executor.model_path={model if model == 'tiny' else Path(model).resolve()}")
    if policy is not None:
        overrides.append(f"scheduler.policy={policy}")
    if port is not None:
        overrides.append(f"up.gateway_port={port}")
    plan = StackPlan(state_dir, config, overrides=tuple(overrides))
    if detach:
        _detach(plan)
    else:
        asyncio.run(_serve(plan, Console()))


def down(state_dir: StateDirOption = DEFAULT_STATE_DIR) -> None:
    """End the stack of a state folder.

    Example: paceline down
    """
    state = StateDir(state_dir).read()
    if state is None or not state.alive():
        print(f"no stack runs in {state_dir}")
        return
    os.kill(state.supervisor_pid, signal.SIGTERM)
    deadline = time.monotonic() + _DOWN_TIMEOUT_S
    while state.alive():
        if time.monotonic() > deadline:
            raise CommandError(
                f"the stack (pid {state.supervisor_pid}) did not end in {_DOWN_TIMEOUT_S:.0f} s"
            )
        time.sleep(_POLL_S)
    print("stopped")


async def _serve(plan: StackPlan, console: Console) -> None:
    """Run the stack in the foreground until a signal."""
    tell = _Teller(console)
    began = time.monotonic()
    loop = asyncio.get_running_loop()
    holder: list[Supervisor] = []

    def on_signal() -> None:
        tell("stopping")
        for supervisor in holder:
            supervisor.stop()

    def on_start(supervisor: Supervisor) -> None:
        holder.append(supervisor)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, on_signal)
        tell(f"starting {len(supervisor.children)} processes; logs in {plan.state_dir / 'logs'}")

    async with running_stack(plan, on_event=tell, on_start=on_start) as stack:
        if stack.supervisor.ready.is_set():
            tell(f"ready after {time.monotonic() - began:.1f} s")
            console.print(_how_to_call(stack), highlight=False, soft_wrap=True, markup=False)
            await _watch(stack, console, tell)
    tell("stopped")


async def _watch(stack: RunningStack, console: Console, tell: "_Teller") -> None:
    """Until the stack is asked to stop: a live picture on a terminal, silence elsewhere."""
    supervisor = stack.supervisor
    if not console.is_terminal:
        await supervisor.stopped_or_asked()
        return
    async with FleetReader(stack.addresses.router) as reader:
        with Live(picture(supervisor.children, FleetView()), console=console, auto_refresh=False) as live:
            tell.console = live.console
            while not supervisor.is_stopping():
                live.update(picture(supervisor.children, await reader.read()), refresh=True)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_REFRESH_S):
                        await supervisor.stopped_or_asked()


class _Teller:
    """Prints one line with the time of day."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def __call__(self, text: str) -> None:
        self.console.print(
            f"{time.strftime('%H:%M:%S')} {text}", highlight=False, soft_wrap=True, markup=False
        )


def _how_to_call(stack: RunningStack) -> str:
    model = model_name(stack.tree.get("executor", {}))
    url = f"http://{stack.addresses.gateway}/v1"
    return f"""
curl {url}/chat/completions -H 'content-type: application/json' \\
  -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "What is a queue?"}}]}}'

from openai import OpenAI
client = OpenAI(base_url="{url}", api_key="none")
for chunk in client.chat.completions.create(
    model="{model}", messages=[{{"role": "user", "content": "What is a queue?"}}], stream=True
):
    print(chunk.choices[0].delta.content or "", end="") if chunk.choices else None

gRPC: {stack.addresses.router}   state and logs: {stack.state_dir}   end it: Ctrl-C
"""


def model_name(executor: dict[str, object]) -> str:
    """The name under which the default executor serves its model."""
    if executor.get("model"):
        return str(executor["model"])
    if executor.get("backend") == "simulated":
        return "simulated"
    return "tiny" if executor.get("model_path") == "tiny" else "smollm2-135m-instruct"


def _detach(plan: StackPlan) -> None:
    """Start the same command again in the background and wait until it is ready."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--detach"]
    plan.state_dir.mkdir(parents=True, exist_ok=True)
    log = plan.state_dir / "up.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "paceline_cli", *arguments],
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    folder = StateDir(plan.state_dir)
    while process.poll() is None:
        state = folder.read()
        if state is not None and state.supervisor_pid == process.pid and state.ready:
            print(f"ready: http://{state.gateway}/v1 (pid {process.pid}); end it with `paceline down`")
            return
        time.sleep(_POLL_S)
    raise CommandError(f"the stack did not start:\n{log.read_text(errors='replace').strip()}")
