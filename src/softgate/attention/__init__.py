"""Attention functions and modules, shaped like scaled_dot_product_attention."""

from softgate._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__)
