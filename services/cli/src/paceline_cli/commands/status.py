"""`paceline status`: the services' health, the fleet, attainment, durability, how good predictions are."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from paceline_cli.errors_base import CommandError
from paceline_cli.fleet import FleetReader, FleetView
from paceline_cli.output import console, print_json, print_table
from paceline_cli.predictions import PredictorView, print_predictor, read_predictor
from paceline_cli.stack.probe import http_get
from paceline_cli.stack.statefile import ServiceEntry
from paceline_cli.target import (
    DEFAULT_STATE_DIR,
    JsonOption,
    RouterOption,
    StateDirOption,
    Target,
    TokenOption,
    find_target,
)
from paceline_runtime.channel import channel

_HEALTH_S = 2.0


def status(
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    router: RouterOption = "",
    token: TokenOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show whether every service is well, what the engines do, and how objectives are met.

    Ends with code 1 when something is not ready.

    Examples:

      paceline status

      paceline status --json --router 10.0.0.5:7400
    """
    target = find_target(state_dir, router, token)
    report = asyncio.run(_gather(target))
    if as_json:
        print_json(report)
    else:
        _print(report)
    if not report["healthy"]:
        raise SystemExit(1)


async def _gather(target: Target) -> dict[str, Any]:
    services = target.state.services if target.state else ()
    async with FleetReader(target.router, target.channel_config()) as reader:
        (fleet, gateway, predictor), health = await asyncio.gather(
            asyncio.gather(reader.read(), _gateway(target.gateway), _predictor(services)),
            asyncio.gather(*(_health(service) for service in services)),
        )
    if target.state is None and fleet.problem:
        raise CommandError(
            f"nothing answers at {target.router}: start a stack with `paceline up`, or name a router with --router"
        )
    rows = [{**asdict(service), "health": state} for service, state in zip(services, health, strict=True)]
    healthy = not fleet.problem and gateway["ready"] and all(row["health"] == "ready" for row in rows)
    return {
        "healthy": healthy,
        "router": target.router,
        "gateway": gateway,
        "services": rows,
        "fleet": _fleet_dict(fleet),
        "predictor": asdict(predictor) if predictor is not None else None,
    }


def _fleet_dict(fleet: FleetView) -> dict[str, Any]:
    return {
        "problem": fleet.problem,
        "engines": [asdict(engine) for engine in fleet.engines],
        "attainment": [asdict(row) for row in fleet.attainment],
    }


async def _health(service: ServiceEntry) -> str:
    """`ready`, `alive` (not ready), or what is wrong."""
    if service.pid is None:
        return service.state
    if service.name == "gateway":
        code, _ = await http_get(service.address, "/readyz", timeout_s=_HEALTH_S)
        return "ready" if code == 200 else f"readyz answers {code}" if code else "does not answer"
    async with channel(service.address) as connection:
        stub: Any = health_pb2_grpc.HealthStub(connection)
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(service="readiness"), timeout=_HEALTH_S)
        except grpc.aio.AioRpcError as error:
            return f"does not answer ({error.code().name})"
    return "ready" if answer.status == health_pb2.HealthCheckResponse.SERVING else "alive, not ready"


async def _predictor(services: Sequence[ServiceEntry]) -> PredictorView | None:
    """None when no predictor of the stack is alive."""
    for service in services:
        if service.name == "predictor" and service.pid is not None:
            return await read_predictor(service.address)
    return None


async def _gateway(address: str) -> dict[str, Any]:
    code, body = await http_get(address, "/readyz", timeout_s=_HEALTH_S)
    try:
        details = json.loads(body) if body else {}
    except ValueError:
        details = {}
    if not isinstance(details, dict):
        details = {}
    return {"address": address, "ready": code == 200, "status": code, "details": details}


def _plan_line(engine_id: str, plan: Mapping[str, Any]) -> str:
    """One engine's policy, why its requests stand where they stand, and what became of others."""
    counted = ((name, plan[name]) for name in ("shed", "preempted", "resumed"))
    words = [f"{engine_id}: {plan['policy']}, {plan['listed']} listed" + _counts(plan["reasons"])]
    words += [f"{name}{_counts(counts)}" for name, counts in counted if counts]
    return "; ".join(words)


def _counts(counts: Mapping[str, int]) -> str:
    listed = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    return f" ({listed})" if listed else ""


def _print(report: dict[str, Any]) -> None:
    gateway, fleet = report["gateway"], report["fleet"]
    console.print("[green]healthy[/]" if report["healthy"] else "[red]not healthy[/]")
    if report["services"]:
        print_table(
            ("service", "health", "pid", "restarts", "address"),
            [
                (row["name"], row["health"], row["pid"] or "-", row["restarts"], row["address"])
                for row in report["services"]
            ],
            right=("pid", "restarts"),
        )
    console.print(f"gateway http://{gateway['address']}: {'ready' if gateway['ready'] else 'not ready'}")
    for key, value in gateway["details"].items():
        console.print(f"  {key}: {value}")
    if fleet["problem"]:
        console.print(f"[red]{fleet['problem']}[/]")
    if fleet["engines"]:
        print_table(
            ("engine", "state", "model", "backend", "running", "queued", "paused", "KV tokens", "tokens/s"),
            [
                (
                    row["engine_id"], row["state"], row["model"], row["backend"], row["running"], row["queued"],
                    row["paused"], f"{row['kv_used_tokens']}/{row['kv_capacity_tokens']}", f"{row['tokens_per_s']:.0f}",
                )
                for row in fleet["engines"]
            ],
            right=("running", "queued", "paused", "KV tokens", "tokens/s"),
        )  # fmt: skip
    for row in fleet["engines"]:
        if row["plan"] is not None:
            console.print(_plan_line(row["engine_id"], row["plan"]), soft_wrap=True)
    if report["predictor"] is not None:
        print_predictor(report["predictor"])
    for row in fleet["attainment"]:
        if row["ended"]:
            console.print(
                f"attainment {row['slo_class']}: {row['attained'] / row['ended']:.1%} of {row['ended']}"
            )
