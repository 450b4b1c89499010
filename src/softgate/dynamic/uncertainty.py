"""How sure a classifier is, in four numbers, and the small gate that reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from softgate._checks import check_float_tensor
from softgate._math.compress import compute_dtype
from softgate._math.masks import without_autocast
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type, check_choice
from softgate.registry import method

__all__ = ["UncertaintyGate", "uncertainty_features"]

_Sample = tuple[tuple[Any, ...], dict[str, Any]]
_Bad = tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]

#: Largest probability, entropy of p, lead over the runner-up, entropy of p² / Σp²; the order of the authors' gate.
FEATURES = ("pmax", "entropy", "margin", "entropy2")


def check_features(features: Any) -> tuple[str, ...]:
    """Return ``features`` as a tuple of distinct names out of :data:`FEATURES`."""
    if isinstance(features, str) or not isinstance(features, Sequence):
        bad_type("features", features, "a sequence of names")
    for name in features:
        check_choice("features", name, FEATURES)
    if not features or len(set(features)) != len(features):
        raise ArgumentValueError(f"features must be distinct names, at least one, got {features!r}")
    return tuple(features)


def _entropy(logits: Tensor) -> Tensor:
    """Entropy of softmax in nats; a logit of -inf contributes nothing."""
    log_p = logits.log_softmax(-1).clamp_min(torch.finfo(logits.dtype).min)
    return -(log_p.exp() * log_p).sum(-1)


def _samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[_Sample]:
    for shape in ((4, 5), (3, 2), (7,), (2, 3, 4), (0, 3)):
        # distinct logits: the gradient of the lead over the runner-up jumps where two are equal
        ranks = torch.rand(shape, generator=generator).argsort(-1).argsort(-1)
        yield ((ranks / 2 + torch.rand(shape, generator=generator) / 8).to(dtype),), {}
    yield (torch.randn(3, 6, generator=generator).to(dtype),), {"features": ("entropy2", "pmax")}


def _bad() -> Iterator[_Bad]:
    yield (torch.zeros(3, 1),), {}, ArgumentValueError, "logits"
    yield (torch.zeros(()),), {}, ArgumentValueError, "logits"
    yield (torch.zeros(3, 4, dtype=torch.int64),), {}, ArgumentTypeError, "logits"
    yield (torch.zeros(3, 4),), {"features": ("pmax", "pmax")}, ArgumentValueError, "features"
    yield (torch.zeros(3, 4),), {"features": ()}, ArgumentValueError, "features"
    yield (torch.zeros(3, 4),), {"features": ("max",)}, ArgumentValueError, "features"
    yield (torch.zeros(3, 4),), {"features": "pmax"}, ArgumentTypeError, "features"


@method(
    site="dynamic",
    family="custom",
    paper="jei-dnn",
    source="inputs of a gate: p_max, entropy, lead over the runner-up, entropy of the squared probabilities",
    samples=_samples,
    bad_inputs=_bad,
    output_range=(0.0, float("inf")),
    error_scale="tensor",
)
def uncertainty_features(logits: Tensor, features: Sequence[str] = FEATURES) -> Tensor:
    """What a gate is told about a prediction.

    With ``p = softmax(logits)``: ``"pmax"``, the largest probability; ``"entropy"`` of p in nats; ``"margin"``, the
    largest probability minus the second; ``"entropy2"``, the entropy of ``p² / Σ p²``, which is softmax of twice the
    logits.

    Args:
        logits: (..., C), at least two classes.
        features: which of the four, in the order wanted.

    Returns:
        (..., number of features); float32 for 16-bit inputs. A row with ``+inf`` or NaN is NaN.

    Raises:
        ArgumentTypeError: ``logits`` is not a real floating-point tensor, ``features`` not a sequence.
        ArgumentValueError: fewer than two classes, an unknown, repeated or missing name.

    Example:
        >>> uncertainty_features(torch.tensor([0.0, 0.0]))
        tensor([0.5000, 0.6931, 0.0000, 0.6931])

    Paper: Jointly-Learned Exit and Inference for a Dynamic Neural Network, arXiv 2310.09163, section on the gates.
    """
    check_float_tensor("logits", logits)
    chosen = check_features(features)
    if logits.ndim == 0 or logits.shape[-1] < 2:
        raise ArgumentValueError(f"logits must have at least two classes (C >= 2), got shape {tuple(logits.shape)}")
    wide = logits.to(compute_dtype(logits.dtype))
    top, second = wide.softmax(-1).topk(2, -1).values.unbind(-1)
    found = {"pmax": top, "margin": top - second}
    if "entropy" in chosen:
        found["entropy"] = _entropy(wide)
    if "entropy2" in chosen:
        found["entropy2"] = _entropy(2.0 * wide)
    return torch.stack([found[name] for name in chosen], -1)


class UncertaintyGate(nn.Module):
    """A gate of five parameters: a linear function of :func:`uncertainty_features` of an exit's prediction.

    The features are detached: what the gate learns does not reach the classifier before it. Everything is computed in
    float32 at least, whatever the dtype of the network.

    Args:
        features: which features, see :func:`uncertainty_features`.

    Shapes: logits (..., C) -> gate logits (...,).

    Raises:
        ArgumentTypeError: ``features`` is not a sequence of names.
        ArgumentValueError: an unknown, repeated or missing name.

    Example:
        >>> UncertaintyGate()(torch.randn(3, 10)).shape
        torch.Size([3])

    Paper: Jointly-Learned Exit and Inference for a Dynamic Neural Network, arXiv 2310.09163, section on the gates.
    """

    def __init__(self, features: Sequence[str] = FEATURES) -> None:
        super().__init__()
        self.features = check_features(features)
        self.linear = nn.Linear(len(self.features), 1)

    def forward(self, logits: Tensor) -> Tensor:
        """Logit of leaving here, (...,), for class logits (..., C)."""
        weight, bias = self.linear.weight, self.linear.bias
        with without_autocast(logits):
            read = uncertainty_features(logits.detach(), self.features)
            wide = torch.promote_types(read.dtype, weight.dtype)
            return nn.functional.linear(read.to(wide), weight.to(wide), bias.to(wide)).squeeze(-1)

    def extra_repr(self) -> str:
        """The features, for ``repr``."""
        return f"features={self.features}"
