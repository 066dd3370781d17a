"""`paceline bench agree`: the simulator against the emulated TensorRT-LLM engine behind a private stack."""

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from paceline_cli.output import print_json, print_table

if TYPE_CHECKING:
    from paceline_lab.sim.agreement import AgreementPlan

_stderr = Console(stderr=True, soft_wrap=True, highlight=False)


def agree(
    rates: Annotated[
        list[float] | None, typer.Option("--rate", help="Jobs per emulated second; may be given often.")
    ] = None,
    duration: Annotated[float, typer.Option(min=1, help="Emulated seconds of arrivals.")] = 300.0,
    time_scale: Annotated[
        float, typer.Option(min=0.1, help="Real seconds per emulated second: the machine must keep up.")
    ] = 2.0,
    policy: Annotated[str, typer.Option(help="Batch policy of both sides.")] = "sarathi",
    workload: Annotated[str, typer.Option(help="Workload, by name.")] = "jitserve-mix",
    profile: Annotated[str, typer.Option(help="Engine profile that both keep time by.")] = "a100-80-8b",
    batch: Annotated[int, typer.Option(min=1, help="Requests that run at once.")] = 32,
    seed: Annotated[int, typer.Option(help="Seed of arrivals, lengths and prompts.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
) -> None:
    """Run jobs on the emulated engine behind the real line, simulate the same jobs, and compare who is in time.

    The figures are emulated: nothing here ran on a GPU. Leave the machine alone meanwhile: where the emulated engine
    falls behind its clock, the simulator is blamed for it. Takes some times duration * time scale for each rate.

    Example: paceline bench agree --rate 1 --rate 1.5 --json
    """
    from paceline_cli.errors_base import CommandError
    from paceline_lab.machine import describe_machine
    from paceline_lab.sim.agreement import AgreementPlan

    rows = []
    for rate in rates or [1.0, 1.5]:
        plan = AgreementPlan(
            workload, rate, duration, seed, policy, profile, time_scale, max_batch=batch
        )  # fmt: skip
        try:
            rows.append(asyncio.run(_run(plan)))
        except ValueError as error:
            raise CommandError(str(error)) from None
    if as_json:
        print_json(
            {"kind": "paceline bench agree", "emulated": True, "rows": rows, "machine": describe_machine()}
        )
        return
    columns = (
        "rate",
        "jobs",
        "calls",
        "in time, emulated",
        "simulated",
        "TTFT error",
        "TPOT error",
        "agrees",
    )
    print_table(columns, [_row(row) for row in rows], right=columns[:-1])


async def _run(plan: "AgreementPlan") -> dict[str, Any]:
    from paceline_cli.stack.private import private_stack
    from paceline_lab.live.session_client import SessionClient
    from paceline_lab.sim.agreement import compare, drive, simulated

    def say(text: str) -> None:
        _stderr.print(text, markup=False)

    jobs = plan.jobs()
    sim = await asyncio.to_thread(simulated, plan, jobs)
    say(f"{plan.rate_per_s:g} jobs/s: {len(jobs.jobs)} jobs of {jobs.calls} calls are simulated")
    async with (
        private_stack(overrides=plan.overrides(), on_event=say) as stack,
        SessionClient(stack.addresses.router) as client,
    ):
        emulated, late_ms = await drive(jobs, client, plan.time_scale, say)
    return compare(plan, jobs, emulated, sim, late_ms)


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{row['plan']['rate_per_s']:g}",
        str(row["jobs"]),
        str(row["calls"]),
        f"{row['attainment']['emulated']:.3f}",
        f"{row['attainment']['simulated']:.3f}",
        f"{row['ttft_error']:.1%}",
        f"{row['tpot_error']:.1%}",
        "yes" if row["agrees"] else "no",
    )
