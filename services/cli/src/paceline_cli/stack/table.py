"""The live picture of a stack on a terminal."""

import math
import time

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from paceline_cli.fleet import FleetView
from paceline_cli.stack.child import Child, ChildState

_STATE_STYLE = {
    ChildState.READY: "green",
    ChildState.STARTING: "yellow",
    ChildState.WAITING: "red",
    ChildState.STOPPING: "yellow",
    ChildState.STOPPED: "dim",
}


def picture(children: list[Child], fleet: FleetView) -> RenderableType:
    """Processes, engines and attainment, one above the other."""
    parts: list[RenderableType] = [_processes(children)]
    if fleet.engines:
        parts.append(_engines(fleet))
    parts.append(_attainment(fleet))
    return Group(*parts)


def _processes(children: list[Child]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("process", "state", "pid", "restarts", "up", "address"):
        table.add_column(name, justify="right" if name in ("pid", "restarts", "up") else "left")
    for child in children:
        up_s = time.monotonic() - child.started_s if child.pid else 0.0
        table.add_row(
            child.spec.name,
            Text(child.state.value, style=_STATE_STYLE[child.state]),
            str(child.pid or "-"),
            str(child.restarts),
            f"{up_s:.0f} s",
            child.spec.address,
        )
    return table


def _engines(fleet: FleetView) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("engine", "state", "running", "queued", "paused", "KV", "tokens/s"):
        table.add_column(name, justify="left" if name in ("engine", "state") else "right")
    for engine in fleet.engines:
        used = engine.kv_used_tokens / engine.kv_capacity_tokens if engine.kv_capacity_tokens else 0.0
        table.add_row(
            engine.engine_id, engine.state, str(engine.running), str(engine.queued), str(engine.paused),
            f"{used:.0%}", f"{engine.tokens_per_s:.0f}",
        )  # fmt: skip
    return table


def _attainment(fleet: FleetView) -> Text:
    if fleet.problem:
        return Text(fleet.problem, style="dim")
    shares = [
        f"{row.slo_class} {row.share:.0%} of {row.ended}"
        for row in fleet.attainment
        if not math.isnan(row.share)
    ]
    return Text("attainment: " + (", ".join(shares) if shares else "no request has ended yet"))
