"""Optimizers, shaped like torch.optim."""

from softgate._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__)
