"""Positive semidefinite matrices that stand for Hessians, each with its cheapest solve of ``(H + λB) h = r``."""

from __future__ import annotations

from softgate.optim._curvature import (
    BlockDiagCurvature,
    Curvature,
    DenseCurvature,
    LowRankCurvature,
    RankOneCurvature,
)
from softgate.optim._curvature_operators import BandedCurvature, MatVecCurvature

__all__ = [
    "BandedCurvature",
    "BlockDiagCurvature",
    "Curvature",
    "DenseCurvature",
    "LowRankCurvature",
    "MatVecCurvature",
    "RankOneCurvature",
]
