"""The command line: every command by name."""

import os
from typing import Annotated

import typer

from paceline_cli.commands import (
    bench,
    compare,
    config,
    doctor,
    drain,
    evaluate,
    lab,
    lengths,
    live,
    replay,
    report,
    request,
    status,
    store,
    train,
    up,
    validate,
)
from paceline_cli.errors import DEBUG_VARIABLE

app = typer.Typer(
    name="paceline",
    help="Paceline: a control plane for LLM serving. Start with `paceline up`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(up.up)
app.command()(up.down)
app.command()(status.status)
app.add_typer(request.app, name="request")
app.command()(request.explain)
app.command()(drain.drain)
app.add_typer(doctor.app, name="doctor")
app.add_typer(config.app, name="config")
app.add_typer(store.app, name="store")
app.command()(live.live)
app.command()(replay.replay)
app.command()(compare.compare)
app.add_typer(bench.app, name="bench")
app.add_typer(report.app, name="report")
app.add_typer(lab.app, name="lab")
lab.app.command("validate")(validate.validate)
app.add_typer(lengths.app, name="lengths")
app.add_typer(train.app, name="train")
app.add_typer(evaluate.app, name="eval")


@app.callback()
def main(debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False) -> None:
    """Paceline: a control plane for LLM serving."""
    if debug:
        os.environ[DEBUG_VARIABLE] = "1"
