"""Softmax with lookahead: the weights that optimistic Hedge plays."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from softgate._checks import check_dim, check_float_tensor, check_number, check_same_device
from softgate._math.compress import compute_dtype
from softgate.errors import ArgumentTypeError, ArgumentValueError
from softgate.registry import method

__all__ = ["optimistic_softmax"]


def _samples(dtype: torch.dtype, generator: torch.Generator) -> Iterable[tuple[tuple[Any, ...], dict[str, Any]]]:
    for shape, eta in (((5,), 0.5), ((3, 4), 2.0), ((2, 3, 1), 1.0)):
        loss, hint = (torch.randn(shape, dtype=dtype, generator=generator) for _ in range(2))
        yield (loss, hint, eta), {}


def _bad_inputs() -> Iterable[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    x = torch.zeros(2, 3)
    wrong: Any
    for wrong in (None, 1.0, [0.0], torch.zeros(2, 3, dtype=torch.int64), x.to_sparse()):
        yield (wrong, x, 1.0), {}, TypeError, "cum_loss"
        yield (x, wrong, 1.0), {}, TypeError, "hint"
    for wrong in (torch.zeros(3), torch.zeros(2, 4), torch.zeros(3, 2)):
        yield (x, wrong, 1.0), {}, ValueError, "hint"
    yield (x, x.double(), 1.0), {}, TypeError, "hint"
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        yield (x, x, wrong), {}, ValueError, "eta"
    for wrong in (None, "1", True, torch.ones(1)):
        yield (x, x, wrong), {}, TypeError, "eta"
    yield (x, x, 1.0), {"dim": 2}, ValueError, "dim"
    yield (x, x, 1.0), {"dim": 0.0}, TypeError, "dim"


@method(
    site="optim",
    family="custom",
    paper="optimistic-mirror-descent",
    source="optimistic OMD on the simplex with entropy, constant step: p_t = softmax(-eta (sum of losses + hint))",
    samples=_samples,
    bad_inputs=_bad_inputs,
    output_range=(0.0, 1.0),
)
def optimistic_softmax(cum_loss: Tensor, hint: Tensor, eta: float, dim: int = -1) -> Tensor:
    r"""Weights of optimistic Hedge: softmax of past losses and of a guess of the next one.

    .. math:: p_i \propto \exp\Big(-\eta \Big(\sum_{s<t} g_{s,i} + m_{t,i}\Big)\Big)

    Differentiable in both tensors. With the last loss as hint it counts that loss twice, and self-play in a game
    settles as 1/t; ``hint = 0`` is Hedge. A prior adds ``-log(prior) / eta`` to ``cum_loss``.

    Args:
        cum_loss: sum of the losses so far, any shape, real floating point; ``+inf`` gives weight 0.
        hint: guess of the next loss, of the shape and dtype of ``cum_loss``.
        eta: step size, positive and finite.
        dim: the axis that sums to one.

    Returns:
        Weights of the shape and dtype of ``cum_loss``, in [0, 1]; 16-bit types are computed in float32.

    Raises:
        ArgumentTypeError: a tensor is no real floating-point tensor, the dtypes differ, or a number has the wrong type.
        ArgumentValueError: the shapes differ, ``eta`` is not positive and finite, or ``dim`` is out of range.

    Example:
        >>> optimistic_softmax(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0]), 3.0).tolist()
        [0.5, 0.5]

    Paper: Chen, Zhang, Tu, Zhao and Zhang, Optimistic Online Mirror Descent for Bridging Stochastic and Adversarial
    Online Convex Optimization, arXiv 2302.04552 (optimistic OMD, on the simplex).
    """
    check_float_tensor("cum_loss", cum_loss)
    check_float_tensor("hint", hint)
    if hint.dtype != cum_loss.dtype:
        raise ArgumentTypeError(f"hint must have the dtype of cum_loss, {cum_loss.dtype}, got {hint.dtype}")
    if hint.shape != cum_loss.shape:
        raise ArgumentValueError(f"hint must have the shape of cum_loss, {tuple(cum_loss.shape)}, "
                                 f"got {tuple(hint.shape)}")  # fmt: skip
    check_same_device(cum_loss=cum_loss, hint=hint)
    check_number("eta", eta, low=0.0, low_open=True, high_open=True)
    dim = check_dim(dim, cum_loss.ndim)
    wide = compute_dtype(cum_loss.dtype)
    return torch.softmax(-eta * (cum_loss.to(wide) + hint.to(wide)), dim).to(cum_loss.dtype)
