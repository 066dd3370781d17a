"""Moves of live requests: two phases, by KV and by tokens, and failures at every point that no client can see."""

import asyncio

import grpc
import pytest

from paceline.common.v1 import attempt_pb2, slo_pb2
from paceline.router.v1 import router_pb2
from paceline_router.move import Phase
from paceline_runtime.errors import PacelineError, Reason
from paceline_runtime.status import from_rpc_error

LENGTH = attempt_pb2.FINISH_REASON_LENGTH
KV, EXACT = router_pb2.MOVE_WAY_KV, router_pb2.MOVE_WAY_REPLAY_EXACT
TINY = {"backend": "llamacpp", "model": "tiny", "model_path": "tiny", "max_batch": 4, "max_resident": 4}


async def move(router, request_id, engine_id, way=0):
    """An operator's move. Raises PacelineError."""
    request = router_pb2.MoveRequestRequest(request_id=request_id, engine_id=engine_id, way=way)
    try:
        return await router.stub.MoveRequest(request, timeout=60)
    except grpc.RpcError as error:
        raise from_rpc_error(error) from None


async def events(router, request_id):
    """Names of what happened to a request."""
    said = await router.stub.ExplainRequest(router_pb2.ExplainRequestRequest(request_id=request_id))
    return [event.event for event in said.events]


async def two(line, router_fields=None, **fields):
    """Engines e0 and e1, a router, and a session with it."""
    for engine_id in ("e0", "e1"):
        await line.engine(engine_id, **fields)
    router = await line.router(**(router_fields or {}))
    return router, await router.session()


def sides(router, request_id):
    """The engine that a request is on, and the other one."""
    here = router.app.ledger.find(request_id).attempt.engine.engine_id
    return here, "e1" if here == "e0" else "e0"


@pytest.mark.parametrize("way", [KV, EXACT])
async def test_an_answer_of_a_real_engine_is_the_same_wherever_it_moves(line, spec, way):
    router, session = await two(line, **TINY)
    text = "A long prompt that fills more than one aligned chunk of tokens. " * 4
    greedy = {"sampling": attempt_pb2.SamplingParams(ignore_eos=True)}
    alone = await session.submit(spec(text, 200, **greedy))
    await session.ended(alone)
    # Without more credit it cannot end before it is moved, however long that takes.
    moved = await session.submit(spec(text, 200, request_id="r", **greedy), token_limit=80)
    await session.until(lambda: moved.count > 20)
    first, other = sides(router, "r")
    there = await move(router, "r", other, way)
    await session.credit(moved, 190)
    await session.until(lambda: moved.count > there.from_index)
    back = await move(router, "r", first, way)
    await session.credit(moved, 200)
    await session.ended(moved)
    assert (moved.ids, moved.text) == (alone.ids, alone.text)
    assert there.way == back.way == way
    assert 20 < there.prepared_tokens <= there.from_index <= back.prepared_tokens <= back.from_index < 200
    assert [a.engine_id for a in (await router.record("r")).attempts] == [first, other, first]
    pulled = sum(app.counters["pulled"] for app in line.executors.values())
    imports = sum(app.engine.counters["imports"] for app in line.executors.values())
    assert (pulled, imports) == ((2, 2) if way == KV else (0, 0))
    assert {"move_started", "move_ready", "moved"} <= set(await events(router, "r"))


async def test_a_request_that_reaches_its_credit_while_its_kv_is_on_the_way_lands_all_the_same(line, spec):
    router, session = await two(line, **TINY)
    answer = await session.submit(spec(tokens=60, request_id="r"), token_limit=20)
    await session.until(lambda: answer.count == 20)
    live = router.app.ledger.find("r")
    _, there = sides(router, "r")
    landing, engine = line.executors[there]._landing, line.executors[there].engine
    pull, add, come = landing._pull, engine.add, asyncio.Event()

    async def late(ticket):
        state = await pull(ticket)
        await come.wait()
        return state

    def add_with_all_that_came_meanwhile(given, state=None):
        with engine._wake:  # so that it makes no step in between
            add(given, state)
            for first_index, ids, final in landing._pulling[given.attempt_key].forced:
                engine.extend_forced(given.attempt_key, first_index, ids, final=final)

    landing._pull, engine.add = late, add_with_all_that_came_meanwhile
    asked = asyncio.create_task(move(router, "r", there, KV))
    await line.until(lambda: live.move is not None and live.move.phase is Phase.LANDING)
    await session.credit(answer, 40)
    await session.until(lambda: answer.count == 40)
    come.set()
    assert (await asked).from_index == 40
    await session.credit(answer, 60)
    await session.ended(answer)
    assert answer.finished.engine_id == there
    alone = await router.generate(spec(tokens=60))
    assert (answer.ids, answer.text) == (alone.ids, alone.text)


