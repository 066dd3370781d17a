"""Runs experiments cell by cell and keeps what they gave, so that an interrupted report goes on where it was."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from importlib.resources import files
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

from paceline_core.engines.profile import Profile
from paceline_core.engines.shipped import load_profile
from paceline_lab.report.experiment import ENGINE, Compares, Experiment, Variant
from paceline_lab.sim.cell import Cell, Periods, WorkloadSpec, longest_budget_s, run_bound, run_cell
from paceline_lab.sim.engine_spec import EngineSpec
from paceline_lab.sim.estimates import LengthSpec
from paceline_lab.sim.knee import find_knee, jobs_per_s
from paceline_lab.sim.moves import Moves

Row = dict[str, Any]
Work = Callable[[Cell], Row]

_DRAIN_BUDGETS: Final = 3.0
"""Where all arrivals are scored: as long what is under way may go on, in longest budgets."""
_BOUNDED: Final = ("token_goodput_1_1", "token_goodput_1_8", "request_goodput")


@dataclass(frozen=True, slots=True)
class Scale:
    """How long each run is, in longest budgets, and how many seeds an experiment has at most."""

    window_budgets: float = 10.0
    most_seeds: int = 99
    policies: tuple[str, ...] = ()
    """Of each table only these; empty: all."""

    def chosen(self, experiments: Sequence[Experiment]) -> list[Experiment]:
        """The experiments with the policies that are wanted; those that have none of them are left out."""
        if not self.policies:
            return list(experiments)
        kept = [
            replace(experiment, policies=tuple(p for p in experiment.policies if p in self.policies))
            for experiment in experiments
        ]
        return [experiment for experiment in kept if experiment.policies]


class Cache:
    """Rows by what made them. `version` names the code: figures of another version are not used again."""

    def __init__(self, folder: Path, version: str) -> None:
        self._path = folder / "rows.jsonl"
        self._version = version
        self._rows: dict[str, Row] = {}
        folder.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            for line in self._path.read_text(encoding="utf-8").splitlines():
                entry = json.loads(line)
                if entry["version"] == version:
                    self._rows[entry["key"]] = entry["row"]

    def get(self, key: str) -> Row | None:
        """The row of a key; None: it was not made yet."""
        return self._rows.get(key)

    def put(self, key: str, row: Row) -> None:
        """Keep a row, at once."""
        self._rows[key] = row
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"version": self._version, "key": key, "row": row}) + "\n")


def _key(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


class Runner:
    """Finds knees and runs cells, each once."""

    def __init__(
        self, cache: Cache, scale: Scale, jobs: int, say: Callable[[str], None], *, finished: bool = False
    ) -> None:
        """`finished`: nothing is run; rows that are not there are left out."""
        self._cache = cache
        self._scale = scale
        self._jobs = jobs
        self._say = say
        self._finished = finished

    def rows(self, chosen: Sequence[Experiment]) -> dict[str, dict[str, list[Row]]]:
        """By experiment and label of a variant; each row with its share of the fluid bound. Raises MissingSolverError
        without scipy."""
        cells = {
            (experiment.name, variant.label, policy, seed): self._cell(experiment, variant, policy, seed)
            # Seed by seed: what an interrupted report has is of all tables.
            for seed in range(1, self._seeds(chosen) + 1)
            for experiment in chosen
            if seed <= experiment.seeds
            for variant in experiment.variants
            for policy in experiment.policies
        }
        runs = {_key(asdict(cell)): cell for cell in cells.values()}
        if not self._finished:
            self._make("runs", run_cell, runs)
            self._make("bounds", run_bound, {_bound_key(cell): cell for cell in cells.values()})
        found: dict[str, dict[str, list[Row]]] = {}
        for (name, label, _, _), cell in cells.items():
            row, bound = self._cache.get(_key(asdict(cell))), self._cache.get(_bound_key(cell))
            if row is None:
                assert self._finished
                continue
            bound = bound or dict.fromkeys(_BOUNDED, None)
            share = {name: row[name] / value if value else None for name, value in bound.items()}
            found.setdefault(name, {}).setdefault(label, []).append(row | {"share_of_bound": share})
        return found

    def _seeds(self, chosen: Sequence[Experiment]) -> int:
        return min(max((experiment.seeds for experiment in chosen), default=0), self._scale.most_seeds)

    def _make(self, what: str, work: Work, wanted: Mapping[str, Cell]) -> None:
        missing = {key: cell for key, cell in wanted.items() if self._cache.get(key) is None}
        self._say(f"{len(wanted)} {what}, {len(wanted) - len(missing)} of them are there")
        for done, (key, row) in enumerate(self._run(work, missing), 1):
            self._cache.put(key, row)
            cell = missing[key]
            self._say(
                f"[{done}/{len(missing)} {what}] {cell.policy} {cell.placement} B {cell.max_batch} load {cell.load:g} "
                f"seed {cell.seed}"
            )

    def knee(self, variant: Variant) -> Row:
        """Jobs per second of the knee that the variant's load is a multiple of."""
        workload = replace(variant.workload, cv=1.0, slo_scale=1.0)
        key = _key("knee", asdict(workload), variant.batch)
        row = self._cache.get(key)
        if row is None:
            # Engines of one kind: the knee grows with their number, so it is found for one.
            knee = find_knee(workload, _engines(replace(variant, engines=1)))
            row = {"rate_per_s": knee.rate_per_s, "capacity_per_s": knee.capacity_per_s}
            self._cache.put(key, row)
            mix = ",".join(name for name, _ in workload.mix) or "all classes"
            self._say(f"knee with B = {variant.batch}, {mix}: {row['rate_per_s']:.3f} jobs/s")
        return {name: value * variant.engines for name, value in row.items()}

    def _cell(self, experiment: Experiment, variant: Variant, policy: str, seed: int) -> Cell:
        rate = round(variant.rate_per_s or self._rate(variant), 5)
        places = experiment.compares is Compares.PLACEMENT
        return Cell(
            policy=variant.scheduler if places else policy,
            seed=seed,
            rate_per_s=rate,
            load=math.nan if variant.rate_per_s else variant.load,
            workload=variant.workload,
            engines=_engines(variant),
            periods=self._periods(variant),
            lengths=variant.lengths,
            placement=policy if places else variant.placement,
            moves=variant.moves,
        )

    def _rate(self, variant: Variant) -> float:
        if not variant.fleet:
            return float(self.knee(variant)["rate_per_s"]) * variant.load
        workload = replace(variant.workload, cv=1.0, slo_scale=1.0)
        return variant.load * saturation_per_s(workload, _engines(variant))

    def _periods(self, variant: Variant) -> Periods:
        budget_s = longest_budget_s(variant.workload)
        if variant.window_s:
            return Periods(0.0, variant.window_s, _DRAIN_BUDGETS * budget_s, grace_arrivals=False)
        return Periods(budget_s, self._scale.window_budgets * budget_s, budget_s)

    def _run(self, work: Work, cells: Mapping[str, Cell]) -> Iterable[tuple[str, Row]]:
        if self._jobs <= 1 or len(cells) <= 1:
            for key, cell in cells.items():
                yield key, work(cell)
            return
        with ProcessPoolExecutor(self._jobs, mp_context=get_context("spawn")) as pool:
            futures = {pool.submit(work, cell): key for key, cell in cells.items()}
            for future in as_completed(futures):
                yield futures[future], future.result()


