"""Choosing k experts from logits: the functions behind the gates, and behind ``softgate.swap(model, router=...)``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from softgate._checks import check_dim, check_float_tensor, check_number, check_same_device
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type, bad_value, check_choice
from softgate.registry import method
from softgate.routing._choice import check_count, largest, widened

__all__ = ["topk_sigmoid", "topk_softmax"]

#: ``"topk"``: divide the chosen weights by their sum. ``"none"``: keep them.
Renorm = Literal["topk", "none"]
#: Which comes first; with ``renorm="topk"`` the results differ by rounding only.
Order = Literal["softmax_first", "topk_first"]
_Sample = tuple[tuple[Any, ...], dict[str, Any]]
_Bad = tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]


def _spread(dtype: torch.dtype, generator: torch.Generator, *shape: int) -> Tensor:
    """Logits whose neighbours in size are an eighth apart: finite differences must not change the choice."""
    order = torch.rand(shape, generator=generator).argsort(-1).argsort(-1)
    return ((order - shape[-1] / 2) / 8).to(dtype)


def _softmax_samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[_Sample]:
    yield (_spread(dtype, generator, 3, 5), 2), {}
    yield (_spread(dtype, generator, 2, 3, 12), 9), {"renorm": "none"}
    yield (_spread(dtype, generator, 6, 4), 3, _spread(dtype, generator, 6, 4)), {"dim": 0, "scale": 2.5}
    yield (_spread(dtype, generator, 4, 6), 2), {"order": "topk_first"}
    yield (_spread(dtype, generator, 0, 4), 1), {"renorm": "none"}
    yield (torch.zeros(2, 5, dtype=dtype), 3), {}
    yield (torch.full((2, 4), float("-inf"), dtype=dtype).index_fill(1, torch.tensor([2]), 1.0), 3), {}


def _softmax_bad() -> Iterator[_Bad]:
    x = torch.ones(2, 4)
    for k in (0, 5, -1):
        yield (x, k), {}, ArgumentValueError, "k"
    for wrong in (1.0, True, None, "2"):
        yield (x, wrong), {}, ArgumentTypeError, "k"
    yield (x, 2, torch.ones(2, 3)), {}, ArgumentValueError, "scores"
    yield (x, 2), {"dim": 2}, ArgumentValueError, "dim"
    yield (x, 2), {"renorm": "topk_first"}, ArgumentValueError, "renorm"
    yield (x, 2), {"order": "topk_first", "renorm": "none"}, ArgumentValueError, "renorm"
    yield (x, 2), {"scale": 0.0}, ArgumentValueError, "scale"


@method(
    site="routing",
    family="custom",
    paper="topk-gating-moe",
    source="top-K softmax gate: softmax of the K largest logits, zero elsewhere",
    samples=_softmax_samples,
    bad_inputs=_softmax_bad,
    deviations=("of equal logits the one with the lowest index is taken; the papers leave ties open",),
)
def topk_softmax(
    logits: Tensor,
    k: int,
    scores: Tensor | None = None,
    dim: int = -1,
    *,
    renorm: Renorm = "topk",
    order: Order = "softmax_first",
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Softmax weights of the k largest logits.

    With ``renorm="topk"`` (Mixtral, Qwen3-MoE) the k weights sum to ``scale``; with ``"none"`` (Switch, OLMoE) they
    keep their share of the softmax over all experts, so that even k = 1 sends a gradient to the logits.

    Args:
        logits: (…, E) with the experts along ``dim``; -inf forbids an expert.
        k: how many are chosen, 1 ≤ k ≤ E.
        scores: choose by these instead of by the logits; same shape. No gradient.
        dim: the axis of the experts.
        renorm: ``"topk"`` or ``"none"``.
        order: ``"softmax_first"`` divides shares of the full softmax, ``"topk_first"`` takes the softmax of the chosen
            logits; the same function, up to rounding.
        scale: factor of the weights, positive.

    Returns:
        weights and int64 indices, both with k entries along ``dim``, in falling order of what was chosen by. Of equal
        entries the lowest index wins. Weights are float32 for 16-bit logits, else of the logits' dtype.

    Raises:
        ArgumentTypeError: wrong types or dtypes.
        ArgumentValueError: k out of range, shapes that differ, ``order="topk_first"`` without renormalisation.

    Example:
        >>> import torch
        >>> weights, indices = topk_softmax(torch.tensor([0.0, 2.0, 2.0, 1.0]), 2)
        >>> weights.tolist(), indices.tolist()
        ([0.5, 0.5], [1, 2])

    Paper: Statistical Perspective of Top-K Sparse Softmax Gating Mixture of Experts, arXiv 2309.13850, eq. (1)-(3).
    """
    check_float_tensor("logits", logits)
    dim = check_dim(dim, logits.ndim)
    experts = logits.shape[dim] if logits.ndim else 1
    check_count("k", k, high=experts, what=", the number of experts")
    check_choice("renorm", renorm, ("topk", "none"))
    check_choice("order", order, ("softmax_first", "topk_first"))
    check_number("scale", scale, low=0.0, low_open=True, high_open=True)
    if order == "topk_first" and renorm == "none":
        bad_value("renorm", renorm, "'topk' with order='topk_first'")
    if scores is not None:
        check_float_tensor("scores", scores)
        check_same_device(logits=logits, scores=scores)
        if scores.shape != logits.shape:
            bad_value("scores", tuple(scores.shape), f"of the shape of logits, {tuple(logits.shape)}")
    wide = widened(logits).movedim(dim, -1) if logits.ndim else widened(logits)[None]
    chosen = wide if scores is None else widened(scores).movedim(dim, -1) if logits.ndim else widened(scores)[None]
    indices = largest(chosen, k)
    if order == "topk_first" or (scores is not None and renorm == "topk"):
        weights = wide.gather(-1, indices).softmax(-1)  # the share of all may be 0 where another score chose
    else:
        weights = wide.softmax(-1).gather(-1, indices)
        if renorm == "topk" and k < experts:
            weights = weights / weights.sum(-1, keepdim=True)
    weights = weights if scale == 1.0 else weights * scale
    return (weights, indices) if not logits.ndim else (weights.movedim(-1, dim), indices.movedim(-1, dim))


