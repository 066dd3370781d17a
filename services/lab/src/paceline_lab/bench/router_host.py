"""A router whose engines are announced and not run: it hears load reports of theirs, and sends them nothing.

`python -m paceline_lab.bench.router_host --engines 512 --listen HOST:PORT [--set router.placement=margin ...]`

Reports are folded into the fleet where a session with a scheduler hands them over: what a session itself costs is not
in here (`paceline bench relay` has it).
"""

import argparse
import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final, cast

import numpy as np
import uvloop

from paceline.common.v1 import engine_pb2
from paceline.scheduler.v1 import scheduler_pb2
from paceline_core.engines.profile import Profile
from paceline_core.engines.shipped import load_profile
from paceline_core.headroom import HORIZONS_MS
from paceline_router.app import RouterApp
from paceline_router.clock import SystemClock
from paceline_router.config import Config
from paceline_router.engine import Engine
from paceline_router.scheduler_link import SchedulerLink
from paceline_runtime.config import load_config
from paceline_runtime.logs import LogConfig, setup_logging

KINDS: Final = ("h100-8b", "a100-80-8b", "v100-32-8b", "a40-8b")
BATCH: Final = 32
MODEL: Final = "m"
_CONTEXT_TOKENS: Final = 131_072
_REPORT_S: Final = 0.2
"""Between two reports of an engine: the default of a scheduler."""
_TICKS: Final = 20
"""Engines report in so many groups, one after the other."""
_SAMPLES: Final = 2000


@dataclass(frozen=True, slots=True)
class _NoScheduler:
    """Stands where the session with an engine's scheduler would be."""

    endpoint: str


@contextlib.asynccontextmanager
async def announced_router(config: Config, engines: int, fill: float, seed: int) -> AsyncIterator[RouterApp]:
    """A router that serves, over so many engines with `fill` of their slots taken by others."""
    rng = np.random.default_rng(seed)
    # Reports that come late are the benchmark's doing, not a fault of an engine.
    section = config.router.model_copy(update={"leave_out_after_ms": 600_000.0})
    async with RouterApp(config.model_copy(update={"router": section})) as app:
        fleet = _Fleet(app, rng, fill)
        for number in range(engines):
            fleet.announce(number)
        reporting = asyncio.create_task(fleet.report())
        try:
            yield app
        finally:
            reporting.cancel()
            await asyncio.wait([reporting])


class _Fleet:
    def __init__(self, app: RouterApp, rng: np.random.Generator, fill: float) -> None:
        self._fleet = app.fleet
        self._rng = rng
        self._fill = fill
        self._clock = SystemClock()
        self._engines: list[tuple[Engine, Profile]] = []
        self._kinds = {kind: load_profile(kind) for kind in KINDS}

    def announce(self, number: int) -> None:
        """An engine comes up."""
        kind = KINDS[number % len(KINDS)]
        profile = self._kinds[kind].scaled(float(self._rng.uniform(0.9, 1.1)))
        link = cast(SchedulerLink, _NoScheduler(f"announced-{number}"))
        engine = self._fleet.join(f"engine-{number}", link)
        engine.executor_endpoint = f"announced-{number}"
        identity = engine_pb2.EngineIdentity(engine_id=engine.engine_id, incarnation=number + 1)
        capabilities = engine_pb2.EngineCapabilities(
            model=MODEL,
            device=kind,
            speed_factor=1.0,
            max_batch=BATCH,
            max_context_tokens=_CONTEXT_TOKENS,
            kv_capacity_tokens=round(profile.kv_capacity_tokens),
        )
        self._fleet.came_up(engine, identity, capabilities, self._clock.now_ms())
        self._engines.append((engine, profile))
        self._fleet.take_load(engine, self._load(profile), self._clock.now_ms())

    async def report(self) -> None:
        """Each engine reports as often as one does, until cancelled."""
        turn = 0
        while True:
            await asyncio.sleep(_REPORT_S / _TICKS)
            for engine, profile in self._engines[turn % _TICKS :: _TICKS]:
                self._fleet.take_load(engine, self._load(profile), self._clock.now_ms())
            turn += 1

    def _load(self, profile: Profile) -> scheduler_pb2.Load:
        running = int(self._rng.binomial(BATCH, self._fill))
        free = HORIZONS_MS / 20.0 * (BATCH - running)
        model = profile.model
        return scheduler_pb2.Load(
            queued=int(self._rng.integers(2)),
            running=running,
            queued_prefill_tokens=int(self._rng.integers(2000)),
            expected_output_tokens=400.0 * running,
            kv_used_tokens=900 * running,
            kv_capacity_tokens=round(profile.kv_capacity_tokens),
            max_batch=BATCH,
            engine_up=True,
            model=engine_pb2.EngineModel(
                a_ms=model.a_ms,
                b_ms=model.b_ms,
                c_ms=model.c_ms,
                a1_ms=model.a1_ms,
                p0_ms=model.p0_ms,
                d_ms=model.d_ms,
                e_ms=model.e_ms,
                decode_samples=_SAMPLES,
                prefill_samples=_SAMPLES,
            ),
            headroom=scheduler_pb2.HeadroomCurve(
                horizon_ms=HORIZONS_MS,
                free_decode_tokens=free,
                free_prefill_tokens=10.0 * free,
                free_kv_tokens=np.full(len(HORIZONS_MS), 1e5),
            ),
        )


async def serve(engines: int, fill: float, seed: int, listen: str, sets: list[str]) -> None:
    """Serve until SIGTERM."""
    ended = asyncio.Event()
    for wanted in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(wanted, ended.set)
    config = load_config(Config, overrides=[f"router.listen={listen}", 'store.url=""', *sets])
    async with announced_router(config, engines, fill, seed):
        await ended.wait()


def main() -> None:
    """Parse and serve."""
    parser = argparse.ArgumentParser(description="A router over engines that are announced and not run.")
    parser.add_argument("--engines", type=int, required=True)
    parser.add_argument("--fill", type=float, default=0.7)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    setup_logging(LogConfig(level="warning"), "router-host")
    logging.captureWarnings(True)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(args.engines, args.fill, args.seed, args.listen, args.set))


if __name__ == "__main__":
    main()
