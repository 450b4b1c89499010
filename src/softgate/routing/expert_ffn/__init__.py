"""The feed-forward networks of a mixture of experts, for tokens whose experts have been chosen."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from softgate._checks import check_float_tensor, check_same_device
from softgate._math import masks
from softgate.dispatch import call, transform_reason
from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError, bad_type, bad_value, check_choice
from softgate.registry import Kernel, method, record_of
from softgate.routing.expert_ffn import op
from softgate.routing.expert_ffn.activations import NAMES, is_gated
from softgate.routing.expert_ffn.plan import check_range
from softgate.routing.expert_ffn.reference import moe_ffn_reference

__all__ = ["moe_ffn"]

_CHOICES = ("auto", "loop", *op.BACKENDS)


def _samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Inputs for the conformance suite: empty experts, no expert, one expert for all, no tokens, odd widths."""

    def draw(*shape: int) -> Tensor:
        return (torch.randn(shape, dtype=torch.float64, generator=generator) / 2).to(dtype)

    def case(
        tokens: tuple[int, ...], width: int, hidden: int, experts: int, k: int, gated: bool = True
    ) -> list[Tensor]:
        choice = torch.rand(*tokens, experts, generator=generator).argsort(-1)[..., :k]
        rows = 2 * hidden if gated else hidden
        weights = torch.rand(*tokens, k, dtype=torch.float64, generator=generator).to(dtype)
        return [draw(*tokens, width), draw(experts, rows, width), draw(experts, width, hidden), choice, weights]

    yield tuple(case((4,), 3, 2, 3, 2)), {}
    yield tuple(case((2, 9), 8, 4, 6, 2)), {"activation": "geglu", "recompute": True}
    yield (*case((11,), 5, 7, 4, 1, gated=False), draw(4, 7), draw(4, 5)), {"activation": "relu2"}
    x, gate_up, down, choice, weights = case((13,), 8, 8, 5, 3)
    choice[::3, 1] = 5  # no expert
    choice[2] = 5
    yield (x, gate_up, down, choice, weights, draw(5, 16)), {}
    yield (x, gate_up, down, torch.full_like(choice, 2)[:, :1], weights[:, :1]), {}
    yield tuple(case((0,), 3, 2, 3, 2)), {}
    yield tuple(case((), 3, 2, 3, 2)), {}


