"""Python, packages, the native library."""

import ctypes.util
import platform
import re
import sys
from importlib import metadata
from pathlib import Path

from paceline_cli.doctor.finding import Finding, ok, problem, warning

_MINIMUM = (3, 11)
_PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;\\]+)")
_SHOWN = 5

# Without these nothing starts; reports and tests need more.
_NEEDED = (
    "grpcio", "protobuf", "numpy", "SQLAlchemy", "aiosqlite", "alembic", "pydantic", "PyYAML", "starlette", "uvicorn",
    "uvloop", "Jinja2", "opentelemetry-sdk", "psutil", "gguf", "xllamacpp",
)  # fmt: skip


def check_python() -> Finding:
    """The interpreter is new enough."""
    version = platform.python_version()
    if sys.version_info < _MINIMUM:
        return problem(
            "python", f"Python {version}", "use Python 3.11 or newer: `make setup PYTHON=python3.11`"
        )
    return ok("python", f"Python {version} at {sys.executable}")


def check_packages(lock: Path | None) -> Finding:
    """What is needed is installed, in the versions of the lock where there is one."""
    missing = [name for name in _NEEDED if _installed(name) is None]
    if missing:
        return problem(
            "packages", f"not installed: {', '.join(missing)}", "run `make setup` in the repository"
        )
    if lock is None:
        return ok(
            "packages", f"{len(_NEEDED)} needed packages are installed (no requirements.lock to compare with)"
        )
    pins = read_pins(lock.read_text(encoding="utf-8"))
    other = {
        name: (versions, found)
        for name, versions in pins.items()
        if (found := _installed(name)) is not None and found not in versions
    }
    if other:
        shown = ", ".join(
            f"{name} {found} instead of {' or '.join(versions)}"
            for name, (versions, found) in list(other.items())[:_SHOWN]
        )
        more = f" and {len(other) - _SHOWN} more" if len(other) > _SHOWN else ""
        return warning(
            "packages", f"not as in {lock.name}: {shown}{more}", "run `make setup` to install what was tested"
        )
    return ok("packages", f"all needed packages are installed as in {lock.name}")


def read_pins(text: str) -> dict[str, list[str]]:
    """Name -> versions of the pinned lines of a lock file: several where they depend on the version of Python."""
    pins: dict[str, list[str]] = {}
    for line in text.splitlines():
        if found := _PIN.match(line):
            pins.setdefault(found.group(1), []).append(found.group(2))
    return pins


def find_lock() -> Path | None:
    """The lock of the repository this package is installed from in editable mode; None elsewhere."""
    for folder in Path(__file__).resolve().parents:
        if (folder / "requirements.lock").is_file():
            return folder / "requirements.lock"
    return None


def check_engine_library() -> list[Finding]:
    """The OpenMP runtime, and the llama.cpp build that the binding was written for."""
    findings = []
    if ctypes.util.find_library("gomp") or _bundled_gomp():
        findings.append(ok("libgomp", "the OpenMP runtime is there"))
    else:
        findings.append(
            problem(
                "libgomp",
                "libgomp.so.1 is missing, and llama.cpp needs it",
                "install it: `apt-get install libgomp1`, `dnf install libgomp`, or `apk add libgomp`",
            )
        )
    from paceline_executor.llamacpp.binding import BindingError, load_library

    try:
        load_library()
    except (BindingError, OSError) as error:
        findings.append(
            problem("llama.cpp", str(error), "run `make setup`: the binding fits one release only")
        )
    else:
        findings.append(ok("llama.cpp", f"xllamacpp {_installed('xllamacpp')}, layout as expected"))
    return findings


def _bundled_gomp() -> bool:
    """Wheels may bring their own copy beside their libraries."""
    try:
        files = metadata.files("xllamacpp") or []
    except metadata.PackageNotFoundError:
        return False
    return any("gomp" in file.name for file in files)


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
