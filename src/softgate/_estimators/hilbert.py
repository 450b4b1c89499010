"""The Hilbert kernel estimate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softgate._estimators.voting import KernelVote, weighted_mean
from softgate.errors import ArgumentValueError, bad_type


class HilbertClassifier(KernelVote):
    r"""Vote of all training points with weights ``|x - x_i|^-d``: consistent without anything to tune.

    .. math:: \hat y(x) = \mathrm{sign} \sum_i y_i \, \lVert x - x_i \rVert^{-d}

    It interpolates (a training point gets its own label) and its error tends to the smallest possible one if d is the
    dimension of the data. An infinitely deep network whose activation has the right order becomes this classifier; see
    :class:`DeepKernelClassifier`.

    Args:
        dim: number of coordinates that the data needs; None: those it has. On the sphere d is ``dim - 1``.
        normalize: scale the points to the unit sphere first. False: d is ``dim``.

    Attributes:
        classes_: the labels.
        points_: distinct training points (n, D), and one more coordinate if there are zero rows.
        votes_: mean one-hot label of each (n, classes).
        exponent_: d.

    Raises:
        ArgumentTypeError: an option has the wrong type (when fitting).
        ArgumentValueError: ``dim`` out of range.

    Warns:
        UserWarning: rows of zeros, which have no direction (they count as orthogonal to all others); equal points with
            different labels.

    Example:
        >>> import numpy as np
        >>> from softgate.losses import HilbertClassifier
        >>> X = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
        >>> HilbertClassifier().fit(X, ["a", "b", "b"]).predict([[1.0, 0.1], [0.1, 1.0]])
        array(['a', 'b'], dtype='<U1')

    Paper: Devroye, Györfi, Krzyżak, The Hilbert kernel regression estimate (1998); Radhakrishnan, Belkin, Uhler,
    arXiv 2204.14126.
    """

    def __init__(self, dim: int | None = None, normalize: bool = True) -> None:
        self.dim = dim
        self.normalize = normalize

    def _fit(self) -> None:
        dim = effective_dim(self.dim, self.n_features_in_)
        # two points of a line, or the two of the sphere in one dimension: any exponent will do
        self.exponent_ = max(dim - 1, 1) if self.normalize else dim

    def _score_tile(self, points: Tensor) -> Tensor:
        train = torch.from_numpy(self.points_)
        distance = torch.cdist(points, train, compute_mode="donot_use_mm_for_euclid_dist")
        log_weight = -self.exponent_ * distance.log()  # +inf for a training point
        votes = torch.from_numpy(self.votes_)
        return weighted_mean(log_weight, torch.ones_like(log_weight), votes, votes.mean(0))


def effective_dim(dim: Any, features: int) -> int:
    """``dim``, or the number of features."""
    if dim is None:
        return features
    if isinstance(dim, bool) or not isinstance(dim, int):
        bad_type("dim", dim, "None or an int")
    if dim < 1:
        raise ArgumentValueError(f"dim must be at least 1, got {dim}")
    return dim