def _bad_inputs() -> Iterator[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    x, up, down = torch.ones(4, 6), torch.ones(3, 10, 6), torch.ones(3, 6, 5)
    index, weight = torch.zeros(4, 2, dtype=torch.int64), torch.ones(4, 2)
    yield (x, up, down, index - 1, weight), {}, ArgumentValueError, "indices"
    yield (x, up, down, index + 4, weight), {}, ArgumentValueError, "indices"
    yield (x, up, down, index.float(), weight), {}, ArgumentTypeError, "indices"
    yield (x, up, down, index.int(), weight), {}, ArgumentTypeError, "indices"
    yield (x, up, down, [[0]], weight), {}, ArgumentTypeError, "indices"
    yield (x, up, down, index[:3], weight), {}, ArgumentValueError, "indices"
    yield (x, up, down, index, weight[:, :1]), {}, ArgumentValueError, "weights"
    yield (x[:, :5], up, down, index, weight), {}, ArgumentValueError, "gate_up"
    yield (x, up[:, :9], down, index, weight), {}, ArgumentValueError, "gate_up"
    yield (x, up[0], down, index, weight), {}, ArgumentValueError, "gate_up"
    yield (x, up, down[:2], index, weight), {}, ArgumentValueError, "down"
    yield (x, up, down[:, :5], index, weight), {}, ArgumentValueError, "down"
    yield (x, up, down, index, weight), {"activation": "relu"}, ArgumentValueError, "gate_up"
    yield (x, up.double(), down, index, weight), {}, ArgumentTypeError, "gate_up"
    yield (x, up, down, index, weight, torch.ones(3, 9)), {}, ArgumentValueError, "gate_up_bias"
    yield (x, up, down, index, weight, None, torch.ones(6)), {}, ArgumentValueError, "down_bias"
    double = (x.double(), up.double(), down.double(), index, weight)
    yield double, {"backend": "grouped"}, StateError, "grouped"


def _refuses(
    name: str, x: Tensor, gate_up: Tensor, down: Tensor, indices: Tensor, *rest: Any, **options: Any
) -> str | None:
    wanted = options.get("backend", "auto")
    if wanted not in ("auto", name):
        return f"backend={wanted!r} was asked for"
    train = torch.is_grad_enabled() and any(
        isinstance(t, Tensor) and t.requires_grad for t in (x, gate_up, down, *rest)
    )
    x, gate_up, down = masks.cast_for_autocast(x, gate_up, down)
    return op.refuses(name, x, gate_up, down, indices.numel(), train, forced=wanted == name)


def _run(name: str, *args: Any, **options: Any) -> Tensor:
    x, gate_up, down, indices, weights, *biases = args
    x, gate_up, down = masks.cast_for_autocast(x, gate_up, down)
    biases = [bias if bias is None else bias.to(x.dtype) for bias in biases]
    with masks.without_autocast(x):
        return op.run(x, gate_up, down, indices, weights, *biases, **{**options, "backend": name})


def _reference(*args: Any, activation: str = "swiglu", **_: Any) -> Tensor:
    return moe_ffn_reference(*args, activation=activation)


@method(
    site="routing",
    family="custom",
    source="sparse mixture of feed-forward experts, y_t = sum_i w_ti FFN_i(x_t) over the chosen experts",
    reference=_reference,
    kernels=tuple(Kernel(name, partial(_run, name), partial(_refuses, name)) for name in op.BACKENDS),
    samples=_samples,
    bad_inputs=_bad_inputs,
)
def moe_ffn(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    indices: Tensor,
    weights: Tensor,
    gate_up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    *,
    activation: str = "swiglu",
    recompute: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Sum of the chosen experts' outputs: ``y_t = Σ_k w_tk · W₂ act(W₁ x_t)``, W₁ and W₂ those of ``indices[t, k]``.

    No token is dropped and nothing is padded. The sum runs in the order of k, in float32 for 16-bit tensors, and is the
    same to the bit at every call. Matrices are laid out as in transformers.

    Args:
        x: (…, D).
        gate_up: (E, 2F, D), rows [gate; up], for gated activations; (E, F, D) for the others.
        down: (E, D, F).
        indices: (…, K) int64, the experts of each token, in [0, E]; E stands for none.
        weights: (…, K), float32 or the dtype of ``x``.
        gate_up_bias: (E, 2F) or (E, F), or None.
        down_bias: (E, D) or None.
        activation: ``"swiglu"``, ``"geglu"``, ``"geglu_tanh"``, ``"reglu"`` (gated: f(gate) ⊙ up); ``"silu"``,
            ``"gelu"``, ``"gelu_tanh"``, ``"relu"``, ``"relu2"`` (the square of relu).
        recompute: keep nothing but the inputs for backward, which then computes W₁x again.
        backend: ``"sorted"`` (one product per expert over rows sorted by expert), ``"grouped"``
            (torch.nn.functional.grouped_mm), ``"bmm"`` (a copy of the matrices per assignment, for a few tokens),
            ``"loop"`` (the plain-torch reference: every expert for every token), or ``"auto"``.

    Returns:
        (…, D) in the dtype of ``x`` (autocast's inside autocast). A token without an expert gives 0. Experts without a
        token get a gradient of exactly 0. NaN in a token stays in that token.

    Raises:
        ArgumentTypeError: wrong types or dtypes.
        ArgumentValueError: shapes that do not fit, indices out of range.
        StateError: ``backend`` cannot run this call.

    Example:
        >>> import torch
        >>> x, up, down = torch.ones(2, 1), torch.tensor([[[1.0]], [[3.0]]]), torch.ones(2, 1, 1)
        >>> moe_ffn(x, up, down, torch.tensor([[0], [1]]), torch.ones(2, 1), activation="relu").flatten()
        tensor([1., 3.])

    Paper: Outrageously Large Neural Networks, arXiv 1701.06538, eq. (1).
    """
    _check(x, gate_up, down, indices, weights, gate_up_bias, down_bias, activation)
    check_choice("backend", backend, _CHOICES)
    if not isinstance(recompute, bool):
        bad_type("recompute", recompute, "a bool")
    arguments = (x, gate_up, down, indices, weights, gate_up_bias, down_bias)
    options: dict[str, Any] = {"activation": activation, "recompute": recompute, "backend": backend}
    if backend == "loop":
        if transform_reason(indices) is None:
            check_range(indices, gate_up.shape[0])
        return _reference(*arguments, **options)
    if torch.compiler.is_compiling():  # one operator in the graph; it chooses when it runs
        return _run(backend, *arguments, **options)
    if backend != "auto":
        reason = _refuses(backend, *arguments, **options)
        if reason is not None:
            raise StateError(f"backend={backend!r} cannot run this call: {reason}")
    return call(record_of(moe_ffn), *arguments, **options)


def _check(x: Any, gate_up: Any, down: Any, indices: Any, weights: Any, up_bias: Any, down_bias: Any, act: Any) -> None:
    check_choice("activation", act, NAMES)
    named = {"x": x, "gate_up": gate_up, "down": down, "weights": weights}
    biases = {"gate_up_bias": up_bias, "down_bias": down_bias}
    named |= {name: bias for name, bias in biases.items() if bias is not None}
    for name, tensor in named.items():
        check_float_tensor(name, tensor)
    if not isinstance(indices, Tensor) or indices.dtype is not torch.int64:
        raise ArgumentTypeError(
            f"indices must be an int64 tensor, got {getattr(indices, 'dtype', type(indices).__name__)}"
        )
    check_same_device(indices=indices, **named)
    if masks.autocast_dtype(x) is None:
        for name in ("gate_up", "down"):
            if named[name].dtype is not x.dtype:
                raise ArgumentTypeError(f"{name} must have the dtype of x, {x.dtype}, got {named[name].dtype}")
    if x.ndim < 1 or indices.ndim != x.ndim or indices.shape[:-1] != x.shape[:-1]:
        bad_value("indices", tuple(indices.shape), f"of shape (…, K) for x of shape {tuple(x.shape)}")
    if weights.shape != indices.shape:
        bad_value("weights", tuple(weights.shape), f"of the shape of indices, {tuple(indices.shape)}")
    width = x.shape[-1]
    if gate_up.ndim != 3 or gate_up.shape[2] != width or (is_gated(act) and gate_up.shape[1] % 2):
        rows = "2F" if is_gated(act) else "F"
        bad_value("gate_up", tuple(gate_up.shape), f"of shape (E, {rows}, {width}) for activation={act!r}")
    experts, hidden = gate_up.shape[0], gate_up.shape[1]
    if down.ndim != 3 or down.shape[:2] != (experts, width):
        bad_value("down", tuple(down.shape), f"of shape ({experts}, {width}, F)")
    if down.shape[2] * (2 if is_gated(act) else 1) != hidden:
        bad_value(
            "gate_up",
            tuple(gate_up.shape),
            f"of {'2F' if is_gated(act) else 'F'} rows, where down has F={down.shape[2]}",
        )
    for name, bias, size in (("gate_up_bias", up_bias, hidden), ("down_bias", down_bias, width)):
        if bias is not None and bias.shape != (experts, size):
            bad_value(name, tuple(bias.shape), f"of shape ({experts}, {size})")
