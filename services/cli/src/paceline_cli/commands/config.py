"""`paceline config show`."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from paceline_cli.config_document import effective_document
from paceline_cli.stack.run import StackPlan, prepare
from paceline_cli.target import DEFAULT_STATE_DIR, StateDirOption

app = typer.Typer(help="The configuration.", no_args_is_help=True)


@app.command("show")
def show(
    config: Annotated[Path | None, typer.Option("--config", "-c", help="YAML file to start from.")] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="Any key: section.key=value. Repeatable.")
    ] = None,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
) -> None:
    """Print the effective configuration of the local stack as YAML: every key, its meaning, its value.

    What is printed can be saved, changed, and given to `paceline up --config`.

    Examples:

      paceline config show > paceline.yaml

      paceline config show --config paceline.yaml --set scheduler.policy=edf
    """
    with tempfile.TemporaryDirectory(prefix="paceline-") as folder:
        scratch = Path(folder)
        _, _, path = prepare(StackPlan(state_dir, config, overrides=tuple(sets or ())), write_to=scratch)
        print(effective_document(path))
