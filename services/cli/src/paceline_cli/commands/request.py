"""`paceline request list|show` and `paceline explain`."""

import asyncio
from typing import Annotated

import typer

from paceline.common.v1 import attempt_pb2, slo_pb2
from paceline.router.v1 import generation_pb2, router_pb2
from paceline_cli.errors_base import CommandError
from paceline_cli.output import as_dict, clock_time, console, print_json, print_table
from paceline_cli.target import (
    DEFAULT_STATE_DIR,
    JsonOption,
    RouterOption,
    StateDirOption,
    TokenOption,
    find_target,
    router_of,
)

app = typer.Typer(help="Requests: live ones and those in the store.", no_args_is_help=True)

_CALL_S = 10.0
_MOVE_S = 60.0
_WAYS = {
    "": router_pb2.MOVE_WAY_UNSPECIFIED,
    "kv": router_pb2.MOVE_WAY_KV,
    "replay-exact": router_pb2.MOVE_WAY_REPLAY_EXACT,
    "replay-fast": router_pb2.MOVE_WAY_REPLAY_FAST,
}


@app.command("list")
def list_requests(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most rows.")] = 20,
    state: Annotated[
        str | None, typer.Option(help="Only this state: running, queued, finished, failed, ...")
    ] = None,
    tenant: Annotated[str, typer.Option(help="Only this tenant.")] = "",
    live: Annotated[bool, typer.Option("--live", help="Only live ones; does not ask the store.")] = False,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    router: RouterOption = "",
    token: TokenOption = "",
    as_json: JsonOption = False,
) -> None:
    """List requests, newest first.

    Examples:

      paceline request list --live

      paceline request list --state failed --limit 100 --json
    """
    query = router_pb2.ListRequestsRequest(
        limit=limit, state=_state_number(state), tenant=tenant, live_only=live
    )

    async def ask() -> router_pb2.ListRequestsResponse:
        async with router_of(find_target(state_dir, router, token)) as stub:
            return await stub.ListRequests(query, timeout=_CALL_S)

    answer = asyncio.run(ask())
    if as_json:
        print_json([as_dict(record) for record in answer.requests])
        return
    print_table(
        ("request", "state", "class", "engine", "attempts", "prompt", "output", "arrived"),
        [
            (
                record.request_id, state_name(record.state), slo_text(record.slo),
                record.attempts[-1].engine_id if record.attempts else "-", len(record.attempts),
                record.prompt_tokens or "-", record.output_tokens, clock_time(record.arrived_unix_ms),
            )
            for record in answer.requests
        ],
        right=("attempts", "prompt", "output"),
    )  # fmt: skip
    if answer.next_page_token:
        console.print(f"there are more: raise --limit ({limit})")


