"""`paceline lab validate`: the simulator against a real engine on this machine, and against measured GPU runs."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from paceline_cli.errors_base import CommandError
from paceline_cli.output import print_json, print_table

if TYPE_CHECKING:
    from paceline_lab.live.report import LiveReport
    from paceline_lab.live.run import LiveSpec
    from paceline_lab.sim.validation import LiveEngine

_stderr = Console(stderr=True, soft_wrap=True, highlight=False)


def validate(
    duration: Annotated[float, typer.Option(min=0, help="Seconds of live load. 0: no live part.")] = 120.0,
    rate: Annotated[float, typer.Option(min=0, help="Jobs per second; 0: --load of the capacity.")] = 0.0,
    load: Annotated[float, typer.Option(min=0.01, help="Share of the measured capacity.")] = 0.7,
    policy: Annotated[str, typer.Option(help="Batch policy of both sides.")] = "sarathi",
    seed: Annotated[int, typer.Option(help="Seed of arrivals and prompts.")] = 1,
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="Any key of the private stack: section.key=value.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder of the public data: compare measured GPU runs too.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
) -> None:
    """Drive a private stack of the embedded engine, simulate the same arrivals, and print how far the times are off.

    The simulated engine has the step times that the live scheduler fitted. Leave the machine alone meanwhile. With
    --data the measured vLLM runs are simulated too.

    Example: paceline lab validate --data data --json
    """
    from paceline_lab.machine import describe_machine
    from paceline_lab.sim.validation import (
        ATTAINMENT_TARGET,
        TPOT_TARGET,
        TTFT_TARGET,
        validate_live,
        validate_vllm,
    )

    document: dict[str, Any] = {
        "kind": "paceline lab validate",
        "targets": {"ttft": TTFT_TARGET, "tpot": TPOT_TARGET, "attainment": ATTAINMENT_TARGET},
    }
    if duration:
        report, engines = asyncio.run(_drive(duration, rate, load, policy, seed, tuple(sets or ())))
        try:
            document["live"] = {
                "workload_rate_per_s": report.workload.rate_per_s,
                **validate_live(report, engines, policy),
            }
        except ValueError as error:
            raise CommandError(str(error)) from None
    if data is not None:
        try:
            document["vllm"] = validate_vllm(data, lambda text: _stderr.print(text, markup=False))
        except FileNotFoundError as error:
            raise CommandError(
                f"{error.filename}: {error.strerror}: name the folder of gpu-perf with --data"
            ) from None
    if as_json:
        print_json({**document, "machine": describe_machine()})
        return
    rows = [("this machine", "fitted live", document["live"])] if "live" in document else []
    rows += [(row["run"], row["shares"], row) for row in document.get("vllm", {}).get("rows", [])]
    columns = (
        "run",
        "engine times",
        "calls",
        "TTFT error",
        "TPOT error",
        "attained, measured",
        "simulated",
        "within",
    )
    print_table(columns, [_row(*row) for row in rows], right=columns[2:7])


def _row(name: str, times: str, row: dict[str, Any]) -> tuple[str, ...]:
    return (
        name,
        times,
        str(row["calls"]),
        f"{row['ttft_error']:.1%}",
        f"{row['tpot_error']:.1%}",
        f"{row['attainment']['measured']:.3f}",
        f"{row['attainment']['simulated']:.3f}",
        "yes" if row["within_targets"] else "no",
    )


async def _drive(
    duration: float, rate: float, load: float, policy: str, seed: int, sets: tuple[str, ...]
) -> "tuple[LiveReport, list[LiveEngine]]":
    from paceline_cli.stack.private import private_stack
    from paceline_lab.live.calibrate import CalibrationError
    from paceline_lab.live.run import LiveSpec, run_live
    from paceline_lab.live.session_client import SessionClient
    from paceline_lab.live.workload import WorkloadSpec

    spec = LiveSpec(WorkloadSpec(rate, duration, seed), load=load, warmup_s=0.0, policy_label=policy)
    async with private_stack(
        overrides=(*sets, f"scheduler.policy={policy}"), on_event=_stderr.print
    ) as stack:
        before = await _fitted(stack.addresses.router)
        async with SessionClient(stack.addresses.router) as client:
            try:
                report = await run_live(_with_engines(spec, len(before)), client, say=_stderr.print)
            except CalibrationError as error:
                raise CommandError(str(error)) from None
        return report, await _fitted(stack.addresses.router)


def _with_engines(spec: "LiveSpec", count: int) -> "LiveSpec":
    from dataclasses import replace

    return replace(spec, engines=tuple({"engine_id": f"cpu-{number}"} for number in range(count)))


async def _fitted(router: str) -> "list[LiveEngine]":
    """What the schedulers say of their engines. Raises CommandError when one does not answer."""
    import grpc

    from paceline.router.v1 import router_pb2, router_pb2_grpc
    from paceline.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
    from paceline_core.engine_model import EngineModel
    from paceline_executor.config import ExecutorConfig
    from paceline_lab.sim.validation import LiveEngine
    from paceline_runtime.channel import channel

    limits = ExecutorConfig()
    engines: list[LiveEngine] = []
    try:
        async with channel(router) as connection:
            stub = router_pb2_grpc.RouterServiceStub(connection)
            listed = (await stub.ListEngines(router_pb2.ListEnginesRequest(), timeout=5.0)).engines
        for record in listed:
            async with channel(record.scheduler_endpoint) as connection:
                scheduler = scheduler_pb2_grpc.SchedulerServiceStub(connection)
                answer = await scheduler.GetLoad(scheduler_pb2.GetLoadRequest(), timeout=5.0)
            said, m = answer.load, answer.load.model
            engines.append(
                LiveEngine(
                    EngineModel(m.a_ms, m.b_ms, m.c_ms, m.a1_ms, m.p0_ms, m.d_ms, m.e_ms),
                    said.max_batch,
                    limits.max_resident,
                    said.kv_capacity_tokens,
                    limits.prefill_chunk_tokens,
                    limits.context_tokens,
                )
            )
    except grpc.aio.AioRpcError as error:
        raise CommandError(f"the private stack does not answer: {error.details()}") from None
    return engines
