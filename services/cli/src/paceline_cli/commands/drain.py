"""`paceline drain`: take an engine out of placement, or back in."""

import asyncio
from typing import Annotated

import typer

from paceline.router.v1 import router_pb2
from paceline_cli.output import as_dict, print_json
from paceline_cli.target import (
    DEFAULT_STATE_DIR,
    JsonOption,
    RouterOption,
    StateDirOption,
    TokenOption,
    find_target,
    router_of,
)

_CALL_S = 10.0
_MOVE_S = 30.0
"""Longer than the router waits for the engine to let go of what is to move (router.cancel_timeout_s)."""


def drain(
    engine: Annotated[str, typer.Argument(help="The engine, e.g. cpu-0.")],
    resume: Annotated[bool, typer.Option("--resume", help="Take it back in.")] = False,
    timeout_s: Annotated[
        float,
        typer.Option(
            "--timeout", min=0, help="Seconds its requests may stay before they move; 0: to their end."
        ),
    ] = 0.0,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    router: RouterOption = "",
    token: TokenOption = "",
    as_json: JsonOption = False,
) -> None:
    """Stop sending requests to an engine; those on it go on to their end, or move after --timeout.

    Examples:

      paceline drain cpu-0 --timeout 30

      paceline drain cpu-0 --resume
    """
    query = router_pb2.DrainEngineRequest(engine_id=engine, timeout_ms=timeout_s * 1000, resume=resume)

    # The router answers when the engine is empty, or its requests were told to move.
    deadline_s = _CALL_S + (timeout_s + _MOVE_S if timeout_s and not resume else 0.0)

    async def ask() -> router_pb2.DrainEngineResponse:
        async with router_of(find_target(state_dir, router, token)) as stub:
            return await stub.DrainEngine(query, timeout=deadline_s)

    answer = asyncio.run(ask())
    if as_json:
        print_json(as_dict(answer))
    else:
        state = router_pb2.EngineState.Name(answer.state).removeprefix("ENGINE_STATE_").lower()
        print(f"{engine}: {state}, {answer.live} live requests on it")