async def test_a_request_moves_at_most_twice_and_those_that_said_so_stay(line, spec):
    router, session = await two(line, time_scale=0.1)
    answer = await session.submit(spec(tokens=300, request_id="r"), token_limit=100)
    stays = await session.submit(
        spec("other", tokens=300, request_id="stays", not_movable=True), token_limit=100
    )
    await session.until(lambda: answer.count > 2 and stays.count > 2)
    for limit in (200, 290):
        there = await move(router, "r", sides(router, "r")[1])
        await session.credit(answer, limit)
        await session.until(lambda there=there: answer.count > there.from_index)
    for request_id, engine_id, why in [
        ("r", sides(router, "r")[1], Reason.FAILED_PRECONDITION),
        ("stays", sides(router, "stays")[1], Reason.FAILED_PRECONDITION),
        ("r", "e9", Reason.NOT_FOUND),
        ("nobody", "e1", Reason.NOT_FOUND),
    ]:
        with pytest.raises(PacelineError) as caught:
            await move(router, request_id, engine_id)
        assert caught.value.reason is why
    for held in (answer, stays):
        assert held.finished is None
        await session.credit(held, 300)
    await session.ended(answer, stays)
    alone = await router.generate(spec(tokens=300))
    assert (answer.ids, answer.text) == (alone.ids, alone.text)
    assert stays.finished.attempts == 1
    assert not len(router.app.mover)


async def test_an_engine_that_refuses_changes_nothing(line, spec):
    router, session = await two(line)
    answer = await session.submit(spec(tokens=200, request_id="r"), token_limit=50)
    await session.until(lambda: answer.count > 2)
    here, there = sides(router, "r")
    object.__setattr__(line.schedulers[there].loop.state.config, "max_live", 0)
    with pytest.raises(PacelineError) as caught:
        await move(router, "r", there)
    assert caught.value.reason is Reason.UNAVAILABLE
    assert "QUEUE_FULL" in caught.value.message
    await session.credit(answer, 200)
    await session.ended(answer)
    assert (answer.reason, answer.count, answer.finished.attempts) == (LENGTH, 200, 1)
    assert answer.finished.engine_id == here


def mute_once(link, command):
    """The next `command` to a scheduler gets lost; those of a later attempt arrive."""
    real = getattr(link, command)

    def lost(_):
        setattr(link, command, real)

    setattr(link, command, lost)


@pytest.mark.parametrize("victim", ["old", "new"])
@pytest.mark.parametrize("phase", [Phase.LANDING, Phase.STOPPING, Phase.DONE])
async def test_an_engine_that_dies_in_a_move_loses_no_token(line, spec, victim, phase):
    router, session = await two(line, time_scale=0.5)
    answer = await session.submit(spec(tokens=120, request_id="r"), token_limit=60)
    await session.until(lambda: answer.count > 5)
    live = router.app.ledger.find("r")
    here, there = sides(router, "r")
    links = {engine.engine_id: engine.link for engine in router.app.fleet}
    if phase is Phase.LANDING:
        mute_once(links[there], "submit")  # it never hears of it, and so never lands
    if phase is Phase.STOPPING:
        mute_once(links[here], "moved")  # it never hears that it is to stop
    asked = asyncio.create_task(move(router, "r", there, EXACT))
    if phase is Phase.DONE:
        await asked
    else:
        await line.until(lambda: live.move is not None and live.move.phase is phase)
    await line.engine("e2", time_scale=0.05)
    router.app.fleet_control.dial(line.schedulers["e2"].address)
    await line.until(lambda: len(router.app.fleet) == 3)
    await line.kill_executor(here if victim == "old" else there)
    await session.credit(answer, 120)
    await session.ended(answer)
    if phase is not Phase.DONE:
        with pytest.raises(PacelineError):
            await asked
    assert (answer.reason, answer.count) == (LENGTH, 120)
    alone = await router.generate(spec(tokens=120))
    assert (answer.ids, answer.text) == (alone.ids, alone.text)
    await line.until(lambda: not any(engine.attempts for engine in router.app.fleet))


