"""`paceline store prune` on a SQLite file and on a PostgreSQL server."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from paceline_cli.app import app
from paceline_cli.bench.databases import open_database
from paceline_cli.errors_base import CommandError
from paceline_cli.quantities import bytes_of, seconds_of
from paceline_store import RequestRow, Store

DAY_MS = 86_400_000
ENDED = RequestRow(
    "r", "router-0", "m", "t", "a", 8, "{}", 2, 1, b"s" * 1000, finished=b"f", finished_unix_ms=1
)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """A ledger with one request that ended on each of the last ten days, and one that lives."""
    async with open_database(request.param, tmp_path, "router-0") as database:
        store = await Store.open(database.url)
        now = round(1000 * time.time())
        rows = [
            replace(ENDED, request_id=f"r-{day}", finished_unix_ms=now - day * DAY_MS) for day in range(10)
        ]
        await store.apply([*rows, replace(ENDED, request_id="live", finished=None, finished_unix_ms=None)])
        await store.close()
        yield database.url


async def prune(*arguments: str) -> Result:
    """The command, in a thread: it has an event loop of its own."""
    return await asyncio.to_thread(CliRunner().invoke, app, ["store", "prune", *arguments])


async def report(*arguments: str) -> dict[str, Any]:
    result = await prune("--json", *arguments)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


async def test_a_dry_run_deletes_nothing_and_runs_delete_by_age_and_size(url: str) -> None:
    for _ in range(2):
        told = await report("--url", url, "--older-than", "132h", "--dry-run")
        assert (told["requests"], told["kept_requests"]) == (4, 6)
    done = await report("--url", url, "--older-than", "132h")
    assert (done["requests"], done["deleted_bytes"]) == (told["requests"], told["deleted_bytes"])
    after = await report("--url", url, "--older-than", "0s", "--dry-run")
    assert after["requests"] == 6

    room = (await report("--url", url, "--max-size", "1GB", "--dry-run"))["kept_bytes"]
    told = await report("--url", url, "--max-size", str(room // 2))
    assert 0 < told["kept_bytes"] <= room // 2
    store = await Store.open(url)
    left = {one.request.request_id for one in await store.list_requests(100)}
    await store.close()
    assert left == {"live", *(f"r-{day}" for day in range(told["kept_requests"]))}
    assert (await report("--url", url, "--max-size", str(room // 2)))["requests"] == 0


async def test_the_state_folder_says_where_the_ledger_is(tmp_path: Path) -> None:
    store = await Store.open(f"sqlite:///{tmp_path / 'ledger.db'}")
    await store.apply([ENDED])
    await store.close()
    (tmp_path / "paceline.yaml").write_text(f"store:\n  url: sqlite:///{tmp_path / 'ledger.db'}\n")
    result = await prune("--state-dir", str(tmp_path))
    assert result.exit_code == 0
    assert "deleted 1 requests" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--url", "sqlite:////nowhere/at-all.db"], "there is no database at /nowhere/at-all.db"),
        (["--url", "mysql://x"], "speaks SQLite and PostgreSQL"),
        (["--url", "sqlite:///x.db", "--older-than", "soon"], "--older-than is a time such as"),
        (["--url", "sqlite:///x.db", "--max-size", "7 apples"], "--max-size is a size such as"),
        ([], "name the database with --url"),
    ],
)
async def test_mistakes_are_told_in_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = await prune("--state-dir", str(tmp_path), *arguments)
    assert result.exit_code != 0
    assert isinstance(result.exception, CommandError)
    assert message in str(result.exception)


def test_ages_and_sizes() -> None:
    assert seconds_of("1.5h", "--x") == 5400
    assert bytes_of("2 GiB", "--x") == 2 << 30
    assert bytes_of("17", "--x") == 17
