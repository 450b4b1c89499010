"""Classifier heads and losses, shaped like cross_entropy."""

from softgate._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__)
