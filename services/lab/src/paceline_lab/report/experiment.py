"""Experiments as data: what a table of a report compares, and under which conditions."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from paceline_lab.sim.cell import WorkloadSpec
from paceline_lab.sim.estimates import LengthSpec
from paceline_lab.sim.moves import Moves

ENGINE: Final = "a100-80-8b"
BASE: Final = "sarathi"


class Compares(StrEnum):
    """What the policies of an experiment decide: the column of a row that tells them apart."""

    BATCH = "policy"
    PLACEMENT = "placement"


@dataclass(frozen=True, slots=True)
class Variant:
    """One point of an experiment, besides its policies and seeds.

    `load` is a multiple of the knee of sarathi under the unchanged workload on the same engines with the same batch
    limit; for a mixed `fleet`, of the rate at which mean jobs take all time of all its engines with full batches.
    """

    label: str
    load: float = 1.5
    batch: int = 32
    engines: int = 1
    fleet: tuple[str, ...] = ()
    """Profiles of a mixed fleet; else there are `engines` of one kind."""
    flops_factor: float = 1.0
    bytes_factor: float = 1.0
    """Rates of all engines of the fleet, as multiples of their profiles'."""
    rate_per_s: float = 0.0
    """Jobs per second, instead of a load."""
    window_s: float = 0.0
    """Jobs arrive for so long and all are scored; 0: warm-up and window in longest budgets."""
    workload: WorkloadSpec = field(default_factory=WorkloadSpec)
    lengths: LengthSpec = field(default_factory=LengthSpec)
    placement: str = ""
    """Where batch policies are compared."""
    scheduler: str = BASE
    """Batch policy, where placement policies are compared."""
    moves: Moves = Moves.OFF
    against: str = ""
    """Label of the variant that each policy is compared with itself on."""
    published: Mapping[str, str] = field(default_factory=dict)
    """What the paper says of a policy here."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """One table of a report."""

    name: str
    title: str
    text: str
    policies: tuple[str, ...]
    variants: tuple[Variant, ...]
    seeds: int = 5
    plot: bool = False
    """Draw goodput over the variants."""
    compares: Compares = Compares.BATCH
