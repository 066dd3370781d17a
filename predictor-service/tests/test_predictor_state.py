"""One saved state for several learners: what can be read is taken, what cannot is named, and nothing is lost before."""

import asyncio
from collections.abc import Callable

import pytest

from paceline_predictor.keeping import Keeper
from paceline_predictor.state_parts import packed, unpacked
from paceline_runtime.errors import PacelineError, Reason

WAIT_S = 60


class FakeLearner:
    """Learns by counting; a state that is no number is unusable."""

    def __init__(self) -> None:
        self.count = 0

    def learn(self, outcomes: int) -> None:
        self.count += outcomes

    def snapshot(self) -> Callable[[], bytes]:
        count = self.count
        return lambda: str(count).encode()

    def decoded(self, state: bytes) -> Callable[[], None]:
        count = int(state)

        def take_over() -> None:
            self.count = count

        return take_over


class FakeHome:
    """Keeps the blob here; away while `down`."""

    name = "memory"

    def __init__(self, blob: bytes | None = None) -> None:
        self.blob = blob
        self.down = False

    async def load(self) -> bytes | None:
        if self.down:
            raise OSError("away")
        return self.blob

    async def save(self, state: bytes) -> None:
        if self.down:
            raise OSError("away")
        self.blob = state

    async def close(self) -> None:
        return


def keeper(home: FakeHome, **learners: FakeLearner) -> Keeper:
    return Keeper(learners, home, interval_s=3600, timeout_s=WAIT_S)


def learn(keeper: Keeper, name: str, learner: FakeLearner, outcomes: int) -> None:
    learner.learn(outcomes)
    keeper.learned(name, outcomes, lambda: learner.learn(outcomes))


def test_parts_come_back_as_they_were() -> None:
    parts = {"lengths": b"abc", "tasks": b"", "x \u00e9": bytes(range(256))}
    assert unpacked(packed(parts)) == parts


@pytest.mark.parametrize("change", [0, 5, 14, 20, -1])
def test_a_changed_byte_is_noticed(change: int) -> None:
    blob = bytearray(packed({"lengths": b"abc", "tasks": b"defg"}))
    blob[change] ^= 0x40
    with pytest.raises(ValueError):
        unpacked(bytes(blob))
    with pytest.raises(ValueError):
        unpacked(bytes(blob)[:7])


async def test_each_learner_gets_its_part_back() -> None:
    home, lengths, tasks = FakeHome(), FakeLearner(), FakeLearner()
    async with keeper(home, lengths=lengths, tasks=tasks) as first:
        learn(first, "lengths", lengths, 3)
        learn(first, "tasks", tasks, 5)
    again, others = FakeLearner(), FakeLearner()
    async with keeper(home, lengths=again, tasks=others) as second:
        assert (again.count, others.count, second.warning) == (3, 5, "")


async def test_a_part_that_cannot_be_read_starts_afresh_and_the_other_is_kept() -> None:
    home = FakeHome(packed({"lengths": b"7", "tasks": b"rubbish"}))
    lengths, tasks = FakeLearner(), FakeLearner()
    async with keeper(home, lengths=lengths, tasks=tasks) as kept:
        assert (lengths.count, tasks.count) == (7, 0)
        assert "tasks: " in kept.warning
        with pytest.raises(PacelineError) as refused:
            await kept.reload()
        assert refused.value.reason is Reason.STATE_INCOMPATIBLE
        learn(kept, "tasks", tasks, 2)
        assert await kept.save()
        assert kept.warning == ""
        await kept.reload()
        assert (lengths.count, tasks.count) == (7, 2)


async def test_what_is_learned_before_the_state_can_be_loaded_comes_on_top_of_it() -> None:
    home = FakeHome(packed({"lengths": b"100"}))
    home.down = True
    lengths, tasks = FakeLearner(), FakeLearner()
    async with asyncio.timeout(WAIT_S), keeper(home, lengths=lengths, tasks=tasks) as kept:
        learn(kept, "lengths", lengths, 4)
        learn(kept, "tasks", tasks, 6)
        assert not await kept.save()
        assert home.blob == packed({"lengths": b"100"})
        home.down = False
        assert await kept.save()
    # The tasks had no part in the saved state: what they learned is not learned twice.
    assert (lengths.count, tasks.count) == (104, 6)
    assert home.blob == packed({"lengths": b"104", "tasks": b"6"})
