"""`paceline bench`: what the line costs. Every benchmark starts its own private stack."""

import asyncio
from typing import Annotated, Any

import typer
from rich.console import Console

from paceline_cli.commands.bench_agree import agree
from paceline_cli.commands.bench_faults import faults
from paceline_cli.output import print_json

app = typer.Typer(help="Benchmarks; see tests/bench/README.md.", no_args_is_help=True)
app.command("faults")(faults)
app.command("agree")(agree)

_stderr = Console(stderr=True, soft_wrap=True, highlight=False)

JsonOption = Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Any key of the private stack: section.key=value.")
]


def _say(text: str) -> None:
    _stderr.print(text, markup=False)


@app.command("line")
def line(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of single requests.")] = 40,
    throughput_rounds: Annotated[int, typer.Option(min=1, help="Rounds of full batches.")] = 4,
    batch: Annotated[int, typer.Option(min=1, max=64, help="Requests at once in the throughput part.")] = 16,
    output_tokens: Annotated[int, typer.Option(min=8, help="Output tokens of each of them.")] = 64,
    model: Annotated[str, typer.Option(help="`tiny`, a GGUF file, or empty for the default model.")] = "",
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what the line adds to the engine: time to first token, and throughput at a full batch.

    The engine in process, the router over gRPC and the gateway over HTTP take turns. Leave the machine alone meanwhile.

    Example: paceline bench line --json
    """
    from paceline_cli.bench.line import bench_line
    from paceline_lab.bench.line import LinePlan

    overrides = list(sets or ())
    if model:
        overrides.append(f"executor.model_path={model}")
    plan = LinePlan(rounds, throughput_rounds, batch, output_tokens)
    result = asyncio.run(bench_line(plan, tuple(overrides), _say))
    if as_json:
        print_json(result)
        return
    _print_line(result)


@app.command("relay")
def relay(
    engines: Annotated[int, typer.Option(min=1, help="Simulated engines.")] = 64,
    batch: Annotated[int, typer.Option(min=1, help="Requests running on each engine.")] = 16,
    hosts: Annotated[int, typer.Option(min=1, help="Processes that host the engines.")] = 1,
    seconds: Annotated[float, typer.Option(min=1, help="Seconds of the throughput part.")] = 12.0,
    memory_requests: Annotated[int, typer.Option(min=2, help="Live requests in the memory part.")] = 8192,
    time_scale: Annotated[
        float,
        typer.Option(
            min=0.01, help="Real seconds per simulated second: below 1 the engines offer more tokens."
        ),
    ] = 2.0,
    store: Annotated[
        bool, typer.Option("--store", help="Keep request state in SQLite while measuring.")
    ] = False,
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure how many tokens a second one router relays from many simulated engines, and what a live request costs it.

    Example: paceline bench relay --json
    """
    from paceline_cli.bench.relay import bench_relay
    from paceline_cli.errors_base import CommandError
    from paceline_lab.bench.relay import RelayError, RelayPlan

    if memory_requests <= engines * batch:
        raise CommandError(f"--memory-requests must be more than the {engines * batch} that run at once")
    plan = RelayPlan(engines=engines, batch=batch, measure_s=seconds, memory_requests=memory_requests)
    try:
        result = asyncio.run(
            bench_relay(
                plan,
                hosts=hosts,
                with_store=store,
                time_scale=time_scale,
                overrides=tuple(sets or ()),
                say=_say,
            )
        )
    except RelayError as error:
        raise CommandError(f"the run is void: {error}") from None
    if as_json:
        print_json(result)
        return
    print(f"simulated engines: {result['tokens_per_s']:.0f} tokens/s through one router")
    print(f"memory: {result['router_bytes_per_request']} bytes per live request in the router")
    print("CPU, cores: " + ", ".join(f"{name} {cores:.2f}" for name, cores in result["cpu_cores"].items()))


@app.command("migration")
def migration(
    contexts: Annotated[
        str, typer.Option(help="Prompt lengths, tokens, with commas between.")
    ] = "128,512,1024,2048",
    rounds: Annotated[int, typer.Option(min=1, help="Moves of each kind at each length.")] = 5,
    seed: Annotated[int, typer.Option(help="Chooses the prompts.")] = 1,
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the pause that a client sees when its request is moved to another engine, by KV and by exact replay.

    Leave the machine alone meanwhile.

    Example: paceline bench migration --json
    """
    from paceline_cli.bench.migration import bench_migration
    from paceline_cli.errors_base import CommandError
    from paceline_lab.bench.migration import MigrationBenchError, MigrationPlan

    lengths = tuple(int(part) for part in contexts.split(",") if part.strip().isdigit())
    if not lengths or min(lengths) < 1:
        raise CommandError(f"--contexts must be lengths with commas between, got {contexts!r}")
    plan = MigrationPlan(contexts=lengths, rounds=rounds, seed=seed)
    try:
        result = asyncio.run(bench_migration(plan, tuple(sets or ()), _say))
    except MigrationBenchError as error:
        raise CommandError(f"the run is void: {error}") from None
    if as_json:
        print_json(result)
        return
    for row in result["rows"]:
        pause = row["pause_ms"]
        print(
            f"context {row['context_tokens']:5d}, {row['way']:6}: pause P50 {pause['p50']:.0f} ms, "
            f"P90 {pause['p90']:.0f} ms; {row['kv_bytes'] / 1e6:.1f} MB; identical {row['identical_share']:.0%}"
        )
    print(f"the router chose the way with the shorter pause in {result['chosen_faster_share']:.0%}")


@app.command("predictor")
def predictor(
    seed: Annotated[int, typer.Option(help="Chooses the questions.")] = 1,
    seconds: Annotated[
        float, typer.Option(min=0.5, help="Seconds of single questions at a fixed rate.")
    ] = 8.0,
    rate: Annotated[float, typer.Option(min=1, help="Single questions a second over gRPC.")] = 1000.0,
    length_model: Annotated[
        str, typer.Option(help="ONNX file, `none`, or empty for the one that ships.")
    ] = "",
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what a length prediction costs: in process, refined in a caller, and over gRPC.

    Leave the machine alone meanwhile.

    Example: paceline bench predictor --json
    """
    from paceline_cli.bench.predictor import bench_predictor
    from paceline_cli.errors_base import CommandError
    from paceline_lab.bench.predictor import PredictorPlan
    from paceline_lab.bench.predictor_calls import PredictorBenchError, run_fast

    plan = PredictorPlan(seed=seed, open_loop_s=seconds, rate_per_s=rate, batched_s=min(5.0, seconds))
    try:
        result = run_fast(bench_predictor(plan, length_model, tuple(sets or ()), _say))
    except PredictorBenchError as error:
        raise CommandError(f"the run is void: {error}") from None
    if as_json:
        print_json(result)
        return
    print(f"model: {result['model_kind']} {result['model_version']}, {result['model_bytes']} bytes")
    for name, label in (("single", "one question"), ("batch64", "64 questions")):
        p50, p99 = result[f"{name}_ms_p50"], result[f"{name}_ms_p99"]
        print(f"in process, {label}: P50 {p50:.3f} ms, P99 {p99:.3f} ms")
    print(
        f"refinement in a caller: 256 requests {result['refine_256_ms_p50']:.3f} ms, "
        f"10,000 requests {result['refine_10k_ms_p50']:.3f} ms"
    )
    print(
        f"over gRPC: {result['grpc_qps']:.0f}/s single, P50 {result['grpc_ms_p50']:.2f} ms, "
        f"P99 {result['grpc_ms_p99']:.2f} ms; {result['grpc_batched_qps']:.0f}/s in calls of 64; "
        f"{result['service_rss_mb']:.0f} MB resident"
    )


@app.command("scheduler")
def scheduler(
    live: Annotated[int, typer.Option(min=1, help="Live requests in the table.")] = 10_000,
    batch: Annotated[int, typer.Option(min=1, help="Batch limit of the engine.")] = 256,
    policies: Annotated[str, typer.Option(help="Names with commas between; empty: all.")] = "",
    rounds: Annotated[int, typer.Option(min=1, help="Timed plans of each policy.")] = 400,
    seed: Annotated[int, typer.Option(help="Chooses the requests.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Measure what a plan costs, policy by policy: the table's view, the policy, and what fits of its list.

    Leave the machine alone meanwhile.

    Example: paceline bench scheduler --live 10000 --json
    """
    from paceline_cli.errors_base import CommandError
    from paceline_lab.bench.scheduler import SchedulerPlan, measure_planning
    from paceline_lab.machine import describe_machine

    names = tuple(name.strip() for name in policies.split(",") if name.strip())
    plan = SchedulerPlan(live=live, batch=batch, rounds=rounds, seed=seed, policies=names)
    try:
        result = {"benchmark": "scheduler", **measure_planning(plan, _say), "machine": describe_machine()}
    except ValueError as error:
        raise CommandError(str(error)) from None
    if as_json:
        print_json(result)
        return
    for name, figures in result["policies"].items():
        print(f"{name:18s} plan P50 {figures['plan_ms_p50']:7.3f} ms, P99 {figures['plan_ms_p99']:7.3f} ms")
    print(f"memory: {result['bytes_per_live_request']:.0f} bytes per live request in the table")


@app.command("router")
def router(
    engines: Annotated[int, typer.Option(min=1, help="Simulated engines.")] = 512,
    decisions: Annotated[int, typer.Option(min=100, help="Decisions timed for each policy.")] = 2000,
    fill: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of the slots that are taken.")] = 0.7,
    policies: Annotated[str, typer.Option(help="Placement policies by commas; empty: all.")] = "",
    policy: Annotated[str, typer.Option(help="The one whose figures stand on top.")] = "margin",
    seed: Annotated[int, typer.Option(help="Chooses the requests.")] = 1,
    calls: Annotated[bool, typer.Option(help="Also over gRPC, with one router process.")] = True,
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds of each part over gRPC.")] = 5.0,
    stream_rate: Annotated[
        float, typer.Option(min=1, help="Decisions a second asked for on RouteStream.")
    ] = 10_500.0,
    unary_rate: Annotated[float, typer.Option(min=1, help="Calls of Route a second.")] = 500.0,
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what a routing decision costs: in the decision core alone, then over gRPC.

    The engines are announced to the router and not run.

    Leave the machine alone meanwhile.

    Example: paceline bench router --engines 512 --json
    """
    from paceline_cli.bench.router import bench_router_calls
    from paceline_cli.errors_base import CommandError
    from paceline_lab.bench.predictor_calls import run_fast
    from paceline_lab.bench.router import RouterPlan, bench_router
    from paceline_lab.bench.router_calls import CallsPlan, RouterBenchError
    from paceline_lab.machine import describe_machine

    names = tuple(name.strip() for name in policies.split(",") if name.strip())
    plan = RouterPlan(engines, decisions, fill, seed, names, policy)
    try:
        result = bench_router(plan)
    except ValueError as error:
        raise CommandError(str(error)) from None
    if calls:
        wanted = CallsPlan(stream_rate, unary_rate, seconds, min(1.0, seconds), seed=seed)
        try:
            result |= run_fast(bench_router_calls(plan, wanted, tuple(sets or ()), _say))
        except RouterBenchError as error:
            raise CommandError(f"the run is void: {error}") from None
    result["machine"] = describe_machine()
    if as_json:
        print_json(result)
        return
    print(f"{engines} engines, {result['live_requests']} live requests; microseconds, P50 and P99")
    for name, row in result["policies"].items():
        print(f"{name:24s} decision {row['decision_us_p50']:8.1f} {row['decision_us_p99']:8.1f}")
    if calls:
        print(
            f"RouteStream with {policy}: {result['stream_decisions_per_s']:.0f} decisions/s, "
            f"P99 {result['stream_ms_p99']:.2f} ms; {result['stream_most_per_s']:.0f}/s at most"
        )
        print(
            f"Route at {unary_rate:.0f}/s: P50 {result['unary_ms_p50']:.2f} ms, P99 {result['unary_ms_p99']:.2f} ms"
        )


@app.command("simulator")
def simulator(
    policies: Annotated[str, typer.Option(help="Batch policies, by commas.")] = "sarathi,gmax,pace",
    engines: Annotated[
        str, typer.Option(help="Engine profiles, as `paceline replay` takes them.")
    ] = "a100-80-8b:16",
    rate: Annotated[
        float, typer.Option(min=0.01, help="Jobs a second over all engines; tasks have several requests.")
    ] = 1.0,
    seconds: Annotated[float, typer.Option(min=1, help="Seconds that are simulated.")] = 3600.0,
    placement: Annotated[str, typer.Option(help="Placement policy.")] = "least-predicted",
    seed: Annotated[int, typer.Option(help="Seed of the workload.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Measure how long a simulated hour of sixteen engines takes on one core.

    Leave the machine alone meanwhile.

    Example: paceline bench simulator --json
    """
    from paceline_cli.errors_base import CommandError
    from paceline_lab.bench.simulator import SimulatorPlan, bench_simulator

    names = tuple(name.strip() for name in policies.split(","))
    try:
        result = bench_simulator(SimulatorPlan(names, engines, rate, seconds, placement, seed), _say)
    except ValueError as error:
        raise CommandError(str(error)) from None
    if as_json:
        print_json(result)
        return
    for row in result["results"]:
        print(
            f"{row['policy']}: {row['simulated_over_wall']:.0f} times real time, {row['events_per_s']:.0f} events/s, "
            f"{row['plans']} plans"
        )


@app.command("trtllm")
def trtllm(
    emulated: Annotated[
        bool, typer.Option("--emulated", help="Measure on the emulator; there is no other way yet.")
    ] = False,
    mode: Annotated[str, typer.Option(help="`frame` or `plan`.")] = "frame",
    batch: Annotated[int, typer.Option(min=1, help="Requests that run at once.")] = 64,
    profile: Annotated[
        str, typer.Option(help="Engine profile that the emulator keeps time by.")
    ] = "a100-80-8b",
    as_json: JsonOption = False,
) -> None:
    """Measure what the TensorRT-LLM agent costs an emulated engine: CPU of an iteration, throughput, resumes, aborts.

    The figures are emulated: nothing here ran on a GPU.

    Example: paceline bench trtllm --emulated --json
    """
    from paceline_cli.errors_base import CommandError
    from paceline_lab.bench.trtllm import TrtllmBenchError, TrtllmPlan, bench_trtllm

    if not emulated:
        raise CommandError("say --emulated: on a GPU use `paceline doctor trtllm --live MODEL`")
    if mode not in ("frame", "plan"):
        raise CommandError("--mode is frame or plan")
    try:
        result = bench_trtllm(TrtllmPlan(profile=profile, mode=mode, batch=batch, requests=3 * batch), _say)
    except TrtllmBenchError as error:
        raise CommandError(f"the run is void: {error}") from None
    if as_json:
        print_json(result)
        return
    print(f"emulated {profile}, {mode} mode, batch {batch}: no GPU was used")
    print(f"agent: {result['agent_overhead_ms']:.2f} ms of CPU an iteration")
    print(f"throughput: {result['throughput_ratio']:.3f} of the engine by itself")
    print(f"resume: {result['resume_ratio']:.3f} of a decode step and the partial block")
    print(f"abort: {result['abort_iterations']} iterations at most")


def _print_line(result: dict[str, Any]) -> None:
    for name, value in result["ttft_ms"].items():
        print(f"TTFT {name:14s} P50 {value['p50']:7.2f} ms")
    grpc_ms, gateway_ms = (
        result["ttft_added_by_grpc_line_ms"]["p50"],
        result["ttft_added_by_gateway_ms"]["p50"],
    )
    print(
        f"added to first token, P50: {result['ttft_added_ms_p50']:.2f} ms "
        f"(gRPC line {grpc_ms:.2f}, gateway {gateway_ms:.2f})"
    )
    for name, value in result["tokens_per_s"].items():
        print(f"tokens/s at batch {result['plan']['batch']} {name:14s} P50 {value['p50']:7.1f}")
    print(f"throughput ratio: {result['throughput_ratio']:.3f}")
