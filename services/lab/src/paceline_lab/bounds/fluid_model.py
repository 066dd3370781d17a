"""The linear program of the fluid bound: its variables and its rows.

A pair is a job and a bucket of time that its window touches. For each pair and group of engines: x prompt tokens, y
decoded tokens, k what their contexts sum to beyond the least (with the attention among prompt tokens, in tokens of
context); for each bucket and group S steps; for each job z the share of it that is served, for a stream u the share
whose first token is in time and r the share that is attained.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from paceline_lab.bounds.capacity import GroupCapacity
from paceline_lab.bounds.demand import Demand
from paceline_lab.bounds.program import Program, maximum

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class FluidModel:
    """Built once for a trace, solved for each kind of worth."""

    def __init__(
        self,
        demands: Sequence[Demand],
        capacities: Sequence[GroupCapacity],
        first_ms: float,
        bucket_ms: float,
    ) -> None:
        self._first_ms, self._bucket_ms = first_ms, bucket_ms
        self._prefill = _column(demands, "prefill_tokens")
        self._decode = _column(demands, "decode_tokens")
        self._prompt = _column(demands, "prompt_tokens")
        self._output = _column(demands, "output_tokens")
        self._streams = np.array([demand.streams for demand in demands])
        self._complete = np.array([demand.complete for demand in demands])
        self._make_pairs(demands)
        self._program = Program()
        add = self._program.add_variables
        self._z, self._u, self._r = (add(len(demands), 1.0) for _ in range(3))
        groups, pairs = len(capacities), len(self._job)
        self._x, self._y, self._k = (add(pairs * groups).reshape(pairs, groups) for _ in range(3))
        self._steps = add(self._buckets * groups).reshape(self._buckets, groups)
        self._serve(demands, min(capacity.product_share for capacity in capacities))
        self._serve_streams(demands)
        self._keep_rates(demands, capacities)
        self._keep_capacity(demands, capacities)
        self._matrix = self._program.matrix()

    def token_bound(self, decode_weight: float) -> float:
        """The most tokens in time, an output token counting `decode_weight`: streams by token, others as a whole."""
        worth = np.zeros(self._program.variables)
        firsts = self._output - self._decode
        worth[self._z] = np.where(self._streams, 0.0, self._prompt + decode_weight * self._output)
        worth[self._u] = np.where(self._streams, self._prompt + decode_weight * firsts, 0.0)
        worth[self._y] = np.where(self._streams, decode_weight, 0.0)[self._job][:, None]
        return maximum(self._program, worth, self._matrix)

    def request_bound(self) -> float:
        """The most jobs attained."""
        worth = np.zeros(self._program.variables)
        worth[self._z] = np.where(self._streams, 0.0, 1.0)
        worth[self._r] = np.where(self._streams & self._complete, 1.0, 0.0)
        return maximum(self._program, worth, self._matrix)

    def _make_pairs(self, demands: Sequence[Demand]) -> None:
        begin, end = _column(demands, "begin_ms"), _column(demands, "end_ms")
        low = np.floor((begin - self._first_ms) / self._bucket_ms).astype(np.int64)
        high = np.maximum(np.ceil((end - self._first_ms) / self._bucket_ms).astype(np.int64), low + 1)
        counts = high - low
        self._job: Ints = np.repeat(np.arange(len(demands)), counts)
        before = np.repeat(np.cumsum(counts) - counts, counts)
        self._bucket: Ints = np.repeat(low, counts) + np.arange(len(self._job)) - before
        self._buckets = int(high.max())
        self._starts_ms: Floats = np.asarray(self._first_ms + self._bucket * self._bucket_ms)
        late = np.maximum(self._starts_ms, begin[self._job])
        early = np.minimum(self._starts_ms + self._bucket_ms, end[self._job])
        self._overlap_ms: Floats = np.asarray(np.maximum(early - late, 0.0))

    def _serve(self, demands: Sequence[Demand], product_share: float) -> None:
        """The share z of a job takes the share z of its prefill, decode and context (a stream: at most of decode)."""
        put, job, jobs = self._program.put, self._job[:, None], len(demands)
        rows = self._program.add_rows(np.zeros(jobs))
        put(rows, self._z, self._prefill)
        put(rows[job], self._x, -1.0)
        rows = self._program.add_rows(np.zeros(jobs))
        sign = np.where(self._streams, -1.0, 1.0)
        put(rows, self._z, sign * self._decode)
        put(rows[job], self._y, -sign[job])
        # n tokens of a stream have contexts of n(n-1)/2 beyond the least: at least the tangent at all of them.
        rows = self._program.add_rows(np.zeros(jobs))
        products = product_share * _column(demands, "products")
        excess = np.where(self._streams, -(self._decode**2) / 2, _column(demands, "excess_tokens"))
        put(rows, self._z, excess + products)
        put(rows[job], self._y, np.where(self._streams, self._decode - 0.5, 0.0)[job])
        put(rows[job], self._k, -1.0)

    def _serve_streams(self, demands: Sequence[Demand]) -> None:
        """A stream's first token in time needs its prefill by then, and its tokens count until they are due."""
        put = self._program.put
        streams = np.flatnonzero(self._streams)
        if not len(streams):
            return
        place = np.full(len(demands), -1)
        place[streams] = np.arange(len(streams))
        first_ms, tbt_ms = _column(demands, "first_ms"), _column(demands, "tbt_ms")
        early = np.flatnonzero(self._streams[self._job] & (self._starts_ms < first_ms[self._job]))
        rows = self._program.add_rows(np.zeros(len(streams)))
        put(rows, self._u[streams], self._prefill[streams])
        put(rows[place[self._job[early]]][:, None], self._x[early], -1.0)
        for part, whole in ((self._u, self._z), (self._r, self._u)):
            rows = self._program.add_rows(np.zeros(len(streams)))
            put(rows, part[streams], 1.0)
            put(rows, whole[streams], -1.0)
        rows = self._program.add_rows(np.zeros(len(streams)))
        put(rows, self._r[streams], self._decode[streams])
        mine = np.flatnonzero(self._streams[self._job])
        put(rows[place[self._job[mine]]][:, None], self._y[mine], -1.0)
        # Of the tokens that come in a bucket or later, only those count that are due after its start.
        late = mine[self._starts_ms[mine] > first_ms[self._job[mine]]]
        of = self._job[late]
        past = (
            np.ceil((self._starts_ms[late] - first_ms[of]) / tbt_ms[of] - 1e-9) - 1
        )  # indices 1.. due before it
        rows = self._program.add_rows(np.zeros(len(late)))
        left = _column(demands, "last_index")[of] - past
        put(rows, self._z[of], -np.clip(left, 0.0, self._decode[of]))
        last = np.searchsorted(self._job, of, side="right")
        spans = last - late
        suffix_row = np.repeat(rows, spans)
        suffix_pair = (
            np.repeat(late, spans) + np.arange(spans.sum()) - np.repeat(np.cumsum(spans) - spans, spans)
        )
        put(suffix_row[:, None], self._y[suffix_pair], 1.0)

    def _keep_rates(self, demands: Sequence[Demand], capacities: Sequence[GroupCapacity]) -> None:
        """A call is in one step at a time; only where a bucket could hold the whole job this says nothing."""
        fastest = min(c.least_step_ms for c in capacities), min(c.token_prefill_ms for c in capacities)
        room_ms = self._overlap_ms * _column(demands, "parallel")[self._job]
        whole_ms = (self._decode * fastest[0] + self._prefill * fastest[1])[self._job]
        tight = np.flatnonzero(whole_ms > room_ms)
        rows = self._program.add_rows(room_ms[tight])
        for group, capacity in enumerate(capacities):
            self._program.put(rows, self._y[tight, group], capacity.least_step_ms)
            self._program.put(rows, self._x[tight, group], capacity.token_prefill_ms)

    def _keep_capacity(self, demands: Sequence[Demand], capacities: Sequence[GroupCapacity]) -> None:
        """What `capacity` says of each group in each bucket."""
        put, context = self._program.put, _column(demands, "context_tokens")[self._job]
        for group, capacity in enumerate(capacities):
            steps = self._steps[:, group]
            x, y, k = self._x[:, group], self._y[:, group], self._k[:, group]
            for line in capacity.lines:
                rows = self._program.add_rows(np.full(self._buckets, capacity.count * self._bucket_ms))
                put(rows, steps, line.step_ms)
                put(rows[self._bucket], x, line.prefill_ms)
                put(rows[self._bucket], y, line.decode_ms + line.context_ms * context)
                put(rows[self._bucket], k, line.context_ms)
            rows = self._program.add_rows(np.zeros(self._buckets))
            put(rows, steps, -float(capacity.max_batch))
            put(rows[self._bucket], y, 1.0)
            put(rows[self._bucket], x, capacity.slots_per_prefill_token)


def _column(demands: Sequence[Demand], field: str) -> Floats:
    return np.array([float(getattr(demand, field)) for demand in demands])
