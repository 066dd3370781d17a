"""Which running stack a command talks to."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import grpc
import typer
from pydantic import SecretStr

from paceline.router.v1 import router_pb2_grpc
from paceline_cli.errors_base import CommandError
from paceline_cli.stack.statefile import StackState, StateDir
from paceline_runtime.channel import ChannelConfig, channel
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
TokenOption = Annotated[
    str,
    typer.Option(
        "--token",
        envvar="PACELINE_TOKEN",
        help="Token to send to a router that asks for one.",
        show_envvar=True,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]

DEFAULT_STATE_DIR = Path(".paceline")


@dataclass(frozen=True, slots=True)
class Target:
    """Addresses of a stack, and the token to send to its router; `state` is None when it was not started by
    `paceline up` here."""

    router: str
    gateway: str
    state: StackState | None
    token: str = field(default="", repr=False)

    def channel_config(self) -> ChannelConfig:
        """How to dial its router."""
        return ChannelConfig(token=SecretStr(self.token) if self.token else None)


def find_target(state_dir: Path, router: str = "", token: str = "") -> Target:
    """The stack to talk to: `--router`, else the one of the state folder, else the default address."""
    state = StateDir(state_dir).read()
    if state is not None and not state.alive():
        state = None
    if router:
        return Target(router, state.gateway if state else DEFAULT_GATEWAY, state, token)
    if state is not None:
        return Target(state.router, state.gateway, state, token)
    return Target(DEFAULT_ROUTER, DEFAULT_GATEWAY, None, token)


@contextlib.asynccontextmanager
async def router_of(target: Target) -> AsyncIterator[router_pb2_grpc.RouterServiceStub]:
    """A stub for the router; a router that does not answer becomes a CommandError that says what to do."""
    async with channel(target.router, target.channel_config()) as connection:
        try:
            yield router_pb2_grpc.RouterServiceStub(connection)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE and details_of(error) is None:
                raise CommandError(
                    f"no router answers at {target.router}: start one with `paceline up`, or name it with --router"
                ) from None
            raise
