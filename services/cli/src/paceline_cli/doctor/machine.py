"""Cores, disk, clock."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from paceline_cli.doctor.finding import Finding, ok, problem, warning

_GB = 1 << 30
_MODEL_BYTES = 300 << 20  # download, conversion, and room to breathe
_SANE_AFTER_UNIX_S = 1_735_689_600  # 2025-01-01: before it, the clock was never set
_STEP_TOLERANCE_S = 0.5


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_cores(engine_threads: int, available: int) -> Finding:
    """Engine threads fit: an engine whose thread waits for a core makes every step slow."""
    found = f"{engine_threads} engine threads on {available} cores"
    if engine_threads > available:
        return warning(
            "cores",
            found,
            "start fewer engines: `paceline up --engines N`, or one thread each: executor.threads",
        )
    return ok("cores", found)


def check_disk(folder: Path, *, needs_model: bool) -> Finding:
    """There is room for the database, the logs and the model."""
    place = _existing(folder)
    free = shutil.disk_usage(place).free
    needed = _GB // 2 + (_MODEL_BYTES if needs_model else 0)
    found = f"{free / _GB:.1f} GB free at {place}"
    if free < needed:
        return problem("disk", found, f"free at least {needed / _GB:.1f} GB, or choose another --state-dir")
    return ok("disk", found)


def check_writable(folder: Path) -> Finding:
    """The state folder can be written."""
    place = _existing(folder)
    if not os.access(place, os.W_OK | os.X_OK):
        return problem(
            "state folder", f"{place} cannot be written", "choose another --state-dir, or change its owner"
        )
    return ok("state folder", f"{folder.resolve()}{'' if folder.exists() else ' (will be made)'}")


def check_clock(
    wall_s: Callable[[], float] = time.time,
    monotonic_s: Callable[[], float] = time.monotonic,
    *,
    newest_file_unix_s: float | None = None,
    watch_s: float = 0.2,
) -> Finding:
    """The wall clock is set, does not jump, and is not behind what was written earlier (leases would look expired)."""
    began_wall, began = wall_s(), monotonic_s()
    time.sleep(watch_s)
    drift = (wall_s() - began_wall) - (monotonic_s() - began)
    now = wall_s()
    if now < _SANE_AFTER_UNIX_S:
        return problem("clock", f"the clock says {time.ctime(now)}", "set the clock: start an NTP client")
    if newest_file_unix_s is not None and newest_file_unix_s > now + 5:
        return warning(
            "clock",
            f"files of the last run are {newest_file_unix_s - now:.0f} s in the future",
            "the clock was set back: leases of the last run hold until it has caught up; check NTP",
        )
    if abs(drift) > _STEP_TOLERANCE_S:
        return warning(
            "clock", f"the clock jumped by {drift:.1f} s while it was watched", "check NTP on this machine"
        )
    return ok("clock", time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(now)))


def _existing(folder: Path) -> Path:
    place = folder.resolve()
    while not place.exists():
        place = place.parent
    return place