@app.command("show")
def show(
    request_id: Annotated[str, typer.Argument(help="The request.")],
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    router: RouterOption = "",
    token: TokenOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show one request: objective, attempts, outcome.

    Example: paceline request show req-7f3a
    """

    async def ask() -> router_pb2.RequestRecord:
        async with router_of(find_target(state_dir, router, token)) as stub:
            answer = await stub.GetRequest(
                router_pb2.GetRequestRequest(request_id=request_id), timeout=_CALL_S
            )
            return answer.request

    record = asyncio.run(ask())
    if as_json:
        print_json(as_dict(record))
    else:
        print_record(record)


@app.command("move")
def move(
    request_id: Annotated[str, typer.Argument(help="The request, live.")],
    to: Annotated[str, typer.Option("--to", help="The engine that is to go on with it.")],
    way: Annotated[str, typer.Option(help="kv, replay-exact or replay-fast; empty: the faster one.")] = "",
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    router: RouterOption = "",
    token: TokenOption = "",
    as_json: JsonOption = False,
) -> None:
    """Move a live request to another engine. Its client notices a pause at most; a move that fails changes nothing.

    Example: paceline request move req-7f3a --to cpu-1
    """
    asked = router_pb2.MoveRequestRequest(request_id=request_id, engine_id=to, way=_way_number(way))

    async def ask() -> router_pb2.MoveRequestResponse:
        async with router_of(find_target(state_dir, router, token)) as stub:
            return await stub.MoveRequest(asked, timeout=_MOVE_S)

    done = asyncio.run(ask())
    if as_json:
        print_json(as_dict(done))
        return
    name = next(name for name, number in _WAYS.items() if number == done.way)
    console.print(
        f"{request_id} moved from {done.from_engine_id} to {done.engine_id} by {name} at token {done.from_index}: "
        f"ready after {done.prepare_ms:.0f} ms, stopped {done.stop_ms:.0f} ms later"
    )


def explain(
    request_id: Annotated[str, typer.Argument(help="The request.")],
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    router: RouterOption = "",
    token: TokenOption = "",
    as_json: JsonOption = False,
) -> None:
    """Explain why a request went where it went: placements, scores of the alternatives, estimates, events.

    Example: paceline explain req-7f3a
    """

    async def ask() -> router_pb2.ExplainRequestResponse:
        async with router_of(find_target(state_dir, router, token)) as stub:
            return await stub.ExplainRequest(
                router_pb2.ExplainRequestRequest(request_id=request_id), timeout=_CALL_S
            )

    answer = asyncio.run(ask())
    if as_json:
        print_json(as_dict(answer))
        return
    print_record(answer.request)
    for placement in answer.placements:
        console.print(
            f"\nattempt {placement.attempt_number}: {placement.engine_id} by {placement.policy}: {placement.reason}\n"
            f"  length P50 {placement.length_p50:.0f}, P90 {placement.length_p90:.0f} tokens "
            f"(from {placement.estimate_source or 'nowhere'})"
        )
        if placement.scores:
            print_table(
                ("  engine", "score", "left out because"),
                [(f"  {row.engine_id}", f"{row.score:.4g}", row.excluded) for row in placement.scores],
                right=("score",),
            )
    for note in answer.scheduler_notes:
        console.print(f"scheduler: {note}", markup=False)
    if answer.events:
        console.print("")
        print_table(
            ("at ms", "event", "detail"),
            [(f"{event.at_ms:.1f}", event.event, event.detail) for event in answer.events],
            right=("at ms",),
        )


def print_record(record: router_pb2.RequestRecord) -> None:
    """A request for people."""
    console.print(f"request {record.request_id}: {state_name(record.state)}", markup=False)
    durability = generation_pb2.Durability.Name(record.durability).removeprefix("DURABILITY_").lower()
    pairs = [
        ("model", record.model),
        ("tenant / app", f"{record.tenant or '-'} / {record.app or '-'}"),
        ("objective", slo_text(record.slo)),
        ("arrived", clock_time(record.arrived_unix_ms)),
        ("tokens", f"{record.prompt_tokens} in, {record.output_tokens} out"),
        ("durability", durability),
    ]
    if record.task_id:
        pairs.append(("task", record.task_id))
    if record.HasField("finished"):
        pairs += _ending(record.finished)
    for name, value in pairs:
        console.print(f"  {name}: {value}", markup=False)
    if record.attempts:
        print_table(
            ("  attempt", "engine", "from token", "ended", "placed", "why"),
            [
                (
                    f"  {row.number}", row.engine_id, row.from_index, finish_name(row.finish_reason),
                    clock_time(row.placed_unix_ms), row.reason,
                )
                for row in record.attempts
            ],
            right=("from token",),
        )  # fmt: skip


def _ending(finished: generation_pb2.Finished) -> list[tuple[str, str]]:
    outcome = finished.outcome
    lines = [("ended", finish_name(finished.finish_reason))]
    if finished.HasField("failure"):
        lines.append(("failure", f"{finished.failure.reason}: {finished.failure.message}"))
    if finished.HasField("outcome"):
        lines.append(
            (
                "outcome",
                f"{'attained' if outcome.attained else 'missed'}, {outcome.tokens_in_time} of {outcome.tokens} tokens "
                f"in time, TTFT {outcome.ttft_ms:.0f} ms, TBT {outcome.tbt_mean_ms:.1f} ms, "
                f"TTLT {outcome.ttlt_ms:.0f} ms",
            )
        )
    return lines


def state_name(number: int) -> str:
    """`running`, `finished`, ..."""
    return (
        attempt_pb2.RequestState.Name(attempt_pb2.RequestState.ValueType(number))
        .removeprefix("REQUEST_STATE_")
        .lower()
    )


def finish_name(number: int) -> str:
    """`stop`, `length`, ...; `-` while it runs."""
    if number == attempt_pb2.FINISH_REASON_UNSPECIFIED:
        return "-"
    name = attempt_pb2.FinishReason.Name(attempt_pb2.FinishReason.ValueType(number))
    return name.removeprefix("FINISH_REASON_").lower()


def slo_text(slo: slo_pb2.Slo) -> str:
    """An objective in a few words."""
    target = slo.WhichOneof("target")
    if target == "latency":
        return f"latency TTFT {slo.latency.ttft_ms:g} ms, TBT {slo.latency.tbt_ms:g} ms"
    if target == "deadline":
        return f"deadline {slo.deadline.e2e_ms:g} ms"
    if target == "task":
        return f"task {slo.task.task_id} {slo.task.e2e_ms:g} ms"
    return "best effort" if target == "best_effort" else "-"


def _way_number(way: str) -> router_pb2.MoveWay.ValueType:
    if way not in _WAYS:
        raise CommandError(f"no way {way!r}: use one of {', '.join(filter(None, _WAYS))}")
    return _WAYS[way]


def _state_number(name: str | None) -> attempt_pb2.RequestState.ValueType:
    if name is None:
        return attempt_pb2.REQUEST_STATE_UNSPECIFIED
    key = f"REQUEST_STATE_{name.upper()}"
    if key not in attempt_pb2.RequestState.keys():  # noqa: SIM118 - an enum wrapper, not a dict
        known = ", ".join(state_name(value) for value in attempt_pb2.RequestState.values() if value)
        raise CommandError(f"unknown state {name!r}; known: {known}")
    return attempt_pb2.RequestState.Value(key)
