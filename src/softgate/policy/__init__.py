"""Which token to reinforce: policy-gradient and preference objectives on log-probabilities."""

from softgate._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__)
