"""Log-density and gate of a Gaussian mixture of experts, in plain torch: gradients flow to data and parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from softgate._checks import check_float_tensor, check_number, check_same_device
from softgate._math.masks import accumulation_dtype, without_autocast
from softgate.errors import ArgumentValueError, bad_type, check_choice
from softgate.registry import method
from softgate.routing._activations import Activation, activation_of

__all__ = ["gaussian_moe_log_prob"]

SELECT = ("logit", "score")


def gate_log_weights(
    x: Tensor,
    beta0: Tensor,
    beta1: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    activation: Activation = None,
    top_k: int | None = None,
    select: str = "logit",
) -> Tensor:
    """Logarithms (n, k) of the gate's weights; -inf for experts that are not selected."""
    scores = activation_of(activation)(x @ beta1.mT)
    logits = (scores + beta0) / temperature
    if top_k is not None and top_k < beta0.shape[0]:
        ranked = logits if select == "logit" else scores
        # a stable sort puts the lowest index first among equal scores
        order = torch.argsort(ranked, dim=-1, descending=True, stable=True)
        selected = torch.zeros_like(logits).scatter(-1, order[..., :top_k], 1.0)
        logits = torch.where(selected > 0, logits, float("-inf"))
    return torch.log_softmax(logits, -1)


def expert_log_densities(x: Tensor, y: Tensor, a: Tensor, b: Tensor, var: Tensor) -> Tensor:
    """(n, k) log N(y; a_i·x + b_i, var_i)."""
    residual = y[..., None] - (x @ a.mT + b)
    return -0.5 * (residual * residual / var + torch.log(2 * math.pi * var))


def _samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)

    def call(n: int, k: int, d: int) -> tuple[Tensor, ...]:
        return draw(n, d), draw(n), draw(k), draw(k, d), draw(k, d), draw(k), draw(k).abs() + 0.5

    yield call(4, 3, 2), {}
    yield call(5, 3, 1), {"top_k": 2}
    yield call(5, 4, 2), {"top_k": 1, "select": "score"}
    yield call(6, 2, 3), {"activation": "tanh", "temperature": 0.5}
    yield call(3, 1, 1), {}


