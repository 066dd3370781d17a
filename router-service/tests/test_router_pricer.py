"""Shadow prices are worked out beside the event loop, over a fleet that may change meanwhile."""

import asyncio
import threading

import numpy as np

from paceline_core import lengths
from paceline_core.engines.shipped import load_profile
from paceline_core.placement.fleet_table import EngineLimits
from paceline_core.placement.margin import Margin
from paceline_core.placement.prices import reprice
from paceline_core.placement.view import RequestView
from paceline_core.slo import Slo, SloClass
from paceline_router import pricer as module
from paceline_router.clock import SystemClock
from paceline_router.fleet import Fleet
from paceline_router.pricer import Pricer

PROFILE = load_profile("a40-8b")


def join(fleet, name):
    row = fleet.table.join(name)
    fleet.table.came_up(row, row + 1, "m", EngineLimits(8, 100_000), 0.0)
    fleet.table.costs(row, PROFILE.model)
    return row


def crowd(fleet, count=200):
    """A pricer after a burst of requests that nobody can serve in time."""
    clock = SystemClock()
    pricer = Pricer(fleet, Margin(), clock)
    cdf = lengths.cdf_from_probabilities(np.eye(lengths.K)[20])[0]
    slo = Slo(SloClass.DEADLINE, e2e_ms=60_000.0)
    for _ in range(count):
        pricer.asked(RequestView("m", 500, 4096, cdf, slo), clock.now_ms())
    return pricer


async def test_scarce_time_gets_a_price_in_another_thread(monkeypatch) -> None:
    fleet = Fleet(float("inf"))
    for name in ("e0", "e1"):
        join(fleet, name)
    threads = []

    def watched(*args):
        threads.append(threading.current_thread())
        return reprice(*args)

    monkeypatch.setattr(module, "reprice", watched)
    pricer = crowd(fleet)
    for _ in range(3):
        await pricer.renew()
    assert fleet.table.prices.any
    assert len(fleet.table.prices.per_ms) == 2
    assert threading.main_thread() not in threads


async def test_the_fleet_may_change_while_prices_are_made(monkeypatch) -> None:
    fleet = Fleet(float("inf"))
    join(fleet, "e0")
    began, go_on = threading.Event(), threading.Event()

    def slow(prices, view, demand):
        before = view.max_batch.copy()
        began.set()
        assert go_on.wait(60)
        assert (view.max_batch == before).all()
        return reprice(prices, view, demand)

    monkeypatch.setattr(module, "reprice", slow)
    renewing = asyncio.create_task(crowd(fleet).renew())
    await asyncio.to_thread(began.wait, 60)
    join(fleet, "e1")
    fleet.table.report(0, {"max_batch": 1.0}, 0.0)
    go_on.set()
    await asyncio.wait_for(renewing, 60)
    assert fleet.table.view(0.0).prices is None, "prices of one engine say nothing of two"
    monkeypatch.setattr(module, "reprice", reprice)
    await crowd(fleet).renew()
    assert len(fleet.table.view(0.0).prices.per_ms) == 2
