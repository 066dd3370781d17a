"""Which running stack a command talks to."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import grpc
import typer

from paceline.router.v1 import router_pb2_grpc
from paceline_cli.errors_base import CommandError
from paceline_cli.stack.statefile import StackState, StateDir
from paceline_runtime.channel import channel
from paceline_runtime.status import details_of

DEFAULT_ROUTER = "127.0.0.1:7400"
DEFAULT_GATEWAY = "127.0.0.1:8080"

StateDirOption = Annotated[
    Path,
    typer.Option("--state-dir", envvar="PACELINE_STATE_DIR", help="Folder of the stack's state and logs."),
]
RouterOption = Annotated[
    str,
    typer.Option(
        "--router",
        envvar="PACELINE_ROUTER_ADDRESS",
        help="Router to ask, host:port. Default: the one of the state folder.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]

DEFAULT_STATE_DIR = Path(".paceline")


@dataclass(frozen=True, slots=True)
class Target:
    """Addresses of a stack; `state` is None when it was not started by `paceline up` here."""

    router: str
    gateway: str
    state: StackState | None


def find_target(state_dir: Path, router: str = "") -> Target:
    """The stack to talk to: `--router`, else the one of the state folder, else the default address."""
    state = StateDir(state_dir).read()
    if state is not None and not state.alive():
        state = None
    if router:
        return Target(router, state.gateway if state else DEFAULT_GATEWAY, state)
    if state is not None:
        return Target(state.router, state.gateway, state)
    return Target(DEFAULT_ROUTER, DEFAULT_GATEWAY, None)


@contextlib.asynccontextmanager
async def router_of(target: Target) -> AsyncIterator[router_pb2_grpc.RouterServiceStub]:
    """A stub for the router; a router that does not answer becomes a CommandError that says what to do."""
    async with channel(target.router) as connection:
        try:
            yield router_pb2_grpc.RouterServiceStub(connection)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE and details_of(error) is None:
                raise CommandError(
                    f"no router answers at {target.router}: start one with `paceline up`, or name it with --router"
                ) from None
            raise
