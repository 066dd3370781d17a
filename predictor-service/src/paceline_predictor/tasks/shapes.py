"""Exact counts of the shapes that tasks of an application had, decayed and bounded.

Patterns are thinned by lengths and shapes together; a shape is tiny, so all that an application commonly does can be
counted. What a partial task becomes is voted on by the counts of the shapes that begin with it or by the patterns it is
like; which of the two an application is told by is learned from how often each was right.
"""

import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

from paceline_core.tasks.shapes import Shape, begins_with

_MAX_APPS: Final = 256
_MAX_SHAPES: Final = 256
"""An application's."""
_KEPT: Final = 192
"""Of those, when there are too many."""
_KEEP: Final = 0.99
"""Of a hit count, by task."""
_PRIOR_TASKS: Final = 4.0

Votes = Mapping[Shape, float]


class _App:
    def __init__(self, ways: int) -> None:
        self.counts: dict[Shape, float] = {}
        self.at_s = 0.0
        self.hits = [0.0] * ways
        self.scored = 0.0


class ShapeCounts:
    """Counts by application, and how often each of `ways` votes was right. Not thread-safe."""

    def __init__(self, ways: int, keep_per_hour: float = 0.9) -> None:
        self._ways = ways
        self._keep = keep_per_hour
        self._apps: OrderedDict[int, _App] = OrderedDict()

    def add(self, app: int, shape: Shape, now_s: float) -> None:
        """A task ended."""
        mine = self._touch(app)
        passed_s = now_s - mine.at_s
        if mine.at_s and passed_s > 0:
            keep = self._keep ** (passed_s / 3600.0)
            mine.counts = {s: n * keep for s, n in mine.counts.items()}
        mine.at_s = max(mine.at_s, now_s)
        mine.counts[shape] = mine.counts.get(shape, 0.0) + 1.0
        if len(mine.counts) > _MAX_SHAPES:
            mine.counts = dict(sorted(mine.counts.items(), key=lambda x: -x[1])[:_KEPT])

    def votes(self, app: int, seen: Shape, running: bool) -> Votes:
        """Counts of the shapes that a task which has done `seen` may become."""
        mine = self._apps.get(app)
        if mine is None:
            return {}
        return {s: n for s, n in mine.counts.items() if begins_with(s, seen, running)}

    def best_way(self, app: int) -> int:
        """The vote that was right most often; the first one when they are even."""
        mine = self._apps.get(app)
        if mine is None or mine.scored <= 0:
            return 0
        # Few outcomes say little about which vote is better.
        rate = [hits / (mine.scored + _PRIOR_TASKS) for hits in mine.hits]
        return max(range(self._ways), key=lambda way: (rate[way], -way))

    def learn(self, app: int, hits: list[float]) -> None:
        """Shares of the cuts of a task at which each vote was right."""
        mine = self._touch(app)
        mine.hits = [_KEEP * old + new for old, new in zip(mine.hits, hits, strict=True)]
        mine.scored = _KEEP * mine.scored + 1.0

    def to_json(self) -> str:
        """All of it."""
        return json.dumps(
            [
                [app, a.at_s, a.scored, a.hits, {s.hex(): round(n, 6) for s, n in a.counts.items()}]
                for app, a in self._apps.items()
            ]
        )

    @classmethod
    def from_json(cls, text: str | bytes, ways: int, keep_per_hour: float = 0.9) -> "ShapeCounts":
        """The reverse. Raises ValueError."""
        counts = cls(ways, keep_per_hour)
        try:
            for app, at_s, scored, hits, shapes in json.loads(text)[-_MAX_APPS:]:
                mine = counts._touch(int(app))
                mine.at_s, mine.scored = _number(at_s), _number(scored)
                mine.hits = [_number(x) for x in hits]
                mine.counts = {bytes.fromhex(s): _number(n) for s, n in list(shapes.items())[:_MAX_SHAPES]}
                if len(mine.hits) != ways:
                    raise ValueError("the saved shapes were voted on in other ways")
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no counts of shapes: {error!r}") from None
        return counts

    def _touch(self, app: int) -> _App:
        mine = self._apps.get(app)
        if mine is None:
            if len(self._apps) >= _MAX_APPS:
                self._apps.popitem(last=False)
            mine = self._apps[app] = _App(self._ways)
        self._apps.move_to_end(app)
        return mine


def winner(votes: Votes) -> tuple[Shape, float] | None:
    """The shape with most votes, and its share; None without a vote."""
    if not votes:
        return None
    shape = max(votes, key=lambda s: (votes[s], s))
    return shape, votes[shape] / max(sum(votes.values()), 1e-12)


def _number(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1e18:
        raise ValueError("the saved shapes hold numbers that no tasks give")
    return float(value)
