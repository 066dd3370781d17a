"""The fault benchmark sees every kind of damage, and plans its faults where they hit something."""

import pytest

from paceline.common.v1 import attempt_pb2
from paceline.router.v1 import generation_pb2
from paceline_lab.bench.faults.plan import MODES, Fault, FaultPlan, schedule
from paceline_lab.bench.faults.tally import described, row_of
from paceline_lab.bench.faults.verdict import Answer, Damage, Received, judge
from paceline_lab.bench.faults.work import Behaviour, Call, make_call, specs

LENGTH = attempt_pb2.FINISH_REASON_LENGTH
ANSWER = Answer((5, 6, 7, 8), b"abbccc", LENGTH)
LENGTHS = (1, 2, 3, 0)


def received(*rows: tuple[int, int], ids: tuple[int, ...] = ANSWER.ids) -> Received:
    """Rows of the answer, each from an index to another one."""
    got, offsets = Received(), [sum(LENGTHS[:index]) for index in range(5)]
    for first, last in rows:
        text = ANSWER.text[offsets[first] : offsets[last]]
        got.take(first, ids[first:last], LENGTHS[first:last], text)
    return got


@pytest.mark.parametrize(
    ("got", "damage"),
    [
        (received((0, 4)), Damage()),
        (received((0, 1), (1, 3), (3, 4)), Damage()),
        (received((0, 3)), Damage(lost=1)),
        (received((0, 1), (2, 4)), Damage(lost=1)),
        (received((0, 2), (1, 4)), Damage(duplicated=1)),
        (received((0, 4), (0, 4)), Damage(duplicated=4)),
        (received((0, 4), ids=(5, 7, 6, 8)), Damage(reordered=2)),
        (received((0, 4), ids=(5, 6, 1, 2)), Damage(spliced=2)),
        (received((0, 4), ids=(5, 6, 7, 8, 9)[:4]), Damage()),
    ],
)
def test_damage_is_seen(got: Received, damage: Damage) -> None:
    assert judge(got, ANSWER, complete=True) == damage


def test_surplus_tokens_and_other_text_are_splices() -> None:
    longer = received((0, 4))
    longer.take(4, [9], [1], b"x")
    assert judge(longer, ANSWER, complete=True) == Damage(spliced=1)
    other = received((0, 4))
    other.text[0:1] = b"z"
    assert judge(other, ANSWER, complete=True) == Damage(spliced=1)


def test_a_cancelled_stream_must_be_the_beginning_of_the_answer() -> None:
    assert judge(received((0, 2)), ANSWER, complete=False) == Damage()
    assert judge(received((0, 2), ids=(5, 9, 7, 8)), ANSWER, complete=False) == Damage(spliced=1)
    assert judge(received((0, 1), (2, 3)), ANSWER, complete=False) == Damage(lost=1)


def call(**changes: object) -> Call:
    made = Call(generation_pb2.GenerationSpec(request_id="r"), "sync", Behaviour.PLAIN, 2, ANSWER)
    made.received = received((0, 4))
    made.finished = generation_pb2.Finished(finish_reason=LENGTH, output_tokens=4, attempts=1)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    "broken",
    [
        call(finished=None, problem="no end within 1 s"),
        call(
            finished=generation_pb2.Finished(finish_reason=attempt_pb2.FINISH_REASON_FAILED, output_tokens=4)
        ),
        call(finished=generation_pb2.Finished(finish_reason=LENGTH, output_tokens=5)),
        # Nobody asked for that.
        call(
            finished=generation_pb2.Finished(
                finish_reason=attempt_pb2.FINISH_REASON_CANCELLED, output_tokens=4
            )
        ),
        call(
            received=received((0, 3)), finished=generation_pb2.Finished(finish_reason=LENGTH, output_tokens=3)
        ),
    ],
)
def test_a_row_counts_what_went_wrong(broken: Call) -> None:
    row = row_of("sync", [call(), broken], {"ledger_rows": 0}, [])
    assert row["failed_requests"] + row["lost"] > 0
    assert described(broken) is not None
    assert described(call()) is None


def test_faults_fall_between_the_requests_of_their_mode() -> None:
    plan = FaultPlan(requests=400, fault_every=20)
    for mode in MODES:
        planned = schedule(plan, mode, own_store=True)
        places = [one.at_request for one in planned]
        assert places == sorted(set(places))
        assert places[0] > 0
        assert places[-1] < plan.share(mode)
        kinds = [one.fault for one in planned]
        assert kinds.count(Fault.STORE_RESTART) == kinds.count(Fault.STORE_OUTAGE) == 1
        assert schedule(plan, mode, own_store=True) == planned
        assert Fault.STORE_OUTAGE not in [one.fault for one in schedule(plan, mode, own_store=False)]
    long = FaultPlan()
    assert sum(long.share(mode) for mode in MODES) == 10_000
    drawn = {mode: {one.fault for one in schedule(long, mode, own_store=True)} for mode in MODES}
    assert set(Fault) == drawn["sync"]
    assert set(Fault) - drawn["async"] == {Fault.ROUTER_AND_EXECUTOR}


def test_requests_and_clients_follow_from_the_seed() -> None:
    plan = FaultPlan(prompts=8)
    assert specs(plan) == specs(FaultPlan(prompts=8))
    assert specs(plan) != specs(FaultPlan(prompts=8, seed=2))
    spec = specs(plan)[0]
    one, again = (make_call(spec, ANSWER, "async", "a-1", held=False) for _ in range(2))
    assert (one.behaviour, one.stop_at) == (again.behaviour, again.stop_at)
    held = make_call(spec, ANSWER, "async", "a-1", held=True)
    assert 0 < held.token_limit < len(ANSWER.ids)