def _bound_key(cell: Cell) -> str:
    """Of what the bound depends on: neither policy nor estimates nor placement."""
    return _key(
        "bound", asdict(replace(cell, policy="", lengths=LengthSpec(), placement="", moves=Moves.OFF))
    )


@lru_cache(maxsize=64)
def saturation_per_s(workload: WorkloadSpec, engines: tuple[EngineSpec, ...]) -> float:
    """Jobs per second that take all time of all engines with full batches, by their linear profiles."""
    sample = workload.training()
    return sum(jobs_per_s(engine, sample) for engine in engines)


def _engines(variant: Variant) -> tuple[EngineSpec, ...]:
    names = variant.fleet or (ENGINE,) * variant.engines
    return tuple(EngineSpec(_profile(name, variant)).batch(variant.batch) for name in names)


@lru_cache(maxsize=256)
def _profile_of(name: str, flops_factor: float, bytes_factor: float) -> Profile:
    profile = load_profile(name)
    if flops_factor == bytes_factor == 1.0:
        return profile
    return profile.perturbed(flops_factor, bytes_factor)


def _profile(name: str, variant: Variant) -> Profile:
    return _profile_of(name, variant.flops_factor, variant.bytes_factor)


def code_version() -> str:
    """A hash of all code that a simulated figure depends on."""
    digest = hashlib.sha256()
    for package in _PACKAGES:
        folder = Path(str(files(package)))
        for path in sorted(folder.rglob("*")):
            if path.suffix in (".py", ".yaml"):
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


_PACKAGES = (
    "paceline_core.batch",
    "paceline_core.engines",
    "paceline_core.placement",
    "paceline_lab.bounds",
    "paceline_lab.sim",
    "paceline_lab.workloads",
)
