"""`paceline lengths`: real output lengths of the embedded model."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from paceline_cli.errors_base import CommandError
from paceline_cli.output import print_json, print_table
from paceline_cli.stack.private import private_stack

if TYPE_CHECKING:
    from paceline_lab.lengths.collect.run import Progress as Collected
    from paceline_lab.lengths.live.run import LiveLengthsPlan

app = typer.Typer(help="Real outputs to learn lengths from.", no_args_is_help=True)

_stderr = Console(stderr=True, soft_wrap=True, highlight=False)
_QUIET_INTERVAL_S = 60.0


@app.command("collect")
def collect(
    data: Annotated[Path, typer.Option("--data", help="Folder of the public data sets.")],
    out: Annotated[
        Path, typer.Option("--out", help="JSON lines; outputs that are there are not made again.")
    ],
    prompts: Annotated[
        str, typer.Option(help="Names of prompt sets, with commas between them. Empty: all permissive sets.")
    ] = "",
    limit: Annotated[
        int, typer.Option(min=0, help="Outputs in the file at the end. 0: one for each prompt.")
    ] = 0,
    max_tokens: Annotated[
        str, typer.Option(help="Limits of an answer, tokens; one is drawn for each prompt.")
    ] = "128,128,256,512",
    max_prompt_tokens: Annotated[int, typer.Option(min=1, help="Longer prompts are left out.")] = 700,
    batch: Annotated[int, typer.Option(min=1, max=64, help="Answers made at once.")] = 8,
    threads: Annotated[
        int, typer.Option(min=1, help="Threads of the engine. Other than 1 it gives other near-ties.")
    ] = 1,
    temperatures: Annotated[
        str, typer.Option(help="Sampling temperatures; one is drawn for each prompt.")
    ] = "0,0.7,1.0",
    seed: Annotated[int, typer.Option(help="Seed of the order, the draws and the sampler.")] = 1,
    max_seconds: Annotated[float, typer.Option(min=0, help="Stop after this time. 0: when done.")] = 0.0,
    model: Annotated[str, typer.Option(help="A GGUF file, `tiny`, or empty for the default model.")] = "",
) -> None:
    """Put real prompts to the embedded engine, in this process, and keep its answers.

    One JSON line for each answer, written as it ends: run the same command again to go on after an interrupt. The
    order is shuffled over the sets, so that a part of the whole is a fair sample. Prompts are named by their id only.

    Example: paceline lengths collect --data data --out outputs.jsonl --limit 2500
    """
    from paceline_lab.lengths.collect.answering import EngineStopped
    from paceline_lab.lengths.collect.outputs import OutputsBusyError
    from paceline_lab.lengths.collect.run import CollectSpec, NothingToCollectError
    from paceline_lab.lengths.collect.run import collect as run

    try:
        spec = CollectSpec(
            data=data,
            out=out,
            sets=tuple(filter(None, (name.strip() for name in prompts.split(",")))),
            limit=limit,
            max_tokens=_integers(max_tokens, "--max-tokens"),
            max_prompt_tokens=max_prompt_tokens,
            batch=batch,
            threads=threads,
            temperatures=_numbers(temperatures, "--temperatures"),
            seed=seed,
            max_seconds=max_seconds,
            model_path=model,
        )
        with _terminated_as_interrupted(), _reporter() as report:
            result = run(spec, report, _say)
    except (NothingToCollectError, OutputsBusyError, EngineStopped, ValueError) as error:
        raise CommandError(str(error)) from error
    except KeyboardInterrupt:
        _say(f"interrupted; what had ended is in {out}: run the same command to go on")
        raise typer.Exit(130) from None
    _say(
        f"{result.done} outputs in {out}; this run: {result.collected}, {result.censored} of them cut, "
        f"{result.too_long} prompts too long, {result.tokens} tokens in {result.seconds:.0f} s"
    )


@app.command("live")
def live(
    requests: Annotated[int, typer.Option(min=1, help="Requests in all.")] = 600,
    warmup: Annotated[int, typer.Option(min=0, help="The first ones, scored apart.")] = 100,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Requests under way at once.")] = 8,
    max_tokens: Annotated[
        int, typer.Option(min=0, help="Limit of every answer. 0: each prompt's own.")
    ] = 256,
    temperatures: Annotated[
        str, typer.Option(help="Sampling temperatures; one is drawn for each request.")
    ] = "0,0.7,1.0",
    seed: Annotated[int, typer.Option(help="Seed of the prompts' order and the sampler.")] = 1,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="YAML file of the private stack.")
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any key of the private stack: section.key=value. Repeatable."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
) -> None:
    """Measure how often real answers are within the P90 declared at their arrival, from a cold start.

    A private stack with nothing learned answers the prompts of this package, which no model is trained on. A bound that
    stands at the limit of a cut answer counts as kept as far as the forecast foretold cuts.

    Example: paceline lengths live --requests 600 --json
    """
    from paceline_lab.lengths.live.run import LiveLengthsError, LiveLengthsPlan

    plan = LiveLengthsPlan(
        requests, warmup, concurrency, max_tokens, _numbers(temperatures, "--temperatures"), seed
    )
    try:
        result = asyncio.run(_live(plan, config, tuple(sets or ())))
    except* LiveLengthsError as errors:
        raise CommandError(str(errors.exceptions[0])) from None
    if as_json:
        print_json(result)
        return
    names = ("warmup", "scored", *(f"app {app}" for app in result["by_app"]))
    groups = (result["warmup"], result["scored"], *result["by_app"].values())
    columns = (
        "group", "requests", "P90 coverage", "+-", "bound below limit", "of those", "P90/P50", "cut", "foretold",
        "sources",
    )  # fmt: skip
    print_table(
        columns,
        [
            (
                name,
                group["requests"],
                _percent(group["coverage_p90"]),
                _percent(group["standard_error"]),
                group["open"],
                _percent(group["coverage_p90_open"]),
                "-" if group["width"] is None else f"{group['width']:.2f}",
                group["cut"],
                f"{group['cut_declared']:.0f}",
                ", ".join(f"{source} {count}" for source, count in sorted(group["sources"].items())),
            )
            for name, group in zip(names, groups, strict=True)
        ],
        right=columns[1:-1],
    )
    for model in result["predictor"] or ():
        _say(
            f"the predictor says: {model['kind']} {model['version']}, {model['observed']} outcomes, "
            f"P90 coverage {_percent(model['coverage_p90'])}"
        )


async def _live(plan: "LiveLengthsPlan", config: Path | None, sets: tuple[str, ...]) -> dict[str, Any]:
    from paceline_lab.lengths.live.run import run_live_lengths

    bar = Progress(
        TextColumn("requests"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=_stderr,
        disable=not _stderr.is_terminal,
    )
    async with private_stack(file=config, overrides=sets, on_event=_say) as stack:
        task = bar.add_task("requests", total=plan.requests)
        with bar:
            return await run_live_lengths(
                plan,
                stack.addresses.router,
                stack.addresses.predictor,
                lambda done, total: bar.update(task, completed=done, total=total),
            )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _integers(text: str, option: str) -> tuple[int, ...]:
    values = tuple(round(value) for value in _numbers(text, option))
    if min(values) < 1:
        raise CommandError(f"{option}: every limit is at least 1, got {text!r}")
    return values


def _numbers(text: str, option: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise CommandError(f"{option}: numbers with commas between them, got {text!r}") from None
    if not all(0 <= value < float("inf") for value in values):
        raise CommandError(f"{option}: numbers from 0 on, got {text!r}")
    return values


def _say(text: str) -> None:
    _stderr.print(text, markup=False)


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """End on SIGTERM as on Ctrl-C: the engine is closed, the file stays whole."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _reporter() -> Iterator[Callable[["Collected"], None]]:
    """A bar on a terminal, a line a minute elsewhere."""
    bar = Progress(
        TextColumn("outputs"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[detail]}"),
        console=_stderr,
        disable=not _stderr.is_terminal,
    )
    task = bar.add_task("outputs", total=None, detail="")
    said_s = 0.0

    def report(now: "Collected") -> None:
        nonlocal said_s
        detail = f"{now.tokens / max(now.seconds, 0.001):.0f} tokens/s, {now.censored} cut{_remaining(now)}"
        bar.update(task, completed=now.done, total=now.total, detail=detail)
        if bar.disable and now.seconds - said_s >= _QUIET_INTERVAL_S:
            said_s = now.seconds
            _say(f"{now.done} of {now.total} outputs, {detail}")

    with bar:
        yield report


def _remaining(now: "Collected") -> str:
    """Time to the end at this run's pace; nothing before there is one."""
    if not now.collected:
        return ""
    minutes = (now.total - now.done) * now.seconds / now.collected / 60
    return f", about {minutes:.0f} min left"
