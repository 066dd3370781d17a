"""What placement policies read: ledgers, averages, indexes and prices that events feed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from paceline_core import lengths
from paceline_core.engine_model import EngineModel
from paceline_core.placement.black_box import BlackBoxTimes
from paceline_core.placement.demand import CLASSES, WINDOW_MS, DemandWindow
from paceline_core.placement.fleet_table import EngineLimits, FleetTable
from paceline_core.placement.in_flight import InFlightLedger
from paceline_core.placement.kv_peak import future_peak_tokens
from paceline_core.placement.prefix_index import PrefixIndex
from paceline_core.placement.prices import TARGET, reprice, work_and_chance
from paceline_core.placement.residents import ResidentTable
from paceline_core.placement.view import RequestView
from paceline_core.slo import Slo, SloClass

quick = settings(max_examples=30, deadline=None)
CDF = lengths.cdf_from_probabilities(np.full(lengths.K, 1 / lengths.K))[0]


def asks(e2e_ms=20_000.0, prompt_tokens=100, max_tokens=200, **fields):
    slo = Slo(SloClass.DEADLINE, e2e_ms=e2e_ms)
    return RequestView("m", prompt_tokens, max_tokens, CDF, slo, **fields)


def two_engines(**kwargs):
    table = FleetTable(**kwargs)
    for row, factor in enumerate((1.0, 3.0)):
        table.join(f"e{row}")
        table.came_up(row, row + 1, "m", EngineLimits(16, 65_536, 4_096), 0.0)
        table.costs(row, EngineModel(*(factor * x for x in (4.0, 0.5, 0.001, 0.0, 1.0, 0.2, 0.0))))
    return table


@quick
@given(st.lists(st.tuples(st.sampled_from("apsrdc"), st.integers(0, 5), st.integers(0, 2)), max_size=40))
def test_the_ledger_sums_what_no_report_covers(events):
    ledger, sums, entries = InFlightLedger(), np.zeros((3, 3)), {}
    for what, key, row in events:
        if what in "ap":
            ledger.add(sums, key, row, 10.0 + key, 0.1 * key)
            entries[key] = [row, False]
        elif what == "s" and key in entries:
            ledger.seen(key)
            entries[key][1] = True
        elif what == "r":
            ledger.reported(sums, row)
            entries = {k: e for k, e in entries.items() if not (e[1] and e[0] == row)}
        elif what == "d":
            ledger.drop(sums, key)
            entries.pop(key, None)
        elif what == "c":
            ledger.clear(sums, row)
            entries = {k: e for k, e in entries.items() if e[0] != row}
        for row_ in range(3):
            here = [k for k, e in entries.items() if e[0] == row_]
            expected = (len(here), sum(10.0 + k for k in here), sum(0.1 * k for k in here))
            assert sums[:, row_] == pytest.approx(expected)
    assert len(ledger) == len(entries)


def test_black_box_times_part_a_ttft_into_queue_and_prefill():
    times = BlackBoxTimes(factor=0.5)
    times.first_token(0, 200.0, 100, alone=True)
    times.first_token(0, 700.0, 100, alone=False)
    seen = times.view(2)
    assert seen.prefill_token_ms[0] == pytest.approx(2.0)
    assert seen.queue_ms[0] == pytest.approx(250.0)  # half way from 0 to 700 - 200
    assert np.isnan(seen.queue_ms[1])
    times.tokens(0, 10, 300.0)
    assert times.view(1).decode_token_ms[0] == pytest.approx(30.0)
    for _ in range(20):
        times.idle(0)
    assert times.view(1).queue_ms[0] < 0.01
    times.forget(0)
    assert np.isnan(times.view(1).prefill_token_ms[0])


@quick
@given(
    st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(0, 2), min_size=1, max_size=5)), max_size=12),
    st.lists(st.integers(0, 2), max_size=6),
)
def test_the_prefix_index_finds_the_longest_prefix_of_each_engine(sent, asked):
    def chain(blocks):
        return tuple(hash(tuple(blocks[: k + 1])) & 0xFFFF_FFFF for k in range(len(blocks)))

    index = PrefixIndex()
    for row, blocks in sent:
        index.put(row, chain(blocks))
    found = index.blocks(chain(asked), 3)
    expected = np.zeros(3)
    for row, blocks in sent:
        same = 0
        while same < min(len(blocks), len(asked)) and blocks[same] == asked[same]:
            same += 1
        expected[row] = max(expected[row], same)
    assert (np.zeros(3) if found is None else found).tolist() == expected.tolist()
    for row in range(3):
        index.clear(row)
    assert len(index) == 0
    assert index.blocks(chain(asked), 3) is None


def test_the_prefix_index_is_bounded_and_forgets_the_tail_of_the_oldest_first():
    index = PrefixIndex(blocks_per_engine=4, max_blocks=6)
    index.put(0, (1, 2, 3))
    index.put(0, (7, 8))
    assert index.blocks((1, 2, 3), 1).tolist() == [2.0]
    index.put(1, tuple(range(10, 20)))
    assert len(index) <= 6
    assert index.blocks((10,), 2).tolist() == [0.0, 1.0]


@quick
@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 30)), min_size=1, max_size=6))
def test_the_kv_peak_is_that_of_a_step_by_step_run(sequences):
    context, left = (np.array(column, dtype=float) for column in zip(*sequences, strict=True))
    peak = max(
        sum(c + t for c, r in zip(context, left, strict=True) if r >= t)
        for t in range(1, int(left.max()) + 1)
    )
    pad = np.zeros(2)
    found = future_peak_tokens(np.concatenate([context, pad])[None, :], np.concatenate([left, pad])[None, :])
    assert found[0] == peak


@quick
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9), st.integers(0, 11)), max_size=60))
def test_residents_are_listed_by_engine(events):
    table, there = ResidentTable(rows=2), {}
    for add, key, engine in events:
        if add:
            table.add(key, engine, asks(), 5.0)
            there[key] = engine
        else:
            table.remove(key)
            there.pop(key, None)
        view = table.view(12)
        for e in range(12):
            listed = {int(view.key[row]) for row in view.by_engine[e, : view.count[e]]}
            assert listed == {k for k, at in there.items() if at == e}
    assert len(table) == len(there) == len(table.view(12).rows())


def test_a_report_covers_what_was_answered_and_a_lost_engine_forgets_its_load():
    table = two_engines()
    table.placed(0, 7, asks(), 10.0)
    table.placed(0, 8, asks(), 10.0)
    table.seen(7)
    assert table.view(11.0).pending_requests.tolist() == [2.0, 0.0]
    table.report(0, {"queued": 1.0, "running": 0.0}, 12.0)
    view = table.view(22.0)
    assert view.pending_requests.tolist() == [1.0, 0.0]
    assert view.live_requests.tolist() == [2.0, 0.0]
    assert view.load_age_ms.tolist() == [10.0, 22.0]
    table.went_down(0)
    assert table.view(22.0).live_requests.tolist() == [0.0, 0.0]
    assert not table.view(22.0).up[0]


def test_what_prefills_of_others_cost_is_learned_from_progress():
    table = two_engines()
    for key in (1, 2):
        table.placed(0, key, asks(), 0.0)
    table.progressed(0, (1, 2), (1, 1), 100.0)
    for k in range(1, 200):  # a step of two is 4 + 2 * 0.5 ms by the model, and takes 10
        table.progressed(0, (1, 2), (1 + 20 * k, 1 + 20 * k), 100.0 + 200.0 * k)
    assert table.view(0.0).slowdown[0] == pytest.approx(2.0, rel=0.05)
    assert table.view(0.0).slowdown[1] == 1.0


def test_tokens_of_the_minute_start_anew_with_it():
    table = two_engines()
    table.placed(1, 5, asks(), 1_000.0)
    table.first_token(5, 1_500.0)
    table.ended(5, 2_000.0, 50)
    assert table.view(3_000.0).minute_tokens.tolist() == [0.0, 150.0]
    assert table.view(61_000.0).minute_tokens.tolist() == [0.0, 0.0]
    assert len(table.in_flight) == 0


def test_the_window_stands_for_all_requests_and_forgets_the_old():
    window = DemandWindow(size=64)
    for k in range(200):
        window.add(asks(), 10.0 * k)
    demand = window.demand(2_000.0)
    assert len(demand) == CLASSES
    assert demand.rate_per_ms.sum() == pytest.approx(0.1, rel=0.1)
    assert len(window.demand(2_000.0 + 2 * WINDOW_MS)) == 0


def prices_at(rate_per_s, e2e_ms):
    table, window = two_engines(), DemandWindow()
    for k in range(400):
        window.add(asks(e2e_ms=e2e_ms, request_id=str(k)), 1e3 * k / rate_per_s)
    now = 1e3 * 400 / rate_per_s
    view, demand, prices = table.view(now), window.demand(now), None
    for _ in range(10):
        prices = reprice(prices, view, demand)
    return view, demand, prices


def test_time_is_free_while_there_is_enough_of_it():
    assert not prices_at(1.0, 20_000.0)[2].any


def test_prices_clear_the_market():
    """Complementary slackness: nobody is asked for more than a whole engine, and what has a price is sold out."""
    view, demand, prices = prices_at(40.0, 20_000.0)
    _, work, chance = work_and_chance(view, demand)
    net = chance - prices.per_ms * work
    best = np.maximum(net.max(axis=1, keepdims=True), 0.0)
    share = np.exp((net - best) / 0.05)
    share /= share.sum(axis=1, keepdims=True) + np.exp(-best / 0.05)
    asked = (share * work * demand.rate_per_ms[:, None]).sum(axis=0)
    assert asked == pytest.approx(np.full(2, TARGET), abs=0.1)
    assert prices.per_ms[0] > 2 * prices.per_ms[1] > 0  # a third of the time for the same work


def test_a_strong_engine_that_alone_is_in_time_is_the_dear_one():
    _, _, prices = prices_at(60.0, 900.0)
    assert prices.per_ms[0] > 4 * prices.per_ms[1]  # three times as fast, and more than that as dear


@quick
@given(
    arrays(np.float64, lengths.K, elements=st.floats(0.01, 1.0)), st.integers(0, 300), st.integers(1, 5_000)
)
def test_a_request_expects_what_its_distribution_says(mass, out, more):
    cdf = lengths.cdf_from_probabilities(mass)[0]
    request = RequestView("m", 10, out + more, cdf, replayed_tokens=out)
    whole = np.arange(out + 1, lengths.OPEN_EDGE + 1)
    p = np.diff(
        lengths.cdf_at(
            np.broadcast_to(cdf, (len(whole) + 1, lengths.K)), np.arange(out, len(whole) + out + 1)
        )
    )
    mean = (p * np.minimum(whole, out + more)).sum() / p.sum()
    assert request.mean_tokens == pytest.approx(mean, rel=2e-3, abs=0.05)