def _bad_inputs() -> Iterator[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    x, y, k = torch.ones(4, 2), torch.ones(4), torch.ones(3)
    good = (x, y, k, torch.ones(3, 2), torch.ones(3, 2), k, k)
    yield (torch.ones(4), *good[1:]), {}, ArgumentValueError, "X"
    yield (x, torch.ones(5), *good[2:]), {}, ArgumentValueError, "y"
    yield (x, y, torch.ones(3, 1), *good[3:]), {}, ArgumentValueError, "beta0"
    yield (x, y, k, torch.ones(3, 1), *good[4:]), {}, ArgumentValueError, "beta1"
    yield (*good[:4], torch.ones(2, 2), k, k), {}, ArgumentValueError, "a"
    yield (*good[:5], torch.ones(2), k), {}, ArgumentValueError, "b"
    yield (*good[:6], torch.ones(1)), {}, ArgumentValueError, "var"
    for temperature in (0.0, -1.0, float("nan")):
        yield good, {"temperature": temperature}, ArgumentValueError, "temperature"
    for top_k in (0, 4):
        yield good, {"top_k": top_k}, ArgumentValueError, "top_k"
    yield good, {"activation": "step"}, ArgumentValueError, "activation"
    yield good, {"select": "bias"}, ArgumentValueError, "select"


@method(
    site="routing",
    family="custom",
    paper="topk-gating-moe",
    source="eq. 1 and the TopK function of section 2; the gates of arXiv 2401.13875, eq. 1 and 8",
    samples=_samples,
    bad_inputs=_bad_inputs,
    deviations=("select='logit' (the default) ranks β1·x + β0, the paper's formal definition ranks β1·x ('score')",),
)
def gaussian_moe_log_prob(
    X: Tensor,
    y: Tensor,
    beta0: Tensor,
    beta1: Tensor,
    a: Tensor,
    b: Tensor,
    var: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    activation: Activation = None,
    top_k: int | None = None,
    select: str = "logit",
) -> Tensor:
    """Log-density ``log p(y|x) = log Σ_i w_i(x) N(y; a_i·x + b_i, var_i)`` of a gated mixture of linear experts.

    ``w = softmax((σ(β1_i·x) + β0_i) / temperature)`` over the ``top_k`` experts with the largest logits; the others
    have weight exactly 0. Ties go to the lowest index.

    Args:
        X: (n, d) inputs.
        y: (n,) responses.
        beta0: (k,) gate biases; they stand outside the activation.
        beta1: (k, d) gate slopes.
        a: (k, d) slopes of the experts' means.
        b: (k,) intercepts of the experts' means.
        var: (k,) variances, in the square of y's unit; where one is not positive the result is NaN.
        temperature: divides the logits, a positive number or a 0-d tensor (to be differentiated).
        activation: σ: ``"sigmoid"``, ``"tanh"``, ``"gelu"``, ``"silu"``, ``"softplus"``, ``"sin"``, ``"relu"``,
            ``"leaky_relu"``, ``"abs"``, ``"identity"``, an elementwise callable, or None for the identity.
        top_k: number of experts that the gate selects, 1 to k; None selects all.
        select: rank experts by ``"logit"`` β1·x + β0 (what layers do) or by ``"score"`` β1·x (the paper's definition).

    Returns:
        (n,) log-densities, in nats, in the dtype of ``X``; 16-bit inputs are computed in float32.

    Raises:
        ArgumentTypeError: wrong types or dtypes.
        ArgumentValueError: shapes, devices or numbers that do not fit.

    Example:
        >>> import torch
        >>> one = torch.ones(1)
        >>> gaussian_moe_log_prob(one[:, None], one, 0 * one, one[:, None], one[:, None], 0 * one, one).exp()
        tensor([0.3989])

    Paper: Statistical Perspective of Top-K Sparse Softmax Gating Mixture of Experts, arXiv 2309.13850, eq. 1.
    """
    tensors = {"X": X, "y": y, "beta0": beta0, "beta1": beta1, "a": a, "b": b, "var": var}
    _check(tensors, temperature, top_k, select)
    wide = accumulation_dtype(X.dtype)
    x, y_wide, beta0, beta1, a, b, var = (tensor.to(wide) for tensor in tensors.values())
    with without_autocast(X):
        gate = gate_log_weights(
            x, beta0, beta1, temperature=temperature, activation=activation, top_k=top_k, select=select
        )
        return torch.logsumexp(gate + expert_log_densities(x, y_wide, a, b, var), -1).to(X.dtype)


def _check(tensors: dict[str, Any], temperature: Any, top_k: Any, select: Any) -> None:
    for name, tensor in tensors.items():
        check_float_tensor(name, tensor)
    check_same_device(**tensors)
    x, beta0 = tensors["X"], tensors["beta0"]
    if x.ndim != 2:
        raise ArgumentValueError(f"X must have shape (n, d), got {tuple(x.shape)}")
    if beta0.ndim != 1 or beta0.shape[0] == 0:
        raise ArgumentValueError(f"beta0 must have shape (k,) with k at least 1, got {tuple(beta0.shape)}")
    (n, d), k = x.shape, beta0.shape[0]
    shapes = {"y": (n,), "beta1": (k, d), "a": (k, d), "b": (k,), "var": (k,)}
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise ArgumentValueError(f"{name} must have shape {shape} here, got {tuple(tensors[name].shape)}")
    check_gate_options(k, temperature, top_k, select)


def check_gate_options(k: int, temperature: Any, top_k: Any, select: Any) -> None:
    """Raise unless temperature, top_k and select are allowed for ``k`` experts."""
    if isinstance(temperature, Tensor):
        check_float_tensor("temperature", temperature)
        if temperature.ndim:
            raise ArgumentValueError(f"temperature must be a number or a 0-d tensor, got {tuple(temperature.shape)}")
    else:
        check_number("temperature", temperature, low=0.0, low_open=True, high_open=True)
    if top_k is not None:
        if isinstance(top_k, bool) or not isinstance(top_k, int):
            bad_type("top_k", top_k, "an int or None")
        if not 1 <= top_k <= k:
            raise ArgumentValueError(f"top_k must be between 1 and the number of experts ({k}), got {top_k}")
    check_choice("select", select, SELECT)
