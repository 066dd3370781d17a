"""Policies with the true lengths: no rivals, a measure of what estimates cost."""

from dataclasses import dataclass
from typing import ClassVar

from paceline_core.placement.goodserve import GoodServe
from paceline_core.placement.least_predicted import LeastPredicted
from paceline_core.placement.margin import Margin
from paceline_core.placement.policy import EstimateUse


@dataclass(frozen=True)
class OracleLeastPredicted(LeastPredicted):
    """`least-predicted`, given the true lengths."""

    name: ClassVar[str] = "oracle-least-predicted"
    estimates: ClassVar[EstimateUse] = EstimateUse.TRUE


@dataclass(frozen=True)
class OracleGoodServe(GoodServe):
    """`goodserve`, given the true lengths."""

    name: ClassVar[str] = "oracle-goodserve"
    estimates: ClassVar[EstimateUse] = EstimateUse.TRUE


@dataclass(frozen=True)
class OracleMargin(Margin):
    """`margin`, given the true lengths."""

    name: ClassVar[str] = "oracle-margin"
    estimates: ClassVar[EstimateUse] = EstimateUse.TRUE
