"""After the detector: which boxes stand for objects, and with which scores."""

from softgate._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__)
