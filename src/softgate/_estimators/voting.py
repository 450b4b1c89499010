"""What both kernel classifiers share: points on the sphere, one-hot votes, scores in tiles, predictions."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from softgate.errors import bad_type

#: Kernel entries that are held at once.
_TILE = 2**22

Array = NDArray[Any]


class KernelVote(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier whose scores are sums of the training labels, weighted by a kernel of the distances."""

    normalize: bool
    classes_: Array
    n_features_in_: int

    def fit(self, X: Array, y: Array) -> Any:
        """Keep the training points; see the class."""
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        if not isinstance(self.normalize, bool):
            bad_type("normalize", self.normalize, "a bool")
        self.classes_, index = np.unique(y, return_inverse=True)
        with_pole = self.normalize and bool((X == 0.0).all(1).any())
        self.points_, self.votes_ = _merge(self._place(X, with_pole=with_pole), index, len(self.classes_))
        self._fit()
        return self

    def decision_function(self, X: Array) -> Array:
        """Scores: of the second class against the first, (n,), if there are two classes, or else (n, classes).

        They are means of the training labels (at finite depth: of the solved coefficients), weighted with the kernel.
        """
        scores = self._scores(X)
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: Array) -> Array:
        """The class with the largest score, (n,); of several the first."""
        chosen = self._scores(X).argmax(1)
        return self.classes_[chosen]

    def predict_proba(self, X: Array) -> Array:
        """Share of each class in the weights, (n, classes), cut to [0, 1]; not calibrated."""
        scores = self._scores(X)
        # at finite depth, and with kernels that are negative for opposite points, scores may leave [0, 1]
        shifted = (scores + (1.0 - scores.sum(1, keepdims=True)) / len(self.classes_)).clip(0.0)
        return shifted / shifted.sum(1, keepdims=True)

    def _scores(self, X: Array) -> Array:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        with_pole = self.points_.shape[1] > self.n_features_in_
        points = torch.from_numpy(self._place(X, with_pole=with_pole))
        parts = [self._score_tile(points[part]).numpy() for part in self._tiles(len(points))]
        return np.concatenate(parts)

    def _tiles(self, rows: int) -> Iterator[slice]:
        step = max(1, _TILE // len(self.points_))
        return (slice(start, start + step) for start in range(0, rows, step))

    def _place(self, X: Array, *, with_pole: bool) -> Array:
        """The points on the unit sphere, if asked for; ``with_pole`` adds a coordinate that is 1 for zero rows.

        A zero row has no direction. On an axis of its own it is equal to other zero rows and as far from every
        direction as from any other.
        """
        if not self.normalize:
            return np.array(X)
        largest = np.abs(X).max(1, keepdims=True)  # first, so that squares neither overflow nor vanish
        empty = largest == 0.0
        if empty.any():
            warnings.warn("zero rows have no direction; they count as orthogonal to all others", stacklevel=4)
        X = X / np.where(empty, 1.0, largest)
        X = X / np.where(empty, 1.0, np.linalg.norm(X, axis=1, keepdims=True))
        return np.hstack((X, empty)) if with_pole else X

    @abstractmethod
    def _fit(self) -> None:
        """Check the options and prepare; ``points_`` and ``votes_`` are there."""

    @abstractmethod
    def _score_tile(self, points: Tensor) -> Tensor:
        """Scores (n, classes) of points (n, D)."""


def weighted_mean(log_weight: Tensor, sign: Tensor, values: Tensor, default: Tensor) -> Tensor:
    """``Σ_i sign w values / Σ_i w`` of weights in logarithms, (n, points); infinite ones outweigh all others.

    A point without any weight, whose kernel with every training point is 0, gets ``default``.
    """
    peak = log_weight.amax(1, keepdim=True)
    infinite, none = peak == torch.inf, peak == -torch.inf
    weight = (log_weight - torch.where(infinite | none, 0.0, peak)).exp()
    weight = torch.where(infinite, (log_weight == torch.inf).to(weight.dtype), weight)
    mean = (weight * sign) @ values / torch.where(none, 1.0, weight.sum(1, keepdim=True))
    return torch.where(none, default, mean)


def _merge(points: Array, index: Array, classes: int) -> tuple[Array, Array]:
    """Distinct points and the mean one-hot label of each."""
    distinct, first, inverse = np.unique(points, axis=0, return_index=True, return_inverse=True)
    inverse = inverse.reshape(-1)
    votes = np.zeros((len(distinct), classes))
    np.add.at(votes, (inverse, index), 1.0)
    votes /= votes.sum(1, keepdims=True)
    if (votes.max(1) < 1.0).any():
        warnings.warn("equal points have different labels: each gets the mean of its labels", stacklevel=3)
    order = first.argsort()  # as they came
    return points[first[order]], votes[order]
