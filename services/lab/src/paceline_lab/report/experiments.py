"""The experiments of the scheduling report: JITServe's tables point by point, beside what was published."""

from dataclasses import replace
from typing import Final

from paceline_lab.report.experiment import BASE, Experiment, Variant
from paceline_lab.sim.cell import WorkloadSpec
from paceline_lab.sim.estimates import LengthSpec

SERIES: Final = ("fcfs", "sarathi", "edf", "gmax", "pace", "oracle")


def experiments() -> tuple[Experiment, ...]:
    """All of them, in the order of the report."""
    mix = WorkloadSpec()
    return (
        Experiment(
            "load",
            "Load",
            "Published (8B, rising from 4 to 6 requests/s): JITServe 7.5k to 7.7k tokens/s, LTR 7.1k to 6.2k, Sarathi "
            "6.7k to 3.8k, vLLM 5.7k to 3.3k: the gap is an effect of overload, about 5 % at light load.",
            SERIES,
            tuple(Variant(f"{load:g}x", load) for load in (0.3, 0.6, 0.8, 1.0, 1.3, 1.5, 2.0)),
            plot=True,
        ),
        Experiment(
            "ablation",
            "Ablation",
            "The paper's ablation at one load. Published ratios to Sarathi: requests, then tokens (weights 1:8).",
            (
                "oracle",
                "pace",
                "gmax",
                "gmax-no-analyzer",
                "gmax-no-grouping",
                "gmax-no-refine",
                "gmax-artifact",
                "sjf",
                "sjf-mean",
                "las",
                "edf-shed",
                "llf-shed",
                "slos-serve",
                "edf",
                "sarathi",
                "fcfs",
            ),
            (
                Variant(
                    "1.5x",
                    published={
                        "oracle": "2.39x ; 1.72x",
                        "gmax": "2.35x ; 1.68x",
                        "gmax-no-analyzer": "2.16x ; 1.52x",
                        "sjf": "2.00x ; 1.34x (without GMAX)",
                        "sarathi": "1x",
                    },
                ),
            ),
        ),
        Experiment(
            "mix",
            "Mix of classes",
            "Published gain of JITServe over Sarathi by mix.",
            (BASE, "gmax", "pace"),
            (
                Variant("1:1:1", published={"gmax": "2.08x"}),
                Variant(
                    "latency only",
                    workload=replace(mix, mix=(("latency", 1.0),)),
                    published={"gmax": "1.72x"},
                ),
                Variant(
                    "deadline only",
                    workload=replace(mix, mix=(("deadline", 1.0),)),
                    published={"gmax": "1.76x"},
                ),
                Variant(
                    "tasks only", workload=replace(mix, mix=(("task", 1.0),)), published={"gmax": "1.19x"}
                ),
            ),
        ),
        Experiment(
            "slo",
            "Tightness of objectives",
            "All budgets times a factor.",
            (BASE, "gmax", "pace"),
            tuple(
                Variant(f"budgets x {scale:g}", workload=replace(mix, slo_scale=scale))
                for scale in (0.7, 1.0, 2.0)
            ),
        ),
        Experiment(
            "batch",
            "Batch limit",
            "The paper's runs fix 32 slots; with more slots the gain shrinks. Loads are of each limit's own knee.",
            (BASE, "gmax", "pace"),
            tuple(Variant(f"B = {batch}", batch=batch) for batch in (16, 32, 64, 128, 256)),
        ),
        Experiment(
            "replicas",
            "Replicas",
            "Published: 1.3 to 2.4x over replicas. Placement is least-predicted for all.",
            (BASE, "gmax", "pace"),
            (
                Variant("1 engine"),
                Variant("2 engines", engines=2, placement="least-predicted"),
                Variant("4 engines", engines=4, placement="least-predicted"),
            ),
        ),
        Experiment(
            "errors",
            "Errors of length estimates",
            "Lengths replaced by truth times log-normal noise of sigma, with a bias; shuffled: the estimate of "
            "another call.",
            ("edf-shed", "gmax", "pace"),
            tuple(
                Variant(label, lengths=LengthSpec.parse(source))
                for label, source in (
                    ("true", "true"),
                    ("sigma 0.4", "noisy:0.4"),
                    ("sigma 0.8", "noisy:0.8"),
                    ("sigma 0.4, x0.7", "noisy:0.4:0.7"),
                    ("sigma 0.4, x1.3", "noisy:0.4:1.3"),
                    ("constant", "constant"),
                    ("shuffled", "shuffled"),
                )
            ),
        ),
        Experiment(
            "bursts",
            "Bursts",
            "Gamma arrivals with a coefficient of variation of the gaps.",
            (BASE, "gmax", "pace"),
            tuple(
                Variant(f"CV {cv:g}, {load:g}x", load, workload=replace(mix, cv=cv))
                for cv in (4.0, 13.0)
                for load in (0.8, 1.5)
            ),
        ),
    )
