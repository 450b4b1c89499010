"""Logistic regression as an estimator of scikit-learn's kind, fitted by gradient-normalized smoothness."""

from __future__ import annotations

import warnings
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from softgate._checks import check_number, check_sizes
from softgate._sklearn import BaseEstimator, ClassifierMixin
from softgate.errors import ArgumentValueError, bad_type
from softgate.optim.gns import minimize_gns
from softgate.optim.objectives import LogisticRegression, SoftmaxRegression

__all__ = ["GNSLogisticRegression"]

Array = NDArray[Any]

#: First radius: coefficients of scaled features are seldom longer, and a rejected trial costs no new Hessian.
GAMMA = 16.0


class GNSLogisticRegression(ClassifierMixin, BaseEstimator):
    """Logistic regression, binary or softmax, with scikit-learn's parameters and minimum; Newton steps find it.

    It minimises the mean logistic loss plus ``‖w‖²/(2 C N)``; intercepts are not penalised. For two classes there is
    one row of coefficients, for more one per class. Separable data need a finite C: otherwise the loss has no minimum,
    and the fit ends where the gradient is small.

    Args:
        C: inverse of the penalty, positive; ``inf`` is none.
        fit_intercept: add a constant to the features.
        tol: the fit ends at this norm of the gradient of the mean loss.
        max_iter: most steps.

    Attributes:
        classes_: labels.
        coef_: (1 or classes, features).
        intercept_: (1 or classes,).
        n_iter_: (1,) steps taken.

    Example:
        >>> import numpy as np
        >>> X = np.linspace(-1, 1, 40)[:, None]
        >>> GNSLogisticRegression().fit(X, X[:, 0] > 0.2).predict([[-0.5], [0.9]])
        array([False,  True])

    Paper: Gradient-Normalized Smoothness for Optimization with Approximate Hessians, arXiv 2506.13710.
    """

    classes_: Array
    n_features_in_: int

    def __init__(self, C: float = 1.0, *, fit_intercept: bool = True, tol: float = 1e-4, max_iter: int = 100) -> None:
        self.C = C
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Estimate coefficients from X (n, features) and labels y (n,).

        Returns:
            The estimator.

        Raises:
            ArgumentValueError: an option is not allowed, or there is only one class.

        Warns:
            ConvergenceWarning: ``max_iter`` was reached.
        """
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.utils.multiclass import check_classification_targets
        from sklearn.utils.validation import validate_data

        x, labels = validate_data(self, X, y, dtype=np.float64)
        self._check_options()
        check_classification_targets(labels)
        self.classes_, index = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ArgumentValueError(f"y must hold at least two classes, got one class: {self.classes_[0]!r}")
        rows = np.ones((len(x), x.shape[1] + self.fit_intercept))
        rows[:, : x.shape[1]] = x
        features = torch.from_numpy(rows)
        penalty = features.new_full((rows.shape[1],), 1.0 / (float(self.C) * len(x)))
        penalty[x.shape[1] :] = 0.0
        targets = torch.from_numpy(index)
        two = len(self.classes_) == 2
        made: Any = (
            LogisticRegression(features, targets, penalty)
            if two
            else SoftmaxRegression(features, targets, len(self.classes_), penalty)
        )
        found = minimize_gns(
            made, features.new_zeros(made.dim), gamma0=GAMMA, grad_tol=float(self.tol), max_iter=int(self.max_iter)
        )
        if found.status == "max_iter":
            warnings.warn(
                f"the gradient's norm is {found.grad_norm:.2g} after max_iter = {self.max_iter} steps, not below tol",
                ConvergenceWarning, stacklevel=2,
            )  # fmt: skip
        weights = found.x.reshape(1 if two else len(self.classes_), -1).numpy()
        self.coef_ = weights[:, : x.shape[1]].copy()
        self.intercept_ = weights[:, -1].copy() if self.fit_intercept else np.zeros(len(weights))
        self.n_iter_ = np.array([found.n_iter], dtype=np.int32)
        return self

    def _check_options(self) -> None:
        check_number("C", self.C, low=0.0, low_open=True)
        check_number("tol", self.tol, low=0.0, low_open=True, high_open=True)
        check_sizes(max_iter=self.max_iter)
        if not isinstance(self.fit_intercept, bool):
            bad_type("fit_intercept", self.fit_intercept, "a bool")

    def decision_function(self, X: ArrayLike) -> Array:
        """Scores: of the second class against the first, (n,), if there are two classes, or else (n, classes)."""
        from sklearn.utils.validation import check_is_fitted, validate_data

        check_is_fitted(self)
        scores = validate_data(self, X, dtype=np.float64, reset=False) @ self.coef_.T + self.intercept_
        return np.asarray(scores[:, 0] if len(self.classes_) == 2 else scores)

    def predict(self, X: ArrayLike) -> Array:
        """The most probable class, (n,)."""
        scores = self.decision_function(X)
        return np.asarray(self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(1)])

    def predict_proba(self, X: ArrayLike) -> Array:
        """Probabilities of the classes, (n, classes)."""
        return torch.softmax(self._logits(X), 1).numpy()

    def predict_log_proba(self, X: ArrayLike) -> Array:
        """Their logarithms, (n, classes)."""
        return torch.log_softmax(self._logits(X), 1).numpy()

    def _logits(self, X: ArrayLike) -> torch.Tensor:
        scores = torch.from_numpy(self.decision_function(X))
        return torch.stack([torch.zeros_like(scores), scores], 1) if scores.ndim == 1 else scores
