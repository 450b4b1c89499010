"""How deep and how wide: early exits with learned gates, and networks that run only a part of themselves."""

from softgate._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__)