def _sigmoid_samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[_Sample]:
    yield (_spread(dtype, generator, 3, 6), 2), {}
    yield (_spread(dtype, generator, 5, 8), 3, torch.linspace(-0.2, 0.2, 8)), {"n_groups": 4, "topk_groups": 2}
    yield (_spread(dtype, generator, 2, 4), 1), {"renorm": False, "scale": 2.5}


def _sigmoid_bad() -> Iterator[_Bad]:
    x = torch.ones(2, 4)
    yield (x, 0), {}, ArgumentValueError, "top_k"
    yield (x, 5), {}, ArgumentValueError, "top_k"
    yield (x, 2, torch.ones(3)), {}, ArgumentValueError, "bias"
    yield (x, 2), {"n_groups": 3, "topk_groups": 1}, ArgumentValueError, "n_groups"
    yield (x, 2), {"n_groups": 2, "topk_groups": 3}, ArgumentValueError, "topk_groups"
    yield (x, 2), {"n_groups": 2}, ArgumentValueError, "topk_groups"
    yield (x, 3), {"n_groups": 2, "topk_groups": 1}, ArgumentValueError, "topk_groups"
    yield (x, 2), {"scale": -1.0}, ArgumentValueError, "scale"


@method(
    site="routing",
    family="custom",
    source="sigmoid scores chosen with a balancing bias and within groups (DeepSeek-V3, section 2.1.2)",
    samples=_sigmoid_samples,
    bad_inputs=_sigmoid_bad,
)
def topk_sigmoid(
    logits: Tensor,
    top_k: int,
    bias: Tensor | None = None,
    *,
    n_groups: int | None = None,
    topk_groups: int | None = None,
    renorm: bool = True,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Sigmoid weights of the experts with the largest σ(logit) + bias.

    The bias decides who is chosen and never what the weight is: it balances the load without touching the output of a
    given choice. With groups, only the experts of the ``topk_groups`` best groups compete, a group being as good as
    the sum of its two best.

    Args:
        logits: (…, E).
        top_k: how many are chosen.
        bias: (E,), added for the choice only, no gradient; None for none.
        n_groups: into how many consecutive groups the experts are cut; divides E.
        topk_groups: how many groups stay.
        renorm: divide the chosen weights by their sum.
        scale: factor of the weights, positive (2.5 in DeepSeek-V3).

    Returns:
        weights and int64 indices, (…, top_k), in falling order of σ + bias. Weights are float32 for 16-bit logits.

    Raises:
        ArgumentTypeError: wrong types or dtypes.
        ArgumentValueError: numbers or shapes that do not fit.

    Example:
        >>> import torch
        >>> topk_sigmoid(torch.zeros(4), 2, torch.tensor([0.0, 0.1, 0.0, 0.2]))
        (tensor([0.5000, 0.5000]), tensor([3, 1]))

    Paper: DeepSeek-V3 Technical Report, arXiv 2412.19437, eq. (12)-(16).
    """
    check_float_tensor("logits", logits)
    experts = logits.shape[-1] if logits.ndim else 1
    check_count("top_k", top_k, high=experts, what=", the number of experts")
    check_number("scale", scale, low=0.0, low_open=True, high_open=True)
    check_groups(experts, top_k, n_groups, topk_groups)
    if not isinstance(renorm, bool):
        bad_type("renorm", renorm, "a bool")
    if bias is not None:
        check_float_tensor("bias", bias)
        check_same_device(logits=logits, bias=bias)
        if bias.shape != (experts,):
            bad_value("bias", tuple(bias.shape), f"of shape ({experts},)")
    share = widened(logits).sigmoid()
    biased = share.detach() if bias is None else share.detach() + bias.detach().to(share.dtype)
    if n_groups is not None and topk_groups is not None:
        biased = _only_best_groups(biased, n_groups, topk_groups)
    indices = largest(biased, top_k)
    weights = share.gather(-1, indices)
    if renorm:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return weights if scale == 1.0 else weights * scale, indices


def check_groups(experts: int, top_k: int, n_groups: Any, topk_groups: Any) -> None:
    """Raise unless ``topk_groups`` of ``n_groups`` groups of experts can hold ``top_k`` of them."""
    if n_groups is None and topk_groups is None:
        return
    if n_groups is None or topk_groups is None:
        missing = "n_groups" if n_groups is None else "topk_groups"
        bad_value(missing, None, "given together with the other of n_groups and topk_groups")
    check_count("n_groups", n_groups, high=experts)
    if experts % n_groups:
        bad_value("n_groups", n_groups, f"a divisor of the number of experts, {experts}")
    check_count("topk_groups", topk_groups, high=n_groups, what=", n_groups")
    if topk_groups * (experts // n_groups) < top_k:
        bad_value("topk_groups", topk_groups, f"enough groups of {experts // n_groups} to hold top_k={top_k} experts")


def _only_best_groups(biased: Tensor, n_groups: int, topk_groups: int) -> Tensor:
    grouped = biased.unflatten(-1, (n_groups, -1))
    best = grouped.gather(-1, largest(grouped, min(2, grouped.shape[-1]))).sum(-1)
    stays = torch.zeros_like(best, dtype=torch.bool).scatter(-1, largest(best, topk_groups), True)
    return grouped.masked_fill(~stays[..., None], -torch.inf).flatten(-2)
