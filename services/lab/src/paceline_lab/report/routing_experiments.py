"""The experiments of the routing report: GoodServe's motivation test, and its mix on unequal GPUs."""

from dataclasses import replace
from typing import Final

from paceline_lab.report.experiment import Compares, Experiment, Variant
from paceline_lab.sim.cell import WorkloadSpec
from paceline_lab.sim.estimates import LengthSpec
from paceline_lab.sim.moves import Moves

FLEET: Final = ("h100-8b", "a100-80-8b", "a40-8b", "v100-32-8b")
"""H800 and A800 are taken for H100 and A100 on one device."""
OURS: Final = "margin"
BLIND: Final = (
    "random",
    "round-robin",
    "least-request",
    "power-of-two",
    "lowest-tpm",
    "preble",
    "llumnix",
)
"""Rules that do not know of deadlines: those that the paper compares with, and two more."""
PREDICTING: Final = ("polyserve-like", "least-predicted", "goodserve-no-migration", "goodserve", OURS)
ORACLES: Final = ("oracle-least-predicted", "oracle-goodserve", "oracle-margin")
SHORT: Final = ("least-request", "least-predicted", "goodserve", OURS)


def experiments() -> tuple[Experiment, ...]:
    """All of them, in the order of the report."""
    mix = WorkloadSpec("goodserve-mix")
    base = Variant("", load=1.0, fleet=FLEET, workload=mix, moves=Moves.REFRESHED)
    return (
        _placements(
            "motivation",
            "GoodServe's motivation test",
            "600 requests at 10/s on V100, A40, A800 and H800: 100 tokens in, 100 to 500 out, 6 s end to end; all of "
            "them are scored. The model and the batch limit of the paper's engines are not stated: 8B here, and two "
            "limits. Published: up to +27.4 % goodput over the deadline-blind rules, over all workloads.",
            (*BLIND, *PREDICTING),
            tuple(
                replace(
                    base,
                    label=f"B = {batch}",
                    batch=batch,
                    rate_per_s=10.0,
                    window_s=60.0,
                    workload=WorkloadSpec("motivation"),
                )
                for batch in (32, 128)
            ),
        ),
        replace(
            _placements(
                "load",
                "Load",
                "Load 1x is the rate at which mean jobs take all time of all four engines with full batches. "
                "Published: GoodServe up to +27.4 % goodput over the deadline-blind rules.",
                (*BLIND, *PREDICTING, "oracle-margin"),
                tuple(replace(base, label=f"{load:g}x", load=load) for load in (0.3, 0.7, 1.0, 1.3, 1.5)),
            ),
            plot=True,
        ),
        _placements(
            "moves",
            "Moves",
            "Off: requests stay where they are placed. Stale: moves are decided by the length estimates of the "
            "arrival, given what is out. Refreshed: by the newest ones. `goodserve:refreshed=false` takes what is out "
            "off the first mean. Token ids travel: the landing engine prefills prompt and output.",
            ("goodserve", "goodserve:refreshed=false", OURS),
            tuple(
                replace(
                    base,
                    label=f"{load:g}x {moves}",
                    load=load,
                    moves=moves,
                    against="" if moves is Moves.OFF else f"{load:g}x {Moves.OFF}",
                )
                for load in (0.7, 1.0, 1.3)
                for moves in Moves
            ),
        ),
        _placements(
            "errors",
            "Errors of length estimates",
            "Lengths replaced by truth times log-normal noise of sigma, with a bias of which nobody knows; predictor: "
            "the calibrated one of the other tables.",
            ("least-predicted", "goodserve", OURS),
            tuple(
                replace(base, label=label, lengths=LengthSpec.parse(source))
                for label, source in (
                    ("predictor", "predictor"),
                    ("sigma 0", "true"),
                    ("sigma 0.2", "noisy:0.2"),
                    ("sigma 0.4", "noisy:0.4"),
                    ("sigma 0.8", "noisy:0.8"),
                    ("sigma 0.4, x0.7", "noisy:0.4:0.7"),
                    ("sigma 0.4, x1.3", "noisy:0.4:1.3"),
                )
            ),
        ),
        _placements(
            "slo",
            "Tightness of objectives",
            "All targets times a factor, at load 1x.",
            SHORT,
            tuple(
                replace(base, label=f"targets x {scale:g}", workload=replace(mix, slo_scale=scale))
                for scale in (0.7, 1.5, 3.0)
            ),
        ),
        _placements(
            "rates",
            "Speeds of the engines",
            "Rates of arithmetic (F) and of memory (W) of all four GPUs a fifth lower and higher: no one source "
            "measured all of them. Loads are of each fleet's own saturation; targets are those of the unchanged one.",
            SHORT,
            tuple(
                replace(base, label=label, flops_factor=flops, bytes_factor=rate)
                for label, flops, rate in (
                    ("F x 0.8", 0.8, 1.0),
                    ("F x 1.2", 1.2, 1.0),
                    ("W x 0.8", 1.0, 0.8),
                    ("W x 1.2", 1.0, 1.2),
                )
            ),
        ),
        _placements(
            "oracles",
            "What estimates cost",
            "The same rules with the true lengths: no rivals, a measure.",
            (OURS, *ORACLES),
            (replace(base, label="1x"),),
        ),
    )


def _placements(
    name: str, title: str, text: str, policies: tuple[str, ...], variants: tuple[Variant, ...]
) -> Experiment:
    return Experiment(name, title, text, policies, variants, compares=Compares.PLACEMENT)
