"""Activation functions, and what a network of them becomes when it is infinitely wide and deep."""

from softgate._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__)
