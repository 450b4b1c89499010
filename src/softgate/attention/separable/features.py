"""Feature maps of separable similarities φ(q)·φ(k), and the read-out factors of normalised attention."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from softgate.errors import bad_type, bad_value

FeatureMap = str | Callable[[Tensor], Tensor]

#: Exponents beyond this are clamped: e^30 = 1e13 is as good as infinite, and its square still fits into float32.
LOGIT_LIMIT = 30.0


def elu_plus_one(x: Tensor) -> Tensor:
    """elu(x) + 1: x + 1 above 0 and e^x below, without the cancellation of (e^x - 1) + 1."""
    return x.clamp_max(0.0).exp() + F.relu(x)


def identity(x: Tensor) -> Tensor:
    """The features themselves."""
    return x


FEATURE_MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": elu_plus_one,
    "relu": F.relu,
    "exp": torch.exp,
    "identity": identity,
}

#: Factor 1/η(n) of a row, from the logit n: 1/e^n, 1/softplus(n), 1/σ(n).
READ_OUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": lambda n: (-n.clamp(-LOGIT_LIMIT, LOGIT_LIMIT)).exp(),
    "softplus": lambda n: 1.0 / F.softplus(n.clamp_min(-LOGIT_LIMIT)),
    "sigmoid": lambda n: 1.0 + (-n.clamp_min(-LOGIT_LIMIT)).exp(),
}


def feature_function(feature_map: FeatureMap, name: str = "feature_map") -> Callable[[Tensor], Tensor]:
    """The function called ``feature_map``, or the callable itself."""
    if callable(feature_map):
        return feature_map
    allowed = ", ".join(map(repr, FEATURE_MAPS)) + " or a callable"
    if not isinstance(feature_map, str):
        bad_type(name, feature_map, allowed)
    if feature_map not in FEATURE_MAPS:
        bad_value(name, feature_map, allowed)
    return FEATURE_MAPS[feature_map]
