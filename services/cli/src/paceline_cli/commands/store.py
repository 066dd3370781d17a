"""`paceline store prune`: delete old work from the ledger."""

import asyncio
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from paceline_cli.errors_base import CommandError
from paceline_cli.output import clock_time, print_json
from paceline_cli.progress_bars import Report, progress_bars
from paceline_cli.quantities import bytes_of, megabytes, seconds_of
from paceline_cli.stack.configuration import CONFIG_FILE
from paceline_cli.target import DEFAULT_STATE_DIR, JsonOption, StateDirOption
from paceline_runtime.config import load_config
from paceline_runtime.config_model import ConfigModel
from paceline_store import Store
from paceline_store.config import StoreConfig
from paceline_store.database import parse_url
from paceline_store.retention import BATCH_ROWS

app = typer.Typer(help="The ledger: what is kept of requests.", no_args_is_help=True)


class _StoreDocument(ConfigModel):
    """The part of a configuration file that says where the ledger is."""

    store: StoreConfig = StoreConfig()
    """The store."""


@app.callback()
def _store() -> None:
    """The ledger: what is kept of requests."""


@app.command("prune")
def prune(
    older_than: Annotated[
        str, typer.Option(help="Delete what ended longer ago: 12h, 7d. Default: store.keep_ended_s.")
    ] = "",
    max_size: Annotated[
        str, typer.Option(help="Delete the oldest ended requests until all fit into this: 500MB, 2GiB.")
    ] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
    url: Annotated[
        str, typer.Option(help="Database. Default: store.url of --config, else that of the state folder.")
    ] = "",
    config: Annotated[Path | None, typer.Option("--config", "-c", help="YAML file.")] = None,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    as_json: JsonOption = False,
) -> None:
    """Delete ended requests and tasks, and engines that are gone, from the ledger. What has not ended always stays.

    May run beside a router: it deletes a few hundred rows at a time. The size is that of requests and their tokens, not
    of the files: a database uses the room again that was given free.

    Examples:

      paceline store prune --older-than 7d --dry-run

      paceline store prune --max-size 500MB --url postgresql://paceline@db/paceline
    """
    age_s = seconds_of(older_than, "--older-than") if older_than else None
    max_bytes = bytes_of(max_size, "--max-size") if max_size else None
    settings = _settings(url, config, state_dir)
    if age_s is None and max_bytes is None:
        if not settings.keep_ended_s:
            raise CommandError(
                "say what to delete: --older-than or --max-size (store.keep_ended_s is 0: for ever)"
            )
        age_s = settings.keep_ended_s
    with progress_bars(quiet=as_json) as report:
        result = asyncio.run(_prune(settings.url, age_s, max_bytes, dry_run, report))
    if as_json:
        print_json(result)
        return
    size = megabytes(result["deleted_bytes"])
    before = clock_time(result["ended_before_unix_ms"])
    print(
        f"{'would delete' if dry_run else 'deleted'} {result['requests']} requests ({size}), {result['tasks']} tasks, "
        f"{result['engines']} lost engines that ended before {before}"
    )
    print(
        f"{'would stay' if dry_run else 'stayed'}: {result['kept_requests']} ended requests, "
        f"{megabytes(result['kept_bytes'])}"
    )


def _settings(url: str, config: Path | None, state_dir: Path) -> StoreConfig:
    """The store section, with the URL to use. Raises CommandError when there is no database."""
    file = config
    if file is None and (state_dir / CONFIG_FILE).exists():
        file = state_dir / CONFIG_FILE
    if file is None and not url:
        raise CommandError(
            f"no stack has run in {state_dir}: name the database with --url, or a configuration with --config"
        )
    settings = load_config(_StoreDocument, file).store
    settings = settings.model_copy(update={"url": url}) if url else settings
    if not settings.url:
        raise CommandError("this configuration keeps no ledger: store.url is empty")
    try:
        parsed = parse_url(settings.url)
    except ValueError as error:
        raise CommandError(f"--url: {error}" if url else f"store.url: {error}") from None
    if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").is_file():
        raise CommandError(f"there is no database at {parsed.database}")
    return settings


async def _prune(
    url: str, age_s: float | None, max_bytes: int | None, dry_run: bool, report: Report
) -> dict[str, Any]:
    store = await Store.open(url, migrate=False)
    try:
        ended_before = 0 if age_s is None else round(1000 * (time.time() - age_s))
        if max_bytes is not None:
            ended_before = max(ended_before, await store.ended_before_for(max_bytes))
        everything, gone = await store.ended_size(), await store.ended_size(ended_before)
        if not dry_run:
            await _delete(store, ended_before, gone.rows, report)
    finally:
        await store.close()
    return {
        "dry_run": dry_run,
        "ended_before_unix_ms": ended_before,
        "requests": gone.requests,
        "tasks": gone.tasks,
        "engines": gone.engines,
        "deleted_bytes": gone.bytes,
        "kept_requests": everything.requests - gone.requests,
        "kept_bytes": everything.bytes - gone.bytes,
    }


async def _delete(store: Store, ended_before_unix_ms: int, total: int, report: Report) -> None:
    done = 0
    report("deleting", done, total)
    while deleted := await store.prune(ended_before_unix_ms, limit=BATCH_ROWS):
        done += deleted
        # A router beside us may have ended more meanwhile.
        report("deleting", min(done, total), total)
