"""Ports, the model file, the database, a running stack."""

import asyncio
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paceline_cli.doctor.finding import Finding, ok, problem, warning
from paceline_cli.stack.ports import holder_of, is_free
from paceline_cli.stack.statefile import StackState

_DATABASE_TIMEOUT_S = 10.0


def check_ports(host: str, wanted: Mapping[str, int], running: StackState | None) -> list[Finding]:
    """Each port is free, or held by the running stack of this folder."""
    own = {service.address: service for service in running.services} if running else {}
    findings = []
    for name, port in wanted.items():
        service = own.get(f"{host}:{port}")
        if service is not None:
            findings.append(ok(f"port {port}", f"{service.name} of the running stack (pid {service.pid})"))
        elif is_free(host, port):
            findings.append(ok(f"port {port}", f"free, for {name}"))
        else:
            holder = holder_of(port)
            who = f"pid {holder.pid} ({holder.command})" if holder.pid else "a process of another user"
            findings.append(
                problem(
                    f"port {port}",
                    f"wanted for {name}, held by {who}",
                    f"stop it, or start with --set up.ports=auto{' or --port N' if name == 'gateway' else ''}",
                )
            )
    return findings


def check_model(executor: Mapping[str, Any]) -> Finding:
    """The model file is there and is what it should be."""
    if executor.get("backend", "llamacpp") != "llamacpp":
        return ok("model", "simulated engines need none")
    path = str(executor.get("model_path") or "")
    if path == "tiny":
        return ok("model", "tiny: a random model, made at start")
    if not path:
        return _check_default_model()
    file = Path(path)
    if not file.is_file():
        return problem(
            "model",
            f"{file} does not exist",
            "correct executor.model_path, or leave it out for the default model",
        )
    with file.open("rb") as content:
        if content.read(4) != b"GGUF":
            return problem("model", f"{file} is not a GGUF file", "give a model in GGUF format")
    return ok("model", f"{file}, {file.stat().st_size >> 20} MB, sha256 {_sha256(file)[:16]}")


def _check_default_model() -> Finding:
    from paceline_executor.llamacpp.model_fetch import MODEL_FILE, cache_folder

    file = cache_folder() / "models" / MODEL_FILE
    if not file.is_file():
        return warning(
            "model",
            f"the default model is not in {file.parent} yet",
            "nothing to do with a network: the first `paceline up` downloads 93 MB. Without one: --model tiny",
        )
    with file.open("rb") as content:
        if content.read(4) != b"GGUF" or file.stat().st_size < 50 << 20:
            return problem("model", f"{file} is damaged", f"delete it and start again: rm {file}")
    return ok("model", f"{file.name}, {file.stat().st_size >> 20} MB, sha256 {_sha256(file)[:16]}")


def check_database(url: str) -> Finding:
    """The database can be reached and has the tables of this version."""
    if not url:
        return warning("database", "store.url is empty: no request survives its router", "set store.url")
    file = sqlite_file(url)
    if file is not None and not file.exists():
        return ok("database", f"{file} will be made at the first start")
    try:
        return asyncio.run(_read_revision(url))
    except TimeoutError:
        return problem(
            "database", f"{_without_password(url)} does not answer", "is it running, and reachable from here?"
        )


async def _read_revision(url: str) -> Finding:
    from sqlalchemy import text
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.ext.asyncio import create_async_engine

    shown = _without_password(url)
    engine = create_async_engine(url)
    try:
        async with asyncio.timeout(_DATABASE_TIMEOUT_S), engine.connect() as connection:
            rows = (await connection.execute(text("SELECT version_num FROM alembic_version"))).scalars().all()
    except (SQLAlchemyError, OSError) as error:
        return problem(
            "database",
            f"{shown}: {str(error).splitlines()[0][:200]}",
            "check store.url and its rights; tables are made by the router at its first start",
        )
    finally:
        await engine.dispose()
    newest = newest_revision()
    if newest is not None and rows and rows[0] != newest:
        return warning(
            "database",
            f"{shown} is at revision {rows[0]}, this version needs {newest}",
            "the next start migrates it",
        )
    return ok("database", f"{shown}, revision {rows[0] if rows else 'none'}")


def newest_revision() -> str | None:
    """The revision that this version migrates to; None when the migrations cannot be found."""
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    import paceline_store

    folder = Path(paceline_store.__file__).parent / "migrations"
    if not folder.is_dir():
        return None
    config = Config()
    config.set_main_option("script_location", str(folder))
    return ScriptDirectory.from_config(config).get_current_head()


def sqlite_file(url: str) -> Path | None:
    """The file of a SQLite URL; None for other databases."""
    scheme, separator, path = url.partition(":///")
    return Path(path) if separator and scheme.startswith("sqlite") and path else None


def _without_password(url: str) -> str:
    from sqlalchemy import make_url

    return make_url(url).render_as_string(hide_password=True)


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
