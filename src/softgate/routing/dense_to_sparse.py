"""The dense-to-sparse gate: softmax at a temperature that falls while training, experts below a share left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from softgate._checks import check_dim, check_float_tensor, check_number, check_same_device
from softgate.errors import ArgumentValueError, bad_type, bad_value, check_choice
from softgate.registry import method
from softgate.routing._choice import check_count, largest, widened

__all__ = ["dense_to_sparse_gate", "topk_activation", "topk_dense_to_sparse"]

#: Activations of a gate's scores, by name.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "relu": functional.relu,
}
Activation = str | Callable[[Tensor], Tensor]


def gate_activation(
    name: str, activation: Any, named: Mapping[str, Callable[[Tensor], Tensor]] = ACTIVATIONS
) -> Callable[[Tensor], Tensor]:
    """The function that ``activation`` (a name of ``named``, a callable or None for the identity) stands for."""
    if activation is None:
        return named["identity"]
    if isinstance(activation, str):
        check_choice(name, activation, tuple(named))
        return named[activation]
    if not callable(activation):
        bad_type(name, activation, f"one of {', '.join(map(repr, named))}, a callable or None")
    return activation


def _samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)

    yield (draw(3, 5), draw(5), 0.5), {}
    yield (draw(3, 5), None, 2.0), {"activation": "gelu"}
    yield (draw(4, 2, 3), draw(4), torch.tensor(0.7)), {"activation": torch.tanh, "dim": 0}
    yield (draw(0, 3), draw(3), 1.0), {"activation": "sigmoid"}


def _bad_inputs() -> Iterator[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    x = torch.ones(2, 4)
    for temperature in (0.0, -1.0, float("nan"), float("inf")):
        yield (x, None, temperature), {}, ArgumentValueError, "temperature"
    yield (x, None, "1"), {}, TypeError, "temperature"
    yield (x, torch.ones(3), 1.0), {}, ArgumentValueError, "bias"
    yield (x, None, torch.ones(2)), {}, ArgumentValueError, "temperature"
    yield (x, None, 1.0), {"activation": "softmax"}, ArgumentValueError, "activation"
    yield (x, None, 1.0), {"activation": 3}, TypeError, "activation"


@method(
    site="routing",
    family="custom",
    paper="temperature-gating-moe",
    source="dense-to-sparse gate, linear and with an activation of the score",
    samples=_samples,
    bad_inputs=_bad_inputs,
    output_range=(0.0, 1.0),
    error_scale="tensor",
)
def dense_to_sparse_gate(
    scores: Tensor,
    bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    activation: Activation | None = None,
    dim: int = -1,
) -> Tensor:
    """Weights of all experts: ``softmax((act(score) + bias) / temperature)``.

    A small temperature makes the weights nearly one-hot, a large one nearly equal. With a linear score the temperature
    only rescales slopes and biases; with an activation that is not homogeneous (sigmoid, tanh, GELU) it means more.

    Args:
        scores: (…, E) with the experts along ``dim``.
        bias: (E,), added after the activation; None for none.
        temperature: positive number, or a tensor with one element (which may require a gradient).
        activation: ``"sigmoid"``, ``"tanh"``, ``"gelu"``, ``"silu"``, ``"relu"``, ``"identity"``, a callable, or None.
        dim: the axis of the experts.

    Returns:
        Weights of the shape of ``scores`` that sum to one along ``dim``; float32 for 16-bit scores.

    Raises:
        ArgumentTypeError: wrong types or dtypes.
        ArgumentValueError: shapes that do not fit, a temperature that is not positive.

    Example:
        >>> import torch
        >>> dense_to_sparse_gate(torch.tensor([0.0, 1.0]), None, 0.1).round(decimals=4)
        tensor([0., 1.])

    Paper: Is Temperature Sample Efficient for Softmax Gaussian Mixture of Experts?, arXiv 2401.13875, eq. (1), (7).
    """
    check_float_tensor("scores", scores)
    dim = check_dim(dim, scores.ndim)
    act = gate_activation("activation", activation)
    if isinstance(temperature, Tensor):
        check_float_tensor("temperature", temperature)
        if temperature.numel() != 1:
            bad_value("temperature", tuple(temperature.shape), "a number or a tensor with one element")
        temperature = temperature.reshape(())
    else:
        check_number("temperature", temperature, low=0.0, low_open=True, high_open=True)
    logits = act(widened(scores))
    if bias is not None:
        check_float_tensor("bias", bias)
        check_same_device(scores=scores, bias=bias)
        experts = scores.shape[dim] if scores.ndim else 1
        if bias.shape != (experts,):
            bad_value("bias", tuple(bias.shape), f"of shape ({experts},)")
        logits = (logits.movedim(dim, -1) + bias).movedim(-1, dim) if scores.ndim else logits + bias[0]
    return (logits / temperature).softmax(dim)


def sparsified(probs: Tensor, k_max: int, threshold: float | None, sentinel: int) -> tuple[Tensor, Tensor]:
    """The experts whose share reaches the threshold (1/E if None), the largest always, at most ``k_max``.

    Returns:
        weights (…, k_max), 0 in slots that stay empty, and indices, there ``sentinel``.
    """
    indices = largest(probs, k_max)
    weights = probs.gather(-1, indices)
    active = weights >= (1.0 / probs.shape[-1] if threshold is None else threshold)
    active = active | (torch.arange(k_max, device=probs.device) == 0)
    return torch.where(active, weights, 0.0), torch.where(active, indices, sentinel)


def topk_dense_to_sparse(
    logits: Tensor, top_k: int, *, temperature: float = 1.0, threshold: float | None = None
) -> tuple[Tensor, Tensor]:
    """At most ``top_k`` experts, those whose share of the softmax at ``temperature`` reaches ``threshold``.

    Args:
        logits: (…, E).
        top_k: most experts per token.
        temperature: divides the logits, positive.
        threshold: least share, in [0, 1]; 1/E if None.

    Returns:
        scores and int64 indices (…, top_k). The largest expert always counts; others below the threshold keep their
        index and get the score 0. Scores are not renormalised.

    Example:
        >>> import torch
        >>> topk_dense_to_sparse(torch.tensor([0.0, 3.0, 0.0]), 2)[0].round(decimals=3)
        tensor([0.9090, 0.0000])

    Paper: arXiv 2401.13875, section 1 (the gate), with the threshold of EvoMoE, arXiv 2112.14397.
    """
    check_float_tensor("logits", logits)
    check_count("top_k", top_k, high=logits.shape[-1] if logits.ndim else 1, what=", the number of experts")
    if threshold is not None:
        check_number("threshold", threshold, low=0.0, high=1.0)
    probs = dense_to_sparse_gate(logits, None, temperature)
    scores, _ = sparsified(probs, top_k, threshold, -1)
    return scores, largest(probs, top_k)


def topk_activation(
    logits: Tensor, top_k: int, *, activation: Activation = "gelu", temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Top-k softmax of ``act(logit) / temperature``.

    Args:
        logits: (…, E).
        top_k: how many are chosen.
        activation: as in :func:`dense_to_sparse_gate`.
        temperature: positive.

    Returns:
        scores that sum to one and int64 indices, (…, top_k).

    Example:
        >>> import torch
        >>> topk_activation(torch.tensor([0.0, 9.0, -9.0]), 1, activation="tanh")
        (tensor([1.]), tensor([1]))

    Paper: arXiv 2401.13875, eq. (7).
    """
    check_float_tensor("logits", logits)
    check_count("top_k", top_k, high=logits.shape[-1] if logits.ndim else 1, what=", the number of experts")
    probs = dense_to_sparse_gate(logits, None, temperature, activation)
    indices = largest(probs, top_k)
    weights = probs.gather(-1, indices)
    return weights / weights.sum(-1, keepdim=True), indices
