"""The fleet as it is fed by events: the same for the router and for the simulator.

Reports and placements fold into columns as they come, so that a view costs the same whatever happened before.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from paceline_core.engine_model import EngineModel
from paceline_core.headroom import HORIZONS_MS
from paceline_core.placement.black_box import FACTOR, BlackBoxTimes
from paceline_core.placement.in_flight import COLUMNS as IN_FLIGHT_COLUMNS
from paceline_core.placement.in_flight import InFlightLedger
from paceline_core.placement.joining import Joining, joining
from paceline_core.placement.prefix_index import PrefixIndex
from paceline_core.placement.prices import Prices
from paceline_core.placement.residents import ResidentTable
from paceline_core.placement.roster import Roster
from paceline_core.placement.view import FleetView, Floats, Headroom, RequestView, StepCosts

COST_COLUMNS: Final = ("a_ms", "b_ms", "c_ms", "a1_ms", "p0_ms", "d_ms", "e_ms")
LOAD_COLUMNS: Final = (
    "queued",
    "running",
    "paused",
    "queued_prefill_tokens",
    "expected_output_tokens",
    "kv_used_tokens",
)
LIMIT_COLUMNS: Final = (
    "kv_capacity_tokens",
    "max_batch",
    "max_context_tokens",
    "speed_factor",
    "tokens_per_s",
)
_OWN_COLUMNS: Final = ("load_at_ms", "minute_tokens", "observed_slowdown")
_COLUMNS: Final = (*IN_FLIGHT_COLUMNS, *COST_COLUMNS, *LOAD_COLUMNS, *LIMIT_COLUMNS, *_OWN_COLUMNS)
_PLACE: Final = {name: i for i, name in enumerate(_COLUMNS)}
_IN_FLIGHT: Final = slice(0, len(IN_FLIGHT_COLUMNS))
_BLOCK_TOKENS: Final = 64.0
"""Tokens of a 256-byte block of text, about."""
_POOL_FACTOR: Final = 0.02
_MINUTE_MS: Final = 60_000.0
_LONGEST_GAP_MS: Final = 2_000.0
_SLOWDOWN_MS: Final = 5_000.0
"""Memory of the observed slowdown."""
_MOST_SLOWDOWN: Final = 5.0


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What an engine says of itself when it comes up."""

    max_batch: float
    kv_capacity_tokens: float
    max_context_tokens: float = 0.0
    speed_factor: float = 1.0


@dataclass(frozen=True, slots=True)
class _Placed:
    row: int
    at_ms: float
    prefill_tokens: float
    alone: bool
    prompt_tokens: int
    replayed_tokens: int
    """Output tokens that were out before."""