async def test_a_client_that_reads_slowly_is_moved_in_its_pause(line, spec):
    router, session = await two(line, time_scale=0.2)
    answer = await session.submit(spec(tokens=60, request_id="r"), token_limit=10)
    await session.until(lambda: answer.count == 10)
    done = await move(router, "r", sides(router, "r")[1])
    assert done.from_index == 10
    assert answer.count == 10
    await session.credit(answer, 60)
    await session.ended(answer)
    alone = await router.generate(spec(tokens=60))
    assert (answer.ids, answer.text) == (alone.ids, alone.text)


async def test_a_cancel_in_a_move_ends_the_request_on_both_engines(line, endless):
    router, session = await two(line, time_scale=1.0)
    answer = await session.submit(endless(request_id="r"))
    await session.until(lambda: answer.count > 5)
    live = router.app.ledger.find("r")
    here, there = sides(router, "r")
    links = {engine.engine_id: engine.link for engine in router.app.fleet}
    links[here].moved = lambda key: None  # so that the move stays in its second phase
    asked = asyncio.create_task(move(router, "r", there))
    await line.until(lambda: live.move is not None and live.move.phase is Phase.STOPPING)
    await router.cancel("r")
    with pytest.raises(PacelineError):
        await asked
    await session.ended(answer)
    assert answer.reason == attempt_pb2.FINISH_REASON_CANCELLED
    for scheduler in line.schedulers.values():
        await line.until(lambda scheduler=scheduler: not scheduler.loop.state.table.live)


async def test_the_policy_moves_what_is_late_to_a_stronger_engine_and_says_why(line, spec):
    await line.engine("weak", time_scale=1.0, speed_factor=100.0)
    await line.engine("strong", time_scale=0.05)
    router = await line.router(
        placement="goodserve",
        placement_params={"every_tokens": 1},
        rectify={"mode": "policy", "interval_ms": 20.0},
    )
    session = await router.session()
    await router.stub.DrainEngine(router_pb2.DrainEngineRequest(engine_id="strong"))
    # A second for each token: minutes too late where it is, and in good time on the other one.
    deadline = slo_pb2.Slo(deadline=slo_pb2.DeadlineSlo(e2e_ms=60_000.0))
    answer = await session.submit(spec(tokens=300, request_id="r", slo=deadline))
    await session.until(lambda: answer.accepted is not None)
    await router.stub.DrainEngine(router_pb2.DrainEngineRequest(engine_id="strong", resume=True))
    await session.ended(answer)
    assert [a.engine_id for a in (await router.record("r")).attempts] == ["weak", "strong"]
    assert answer.count == 300
    said = await router.stub.ExplainRequest(router_pb2.ExplainRequestRequest(request_id="r"))
    assert any(e.event == "moved" and "goodserve" in e.detail for e in said.events)
    assert said.placements[1].policy == "move"
    assert router.app.mover.counts["moved"] == 1


async def test_a_router_that_dies_in_a_move_leaves_the_request_where_it_was(line, spec):
    router, session = await two(line, time_scale=0.2)
    answer = await session.submit(spec(tokens=150, request_id="r"), token_limit=60)
    await session.until(lambda: answer.count > 5)
    live = router.app.ledger.find("r")
    here, there = sides(router, "r")
    links = {engine.engine_id: engine.link for engine in router.app.fleet}
    links[here].moved = lambda key: None  # so that the move stays in its second phase
    asked = asyncio.create_task(move(router, "r", there))
    await line.until(lambda: live.move is not None and live.move.phase is Phase.STOPPING)
    await line.stop(router.app)
    with pytest.raises(PacelineError):
        await asked
    heir = await line.router()
    whole = await heir.attach("r")
    assert whole.finished.engine_id == here
    assert whole.ids[: answer.count] == answer.ids
    await line.until(lambda: not line.schedulers[there].loop.state.table.live)
    alone = await heir.generate(spec(tokens=150))
    assert (whole.ids, whole.text) == (alone.ids, alone.text)
