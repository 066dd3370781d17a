"""The benchmark of placement decisions, small."""

import pytest

from paceline_lab.bench.router import RouterPlan, bench_router


def test_it_times_every_policy_asked_for_and_puts_one_on_top():
    plan = RouterPlan(
        engines=4, decisions=20, fill=0.5, policies=("round-robin", "goodserve"), headline="margin"
    )
    result = bench_router(plan)
    assert set(result["policies"]) == {"round-robin", "goodserve", "margin"}
    assert result["decision_us_p50"] == result["policies"]["margin"]["decision_us_p50"] > 0
    assert all(row["decision_us_p99"] >= row["decision_us_p50"] for row in result["policies"].values())
    assert result["live_requests"] == 64


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="least-predicted"):
        bench_router(RouterPlan(engines=2, decisions=1, policies=("fastest",)))
