"""Base classes of estimators where scikit-learn is installed, and a clear error where it is not.

scikit-learn is optional: a module with an estimator can always be imported, making the estimator says what to install.
"""

from __future__ import annotations

from typing import Any

from softgate.errors import MissingExtraError

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
except ImportError:

    class BaseEstimator:  # type: ignore[no-redef]
        """Stands for the class of that name where scikit-learn is missing: cannot be instantiated."""

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            """Raise :class:`MissingExtraError`."""
            raise MissingExtraError("scikit-learn", "data", f"{cls.__name__}, an estimator of scikit-learn's kind,")

    class ClassifierMixin:  # type: ignore[no-redef]
        """Nothing, where scikit-learn is missing."""

    class RegressorMixin:  # type: ignore[no-redef]
        """Nothing, where scikit-learn is missing."""


__all__ = ["BaseEstimator", "ClassifierMixin", "RegressorMixin"]
