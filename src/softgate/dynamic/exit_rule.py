"""Where a sample leaves: exit probabilities of a chain of gates, and the exit that follows from them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from softgate._checks import check_float_tensor
from softgate._math.compress import compute_dtype
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type, bad_value, check_choice
from softgate.registry import method

__all__ = ["exit_level", "exit_probabilities"]

# L gates; the L + 1-th exit is the network's own head.
_Sample = tuple[tuple[Any, ...], dict[str, Any]]
_Bad = tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]

RULES = ("conditional", "sample")


def check_gate_logits(gate_logits: Any) -> None:
    """Raise unless ``gate_logits`` are (…, L) real logits of at least one gate."""
    check_float_tensor("gate_logits", gate_logits)
    if gate_logits.ndim == 0 or gate_logits.shape[-1] == 0:
        bad_value("gate_logits", tuple(gate_logits.shape), "of shape (..., L) with at least one gate")


def opens(gate: Tensor, before: Tensor) -> Tensor:
    """Whether a gate lets a sample out, for the sum of the gates before it, both float64; False where one is NaN."""
    return gate >= 0.5 * (1.0 - before)


def _samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[_Sample]:
    # Logits around -2, so that several gates share the probability; a later one takes what is left, or nothing.
    for shape in ((5, 4), (2, 3, 6), (3,), (4, 1), (0, 3)):
        draw = torch.randn(shape, generator=generator, dtype=torch.float64)
        yield ((1.5 * draw - 1.5).to(dtype),), {}


def _bad() -> Iterator[_Bad]:
    yield (torch.zeros(3, 0),), {}, ArgumentValueError, "gate_logits"
    yield (torch.zeros(()),), {}, ArgumentValueError, "gate_logits"
    yield (torch.zeros(2, 3, dtype=torch.int64),), {}, ArgumentTypeError, "gate_logits"
    yield ([0.0, 1.0],), {}, ArgumentTypeError, "gate_logits"


def _level_bad() -> Iterator[_Bad]:
    yield from _bad()
    yield (torch.zeros(2, 3),), {"rule": "argmax"}, ArgumentValueError, "rule"
    yield (torch.zeros(2, 3),), {"rule": None}, ArgumentTypeError, "rule"
    yield (torch.zeros(2, 3),), {"generator": 0}, ArgumentTypeError, "generator"


@method(
    site="dynamic",
    family="custom",
    paper="jei-dnn",
    source="eq. 8: P_l = max(0, min(g_l, 1 - sum of the gates before)); what is left goes to the final head",
    samples=_samples,
    bad_inputs=_bad,
    output_range=(0.0, 1.0),
    error_scale="tensor",
)
def exit_probabilities(gate_logits: Tensor) -> Tensor:
    r"""Probability of leaving at each exit, from the logits of the gates.

    .. math:: P_l = \max\big(0, \min(g_l,\; 1 - \sum_{j<l} g_j)\big), \quad g = \sigma(\text{gate logits}), \qquad
              P_{L+1} = 1 - \sum_{l \le L} P_l

    A gate says which share of *all* samples like this one leaves there, not which share of those that are still in.
    Once the gates sum to one, nothing is left for later exits.

    Args:
        gate_logits: (..., L), one logit a gate, the earliest exit first.

    Returns:
        (..., L + 1) in [0, 1], rows sum to one; float32 for 16-bit inputs. NaN where a gate up to there is NaN.

    Raises:
        ArgumentTypeError: not a real floating-point tensor.
        ArgumentValueError: no gate.

    Example:
        >>> exit_probabilities(torch.tensor([0.25, 0.5, 0.9]).logit())
        tensor([0.2500, 0.5000, 0.2500, 0.0000])

    Paper: Jointly-Learned Exit and Inference for a Dynamic Neural Network, arXiv 2310.09163, eq. 8.
    """
    check_gate_logits(gate_logits)
    g = gate_logits.to(compute_dtype(gate_logits.dtype)).sigmoid()
    left = (1.0 - (g.cumsum(-1) - g)).clamp_min(0.0)
    # the sum of P is the smaller of 1 and the sum of g, which is rounded once here and L times there
    rest = (1.0 - g.sum(-1, keepdim=True)).clamp_min(0.0)
    return torch.cat((torch.minimum(g, left), rest), -1)


@method(
    site="dynamic",
    family="custom",
    paper="jei-dnn",
    source="inference: leave at the first exit whose conditional probability, P_l / (1 - P before), is at least 1/2",
    samples=_samples,
    bad_inputs=_level_bad,
    deviations=("The quotient 0/0 of the authors' code is never formed: g_l >= (1 - sum of g before) / 2 decides.",),
)
def exit_level(gate_logits: Tensor, rule: str = "conditional", *, generator: torch.Generator | None = None) -> Tensor:
    r"""The exit at which each sample leaves.

    ``"conditional"`` leaves at the first exit where a sample that came so far leaves with probability at least one
    half, that is at the first :math:`l` with :math:`g_l \ge \tfrac12 (1 - \sum_{j<l} g_j)`. ``"sample"`` draws from
    :func:`exit_probabilities`.

    Args:
        gate_logits: (..., L), one logit a gate, the earliest exit first.
        rule: ``"conditional"`` or ``"sample"``.
        generator: of the draws of ``"sample"``.

    Returns:
        (...,) int64: 0 to L - 1 for the exits, L for the final head, and -1 for a sample that goes to the final head
        because a gate that it met was NaN. As an index, -1 is the final head too: ``costs[level]`` is right.

    Raises:
        ArgumentTypeError: not a real floating-point tensor, or an option has the wrong type.
        ArgumentValueError: no gate, or an unknown rule.

    Example:
        >>> gates = torch.tensor([[0.2, 0.5, 0.9], [0.1, 0.2, 0.3], [float("nan"), 0.9, 0.9]]).logit()
        >>> exit_level(gates)
        tensor([ 1,  3, -1])

    Paper: Jointly-Learned Exit and Inference for a Dynamic Neural Network, arXiv 2310.09163, section on inference.
    """
    check_gate_logits(gate_logits)
    check_choice("rule", rule, RULES)
    if generator is not None and not isinstance(generator, torch.Generator):
        bad_type("generator", generator, "a torch.Generator or None")
    g = gate_logits.detach().to(compute_dtype(gate_logits.dtype)).sigmoid()
    if rule == "sample":
        draw = torch.rand(g.shape[:-1], generator=generator, dtype=g.dtype, device=g.device).unsqueeze(-1)
        leaves = g.cumsum(-1) > draw
    else:
        # in float64, in which adding up gate by gate, as inference does, gives the same bits
        wide = g.double()
        leaves = opens(wide, nn.functional.pad(wide.cumsum(-1)[..., :-1], (1, 0)))
    level = (leaves.cumsum(-1) == 0).sum(-1)
    # past a NaN every sum is NaN, so that no later gate opens: such a sample is at the end
    lost = (level == g.shape[-1]) & g.isnan().any(-1)
    return torch.where(lost, -1, level)
