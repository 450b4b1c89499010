"""Classifiers with the interface of scikit-learn, imported only when asked for: scikit-learn is optional."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from softgate.errors import MissingExtraError

if TYPE_CHECKING:
    from softgate._estimators.deep_kernel import DeepKernelClassifier as DeepKernelClassifier
    from softgate._estimators.hilbert import HilbertClassifier as HilbertClassifier

__all__ = ["DeepKernelClassifier", "HilbertClassifier"]

_HOMES = {"DeepKernelClassifier": "deep_kernel", "HilbertClassifier": "hilbert"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from sklearn.utils.validation import validate_data  # noqa: F401 (new in scikit-learn 1.6)
    except ImportError:
        raise MissingExtraError("scikit-learn 1.6 or later", "data", name) from None
    return getattr(importlib.import_module(f"softgate._estimators.{_HOMES[name]}"), name)
