"""Simple models of lengths that the shipped ones must beat, all with the same information."""

from paceline_lab.lengths.rivals.learner import LengthLearner

__all__ = ["LengthLearner"]
