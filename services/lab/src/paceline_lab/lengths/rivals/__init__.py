"""Simple models of lengths that the shipped ones must beat, all with the same information.

`learner` says what a model is to the evaluation. Importing `all_rivals` needs the training libraries.
"""

from paceline_lab.lengths.rivals.learner import LengthLearner

__all__ = ["LengthLearner", "all_rivals"]


def all_rivals() -> list[LengthLearner]:
    """A fresh one of each."""
    from paceline_lab.lengths.rivals.boosted import BoostedQuantiles
    from paceline_lab.lengths.rivals.histograms import AppHistogram, GlobalHistogram, PairHistogram
    from paceline_lab.lengths.rivals.linear import RidgeLengths
    from paceline_lab.lengths.rivals.neighbours import Neighbours

    return [
        GlobalHistogram(),
        AppHistogram(),
        PairHistogram(),
        RidgeLengths(),
        BoostedQuantiles(),
        Neighbours(),
    ]
