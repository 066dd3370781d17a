"""What the doctor finds, and what it advises."""

import os
import socket
import sqlite3
from pathlib import Path

import pytest

from paceline_cli.doctor import installation, machine, services
from paceline_cli.doctor.finding import Level
from paceline_cli.stack.statefile import ServiceEntry, StackState


def test_missing_and_other_versions_of_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "requirements.lock"
    installed = dict.fromkeys(installation._NEEDED, "1.0")
    monkeypatch.setattr(installation, "_installed", installed.get)
    lock.write_text("numpy==1.0 \\\n    --hash=sha256:00\nPyYAML==2.0 ; python_version < '4' \\\n")
    found = installation.check_packages(lock)
    assert found.level is Level.WARNING
    assert "PyYAML 1.0 instead of 2.0" in found.found
    assert "numpy" not in found.found
    lock.write_text(
        "numpy==1.0 ; python_version < '3' \\\nnumpy==1.1 ; python_version >= '3' \\\nuvicorn[standard]==1.0\n"
    )
    assert installation.check_packages(lock).level is Level.OK
    del installed["grpcio"]
    found = installation.check_packages(lock)
    assert (found.level, "grpcio" in found.found, "make setup" in found.advice) == (Level.PROBLEM, True, True)


def test_a_taken_port_names_its_holder_unless_it_is_our_own() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (found,) = services.check_ports("127.0.0.1", {"gateway": port}, None)
        assert found.level is Level.PROBLEM
        assert f"pid {os.getpid()}" in found.found
        assert "--port" in found.advice
        entry = ServiceEntry("gateway", os.getpid(), f"127.0.0.1:{port}", "ready", 0, "")
        state = StackState(os.getpid(), 0.0, True, entry.address, "", "", (entry,))
        (found,) = services.check_ports("127.0.0.1", {"gateway": port}, state)
        assert found.level is Level.OK
    (found,) = services.check_ports("127.0.0.1", {"gateway": port}, None)
    assert found.level is Level.OK


def test_model_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def level(**executor: object) -> Level:
        return services.check_model(executor).level

    assert level(backend="simulated") is Level.OK
    assert level(model_path="tiny") is Level.OK
    assert level(model_path=str(tmp_path / "absent.gguf")) is Level.PROBLEM
    file = tmp_path / "model.gguf"
    file.write_bytes(b"PK\x03\x04 a zip file")
    assert level(model_path=str(file)) is Level.PROBLEM
    file.write_bytes(b"GGUF and so on")
    assert level(model_path=str(file)) is Level.OK
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path / "cache"))
    assert level() is Level.WARNING  # not fetched yet: the first start does it
    from paceline_executor.llamacpp.model_fetch import MODEL_FILE

    default = tmp_path / "cache" / "models" / MODEL_FILE
    default.parent.mkdir(parents=True)
    default.write_bytes(b"GGUF, but cut short")
    found = services.check_model({})
    assert (found.level, f"rm {default}" in found.advice) == (Level.PROBLEM, True)


def test_database_states(tmp_path: Path) -> None:
    def check(file: Path) -> tuple[Level, str]:
        found = services.check_database(f"sqlite+aiosqlite:///{file}")
        return found.level, found.found

    assert services.check_database("").level is Level.WARNING
    assert check(tmp_path / "absent.db")[0] is Level.OK
    garbage = tmp_path / "garbage.db"
    garbage.write_bytes(b"this is no database, but it is longer than a header would be" * 40)
    assert check(garbage)[0] is Level.PROBLEM
    head = services.newest_revision()
    assert head is not None
    for revision, expected in ((head, Level.OK), ("0000", Level.WARNING)):
        file = tmp_path / f"{revision}.db"
        with sqlite3.connect(file) as connection:
            connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
            connection.execute("INSERT INTO alembic_version VALUES (?)", (revision,))
        assert check(file)[0] is expected


def test_clock_that_is_unset_jumps_or_went_back() -> None:
    def check(walls: list[float], **more: float) -> Level:
        ticks = iter(walls)
        ones = iter([0.0, 1.0])
        return machine.check_clock(lambda: next(ticks), lambda: next(ones), watch_s=0.0, **more).level

    now = 1_800_000_000.0
    assert check([now, now + 1.0, now + 1.0]) is Level.OK
    assert check([now, now + 90.0, now + 90.0]) is Level.WARNING
    assert check([1000.0, 1001.0, 1001.0]) is Level.PROBLEM
    assert check([now, now + 1.0, now + 1.0], newest_file_unix_s=now + 3600) is Level.WARNING


def test_cores_and_folder(tmp_path: Path) -> None:
    assert machine.check_cores(4, 2).level is Level.WARNING
    assert machine.check_cores(2, 2).level is Level.OK
    assert machine.check_writable(tmp_path / "new").level is Level.OK
    assert machine.check_disk(tmp_path / "new" / "deeper", needs_model=True).level in (
        Level.OK,
        Level.PROBLEM,
    )
