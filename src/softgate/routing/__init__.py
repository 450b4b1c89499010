"""Which expert: gates, mixture-of-experts layers, and what is known about their estimators."""

from softgate._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__)