class FleetTable:
    """Columns by engine, and the estimators that placement policies read.

    Attempts are known by a key of the caller's. Events of unknown keys are ignored: they belong to nobody here.
    """

    def __init__(
        self,
        leave_out_after_ms: float = float("inf"),
        *,
        black_box_factor: float = FACTOR,
        prefixes: PrefixIndex | None = None,
        residents: bool = True,
    ) -> None:
        """`leave_out_after_ms`: age of a report from which its engine is stale. `residents=False`: live requests are
        not kept one by one (a policy that does not read them is as good without)."""
        self.black_box = BlackBoxTimes(black_box_factor)
        self.prefixes = PrefixIndex() if prefixes is None else prefixes
        self.residents = ResidentTable() if residents else None
        self.in_flight = InFlightLedger()
        self.prices: Prices | None = None
        """What `prices.reprice` gave last; the caller renews it."""
        self._leave_out_after_ms = leave_out_after_ms
        self._ids: list[str] = []
        self._incarnations: list[int] = []
        self._models: list[str] = []
        self._roster = Roster((), (), ())
        self._data: Floats = np.zeros((len(_COLUMNS), 8))
        self._up = np.zeros(8, dtype=np.bool_)
        self._draining = np.zeros(8, dtype=np.bool_)
        self._curves: Floats = np.full((3, 8, len(HORIZONS_MS)), np.nan)
        self._has_curves = False
        self._placed: dict[int, _Placed] = {}
        self._first_ms: dict[int, float] = {}
        self._progress_ms: dict[int, float] = {}
        self._pool_tokens = 256.0
        self._minute = -1
        self._changed: set[int] = set()
        self._joining: Floats = np.zeros((3, 8))
        self._template: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self._ids)

    # -- engines -------------------------------------------------------------------------------------------------

    def join(self, engine_id: str) -> int:
        """A row for a new engine, which is down until `came_up`."""
        row = len(self._ids)
        if row == self._data.shape[1]:
            self._data = np.concatenate([self._data, np.zeros_like(self._data)], axis=1)
            self._joining = np.concatenate([self._joining, np.zeros_like(self._joining)], axis=1)
            self._up = np.concatenate([self._up, np.zeros_like(self._up)])
            self._draining = np.concatenate([self._draining, np.zeros_like(self._draining)])
            self._curves = np.concatenate([self._curves, np.full_like(self._curves, np.nan)], axis=1)
        self._ids.append(engine_id)
        self._incarnations.append(0)
        self._models.append("")
        self._renew()
        return row

    def came_up(self, row: int, incarnation: int, model: str, limits: EngineLimits, now_ms: float) -> None:
        """The engine is there, in this incarnation, with nothing in it that is known."""
        if incarnation != self._incarnations[row]:
            self.prefixes.clear(row)
            self.black_box.forget(row)
        self._incarnations[row] = incarnation
        self._models[row] = model
        self._renew()
        for name in ("max_batch", "kv_capacity_tokens", "max_context_tokens", "speed_factor"):
            self._data[_PLACE[name], row] = getattr(limits, name)
        self._data[_PLACE["load_at_ms"], row] = now_ms
        self._data[_PLACE["observed_slowdown"], row] = 1.0
        self._progress_ms[row] = now_ms
        self._changed.add(row)
        self._up[row] = True

    def went_down(self, row: int) -> None:
        """Its session or its incarnation is gone, with all load."""
        self._changed.add(row)
        self._up[row] = False
        for name in LOAD_COLUMNS:
            self._data[_PLACE[name], row] = 0.0
        self._curves[:, row] = np.nan
        self.in_flight.clear(self._data[_IN_FLIGHT], row)

    def flags(self, row: int, *, up: bool, draining: bool) -> None:
        """Whether it is there, and takes requests."""
        self._up[row] = up
        self._draining[row] = draining

    def costs(self, row: int, coefficients: Mapping[str, float] | EngineModel) -> None:
        """Its step-time model: coefficients by the names of `COST_COLUMNS`, or a fitted model."""
        if isinstance(coefficients, EngineModel):
            coefficients = {name: getattr(coefficients, name) for name in COST_COLUMNS}
        for name, value in coefficients.items():
            self._data[_PLACE[name], row] = value
        self._changed.add(row)

    def report(
        self,
        row: int,
        load: Mapping[str, float],
        now_ms: float,
        headroom: Sequence[Sequence[float]] | Sequence[Floats] | None = None,
    ) -> None:
        """A load report: values by the names of `LOAD_COLUMNS` and `LIMIT_COLUMNS`, and the curves of free decode,
        prefill and KV tokens over `HORIZONS_MS`. What the engine has answered for is in it."""
        column = self._data[:, row]
        for name, value in load.items():
            column[_PLACE[name]] = value
        column[_PLACE["load_at_ms"]] = now_ms
        self._changed.add(row)
        if headroom is not None:
            self._curves[:, row] = headroom
            if not self._has_curves:
                self._has_curves = True
                self._template = {}
        self.in_flight.reported(self._data[_IN_FLIGHT], row)
        if not (column[_PLACE["queued"]] or column[_PLACE["running"]] or column[_PLACE["pending_requests"]]):
            self.black_box.idle(row)

    # -- requests ------------------------------------------------------------------------------------------------

    def placed(self, row: int, key: int, request: RequestView, now_ms: float, moves: int = 0) -> None:
        """A decision was sent to the engine; no report knows it yet."""
        cached = 0.0 if request.cached_tokens is None else float(request.cached_tokens[row])
        prefill = max(request.input_tokens - cached, 1.0)
        column = self._data[:, row]
        alone = not (
            column[_PLACE["queued"]] or column[_PLACE["running"]] or column[_PLACE["pending_requests"]]
        )
        out = request.replayed_tokens
        self._placed[key] = _Placed(row, now_ms, prefill, alone, request.prompt_tokens, out)
        self.in_flight.add(self._data[_IN_FLIGHT], key, row, prefill, request.remaining_tokens)
        self._changed.add(row)
        if self.residents is not None:
            self.residents.add(key, row, request, now_ms, moves)
        if request.prefix_hashes:
            self.prefixes.put(row, request.prefix_hashes)

    def seen(self, key: int) -> None:
        """The engine answered for the attempt: its next report covers it."""
        self.in_flight.seen(key)

    def progressed(self, row: int, keys: Iterable[int], generated: Iterable[int], now_ms: float) -> None:
        """Output tokens so far, of all attempts on one engine; about as often as it reports. Attempts that wrote since
        the last time tell how long its steps really are."""
        written = writers = 0
        for key, count in zip(keys, generated, strict=True):
            if self.residents is not None:
                before = self.residents.progressed(key, count)
                if before > 0 and count > before:
                    written += count - before
                    writers += 1
            if count > 0 and key not in self._first_ms and self._wrote(key, count):
                self.first_token(key, now_ms)
        self._changed.add(row)
        since_ms = now_ms - self._progress_ms.get(row, now_ms)
        self._progress_ms[row] = now_ms
        if writers and 0.0 < since_ms <= _LONGEST_GAP_MS:
            self._learn_slowdown(row, since_ms * writers / written, writers, since_ms)
        elif not writers and since_ms > 0.0:  # nothing is slowed down where nothing is written
            column = self._data[:, row]
            fade = math.exp(-since_ms / _SLOWDOWN_MS)
            column[_PLACE["observed_slowdown"]] = 1.0 + fade * (column[_PLACE["observed_slowdown"]] - 1.0)

    def _wrote(self, key: int, count: int) -> bool:
        """True if the attempt itself wrote: what came with it was written elsewhere."""
        placed = self._placed.get(key)
        return placed is not None and count > placed.replayed_tokens

    def _learn_slowdown(self, row: int, step_ms: float, batch: int, since_ms: float) -> None:
        column = self._data[:, row]
        resident = max(column[_PLACE["running"]] + column[_PLACE["paused"]], 1.0)
        context = column[_PLACE["kv_used_tokens"]] * min(batch / resident, 1.0)
        costs = StepCosts(*column[_COSTS, None])
        model_ms = float(costs.decode_ms(np.array([float(batch)]), np.array([context]))[0])
        if model_ms > 0:
            seen = min(max(step_ms / model_ms, 1.0), _MOST_SLOWDOWN)
            weight = 1.0 - math.exp(-since_ms / _SLOWDOWN_MS)
            column[_PLACE["observed_slowdown"]] += weight * (seen - column[_PLACE["observed_slowdown"]])

    def first_token(self, key: int, now_ms: float) -> None:
        """The attempt's first token came."""
        placed = self._placed.get(key)
        if placed is None or key in self._first_ms:
            return
        self._first_ms[key] = now_ms
        self.black_box.first_token(placed.row, now_ms - placed.at_ms, placed.prefill_tokens, placed.alone)

    def ended(self, key: int, now_ms: float, output_tokens: int = 0, last_ms: float | None = None) -> None:
        """The attempt is over; `output_tokens` of it are out (0: it did not complete, and teaches nothing). `last_ms`:
        when the last one came, if that was before now."""
        placed = self._placed.pop(key, None)
        first_ms = self._first_ms.pop(key, None)
        self.in_flight.drop(self._data[_IN_FLIGHT], key)
        if self.residents is not None:
            self.residents.remove(key)
        if placed is None:
            return
        self._changed.add(placed.row)
        if output_tokens <= 0:
            return
        if first_ms is not None:
            here = output_tokens - placed.replayed_tokens
            wrote_ms = (now_ms if last_ms is None else last_ms) - first_ms
            self.black_box.tokens(placed.row, here - 1, wrote_ms)
        self._pool_tokens += _POOL_FACTOR * (output_tokens - self._pool_tokens)
        self._turn_minute(now_ms)
        self._data[_PLACE["minute_tokens"], placed.row] += placed.prompt_tokens + output_tokens

    def cached_tokens(self, prefix_hashes: Sequence[int], prompt_tokens: int) -> Floats | None:
        """float64[E]: leading prompt tokens that each engine is thought to have; None when none has any."""
        blocks = self.prefixes.blocks(prefix_hashes, len(self._ids))
        return None if blocks is None else np.minimum(blocks * _BLOCK_TOKENS, float(prompt_tokens))

    # -- what policies read --------------------------------------------------------------------------------------

    def view(self, now_ms: float) -> FleetView:
        """The fleet now. The arrays are the table's own: valid until its next change, not to be written."""
        self._turn_minute(now_ms)
        self._rejoin()
        if not self._template:
            self._template = self._columns()
        fixed, prices = self._template, self.prices
        count = len(self._ids)
        age_ms = np.maximum(now_ms - self._data[_PLACE["load_at_ms"], :count], 0.0)
        # A dataclass of so many fields is made field by field, frozen or not: a copy of the last one is much cheaper.
        view: FleetView = object.__new__(FleetView)
        view.__dict__.update(
            fixed,
            stale=age_ms > self._leave_out_after_ms,
            load_age_ms=age_ms,
            pool_output_tokens=self._pool_tokens,
            residents=None if self.residents is None else self.residents.view(count),
            prices=prices if prices is None or len(prices.per_ms) == count else None,
        )
        return view

    def _columns(self) -> dict[str, Any]:
        """The fields of a view that are the same arrays until the fleet grows."""
        count = len(self._ids)
        data = self._data[:, :count]
        headroom = None
        if self._has_curves:
            decode, prefill, kv = self._curves[:, :count]
            headroom = Headroom(HORIZONS_MS, decode, prefill, kv)
        nothing = np.zeros(count)
        view = FleetView(
            engine_ids=self._roster.engine_ids,
            incarnations=self._roster.incarnations,
            models=self._roster.models,
            kept_roster=self._roster,
            kept_joining=Joining(*self._joining[:, :count]),
            up=self._up[:count],
            draining=self._draining[:count],
            stale=nothing > 0,
            load_age_ms=nothing,
            costs=StepCosts(*data[_COSTS]),
            **{name: data[place] for name, place in _VIEWED},
            headroom=headroom,
            black_box=self.black_box.view(count),
        )
        return dict(view.__dict__)

    def _rejoin(self) -> None:
        """Bring what one more request would find up to date where something changed."""
        for row in self._changed:
            values = self._data[:, row].tolist()
            self._joining[:, row] = joining(
                live=values[_QUEUED] + values[_RUNNING] + values[_PAUSED] + values[_PENDING],
                resident=values[_RUNNING] + values[_PAUSED],
                kv_used_tokens=values[_KV],
                max_batch=values[_BATCH],
                prefill_tokens=values[_QUEUED_PREFILL] + values[_PENDING_PREFILL],
                output_tokens=values[_EXPECTED] + values[_PENDING_OUTPUT],
                slowdown=values[_SLOWDOWN],
                **dict(zip(_JOINING_COSTS, values[_COSTS], strict=False)),
                d_ms=values[_D],
            )
        self._changed.clear()

    def _turn_minute(self, now_ms: float) -> None:
        minute = int(now_ms // _MINUTE_MS)
        if minute != self._minute:
            self._minute = minute
            self._data[_PLACE["minute_tokens"]] = 0.0

    def _renew(self) -> None:
        self._roster = Roster(tuple(self._ids), tuple(self._incarnations), tuple(self._models))
        self._template = {}


_QUEUED, _RUNNING, _PAUSED, _QUEUED_PREFILL, _EXPECTED, _KV = (_PLACE[name] for name in LOAD_COLUMNS)
_PENDING, _PENDING_PREFILL, _PENDING_OUTPUT = (_PLACE[name] for name in IN_FLIGHT_COLUMNS)
_BATCH, _SLOWDOWN, _D = (_PLACE[name] for name in ("max_batch", "observed_slowdown", "d_ms"))
_JOINING_COSTS: Final = ("a_ms", "b_ms", "c_ms", "a1_ms")
_COSTS: Final = slice(_PLACE["a_ms"], _PLACE["a_ms"] + len(COST_COLUMNS))
_VIEWED: Final = tuple(
    (name, _PLACE[name])
    for name in (*IN_FLIGHT_COLUMNS, *LOAD_COLUMNS, *LIMIT_COLUMNS, "minute_tokens", "observed_slowdown")
)
