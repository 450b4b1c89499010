"""Linear layer and loss in one: the logits of a large vocabulary are never held as a whole."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from softgate.dispatch import choose, transform_reason
from softgate.errors import StateError, bad_type, check_choice
from softgate.losses.fused_linear import backends, compiled, gram
from softgate.losses.fused_linear.autograd import DENSE_ENTRIES, ONCE
from softgate.losses.fused_linear.prepare import check_tensors
from softgate.losses.fused_linear.settings import BACKENDS, Phi, Settings
from softgate.registry import Kernel, method, record_of

__all__ = ["fused_linear_loss", "linear_cross_entropy", "selective_log_softmax_fused"]

Loss = Literal["ce", "comp_sum", "focal", "stablemax", "svm", "zloss"]
Backend = Literal["auto", "eager", "cpu", "triton", "reference"]


def _samples(dtype: torch.dtype, generator: torch.Generator) -> Iterable[tuple[tuple[Any, ...], dict[str, Any]]]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    labels = torch.tensor([[2, 0, -100], [4, 1, 3]])
    yield (draw(2, 3, 3), draw(5, 3), labels), {}
    yield (draw(6, 3), draw(5, 3), labels.flatten()), {"class_weight": draw(5).abs() + 0.5, "bias": draw(5)}
    yield (draw(2, 3, 3), draw(5, 3), labels), {"shift": 1, "temperature": 0.7}


def _bad_inputs() -> Iterable[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    x, w, y = torch.ones(3, 2), torch.ones(5, 2), torch.tensor([0, 4, 1])
    plain = {"loss": "zloss", "softcap": None, "z_penalty": 0.0, "label_smoothing": 0.0}
    yield (x.long(), w, y), {}, TypeError, "input"
    yield (x, torch.ones(5, 3), y), {}, ValueError, "weight"
    yield (x, w.double(), y), {}, TypeError, "weight"
    yield (x, w, y.float()), {}, TypeError, "target"
    yield (x, w, y[:2]), {}, ValueError, "target"
    yield (x, w, y + 1), {}, ValueError, "target"
    yield (x, w, y), {"bias": torch.ones(4)}, ValueError, "bias"
    yield (x, w, y), {"class_weight": torch.ones(4)}, ValueError, "class_weight"
    for name, value in (("tau", -1.0), ("temperature", 0.0), ("softcap", -1.0), ("label_smoothing", 1.5),
                        ("z_penalty", float("nan")), ("reduction", "average"), ("shift", -1), ("chunk", 0),
                        ("loss", "hinge"), ("backend", "numpy"), ("accum_dtype", torch.bfloat16)):  # fmt: skip
        yield (x, w, y), {name: value}, ValueError, name
    yield (x, w, y), {"loss": "svm", "label_smoothing": 0.1}, ValueError, "label_smoothing"
    yield (x, w, y), {**plain, "softcap": 1.0}, ValueError, "softcap"
    yield (x, w, y), {**plain, "return_lse": True}, ValueError, "return_lse"
    yield (x, w, y), {"loss": "stablemax", "grad_filter_eps": 1e-3}, ValueError, "grad_filter_eps"


@method(
    site="losses",
    family="custom",
    paper=None,
    source="loss(g(c tanh(z / c) / T)), z = x W^T + b: cross-entropy, comp-sum (arXiv 2304.07288), focal (1708.02002), "
    "StableMax (2501.04697), squared hinge (cnn-svm), Z-loss in its Gram form (1604.08859)",
    reference=backends.reference,
    kernels=(
        Kernel("triton", backends.run_triton, backends.triton_refuses),
        Kernel("cpu", backends.run_native, backends.native_refuses),
        Kernel("eager", backends.run_eager, backends.eager_refuses),
    ),
    variants={
        "default": {},
        "gce": {"loss": "comp_sum", "tau": 1.7, "softcap": 3.0},
        "rows": {"loss": "focal", "reduction": "none", "z_penalty": 0.1},
        "stablemax": {"loss": "stablemax", "label_smoothing": 0.1},
        "svm": {"loss": "svm", "reduction": "sum"},
        "zloss": {"loss": "zloss"},
    },
    samples=_samples,
    bad_inputs=_bad_inputs,
    deviations=(
        "no counted row gives loss 0 and gradient 0, where F.cross_entropy gives NaN",
        "16-bit operands give a float32 loss: it is summed there, and rounding it would only lose digits",
    ),
)
def fused_linear_loss(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    loss: Loss | Phi = "ce",
    tau: float = 1.0,
    gamma: float = 2.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    label_smoothing: float = 0.0,
    z_penalty: float = 0.0,
    class_weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    return_lse: bool = False,
    return_accuracy: bool = False,
    chunk: Literal["auto"] | int | None = None,
    accum_dtype: torch.dtype | None = None,
    grad_filter_eps: float | None = None,
    backend: Backend = "auto",
    shift: int = 0,
    process_group: Any = None,
) -> Any:
    r"""Loss of the logits ``x W^T + b`` without holding them: memory for a chunk of rows, exact gradients.

    .. math:: z = x W^\top + b, \qquad u = g(c \tanh(z / c) / T), \qquad \ell = \log p_y, \qquad L = \phi(\ell)

    The gradients are formed together with the loss, in three matrix products, and handed over in the backward pass; for
    ``reduction="none"`` they are computed there, from logits computed a second time.

    Args:
        input: features ``(..., d)``, real floating point.
        weight: one row per class, ``(V, d)``, in the dtype of ``input``.
        target: class indices ``(...)``.
        bias: ``(V,)`` or None; ``-inf`` removes a class.
        loss: ``"ce"`` cross-entropy; ``"comp_sum"`` the comp-sum loss of ``tau`` (``tau = 1 + q``: generalised
            cross-entropy, 2: mean absolute error); ``"focal"``; ``"stablemax"`` cross-entropy of StableMax
            probabilities; ``"svm"`` squared hinge of every class against the rest, summed over them; ``"zloss"``; or
            a function of the log-probabilities ``(n,)`` that returns the row losses and ``w = -d loss / d log p``.
        tau: member of the comp-sum family, 0 or larger.
        gamma: exponent of the focal loss ``-(1 - p)^gamma log p``.
        temperature: T, positive.
        softcap: c, positive, applied before the temperature; None for none.
        label_smoothing: share of the loss, in ``[0, 1]``, that is the mean over all classes.
        z_penalty: factor of the squared log-sum-exp that is added to each row.
        class_weight: ``(V,)``, how much rows of each class count; gets no gradient.
        ignore_index: rows with this target contribute neither loss nor gradient, whatever they hold.
        reduction: ``"mean"`` over the (weighted) rows that count, ``"sum"`` or ``"none"``.
        return_lse: also return the log-sum-exp of the scores, ``(...)``, without gradient; 0 for ignored rows.
        return_accuracy: also return the share of counted rows whose target has the largest logit, alone.
        chunk: rows per chunk; None or ``"auto"``: about d / 3, their logits then need a third of the memory of W (at
            least 64, up to 128 while they need 4 MiB; on a GPU 1024 or more, up to a GiB). More rows are faster.
        accum_dtype: dtype of logits and sums if wider than float32, in which 16-bit and float32 operands are summed.
        grad_filter_eps: skip blocks of 4096 classes whose probabilities are all below it in a chunk (``"ce"``
            only); the gradient is then no longer exact.
        backend: ``"auto"``, ``"eager"`` (torch operations on chunks), ``"cpu"`` (compiled), ``"triton"``, or
            ``"reference"``, which holds all logits and supports every transform.
        shift: a row is scored on the label so many positions on (last axis of ``target``), the last rows not at all.
        process_group: processes that hold neighbouring classes each, in the order of their ranks: ``weight`` and
            ``bias`` are this process's part, everything else is the same in all.

    Returns:
        The loss, 0-d or of the shape of ``target``, in nats and in float32 (float64 for float64); followed by the
        log-sum-exp and the accuracy where asked for.

    Raises:
        ArgumentTypeError: a tensor has the wrong dtype or layout, or an option the wrong type.
        ArgumentValueError: shapes do not match, a class index is out of range, or an option is not allowed.
        StateError: the backend cannot run here, or the call is inside a transform that only whole logits support.

    Example:
        >>> x, w = torch.eye(2, 3), torch.eye(4, 3)
        >>> fused_linear_loss(x, w, torch.tensor([0, 1]))
        tensor(0.7437)

    Paper: none of its own; comp-sum losses: arXiv 2304.07288, StableMax: 2501.04697, Z-loss: 1604.08859.
    """
    settings = Settings(loss, tau, gamma, temperature, softcap, label_smoothing, z_penalty, ignore_index, reduction,
                        shift, chunk, accum_dtype, grad_filter_eps)  # fmt: skip
    check_choice("backend", backend, BACKENDS)
    if loss == "zloss":
        gram.check(return_lse, return_accuracy, process_group)
    for name, value in (("return_lse", return_lse), ("return_accuracy", return_accuracy)):
        if not isinstance(value, bool):
            bad_type(name, value, "a bool")
    check_tensors(input, weight, target, bias, class_weight, settings, process_group is not None)
    options = {
        **vars(settings),
        "bias": bias,
        "class_weight": class_weight,
        "return_lse": return_lse,
        "return_accuracy": return_accuracy,
        "backend": backend,
        "process_group": process_group,
    }
    return _run(input, weight, target, options)


def _run(input: Tensor, weight: Tensor, target: Tensor, options: dict[str, Any]) -> Any:
    backend, dense = options["backend"], options["backend"] == "reference"
    if options["loss"] == "zloss" and not dense:
        return backends.run_gram(input, weight, target, **options)
    if torch.compiler.is_compiling() and not dense:
        return compiled.run(backends.Call.of(input, weight, target, **options), backend)
    choice = choose(record_of(fused_linear_loss), input, weight, target, **options)
    if backend not in ("auto", choice.chosen):
        raise StateError(f"backend={backend!r} cannot run this call: {choice.refused[backend]}")
    if choice.chosen == "reference" and not dense:
        _check_dense(input, weight, options)
    return choice.run(input, weight, target, **options)


def _check_dense(input: Tensor, weight: Tensor, options: dict[str, Any]) -> None:
    """Inside a transform there is only the reference: refuse what it would have to hold for a large vocabulary."""
    if options["process_group"] is not None:
        raise StateError("process_group needs a chunked backend, which cannot run here: inside a transform, or "
                         "turned off by SOFTGATE_KERNELS")  # fmt: skip
    reason = transform_reason(input, weight)
    rows = input.numel() // max(input.shape[-1], 1)
    if reason is not None and not input.is_meta and rows * weight.shape[0] > DENSE_ENTRIES:
        raise StateError(f"{ONCE.format(what='support', rows=rows, classes=weight.shape[0])} ({reason})")


def linear_cross_entropy(input: Tensor, weight: Tensor, target: Tensor, **options: Any) -> Any:
    """:func:`fused_linear_loss` under the name of ``torch.nn.functional.linear_cross_entropy``.

    Args:
        input: features ``(..., d)``.
        weight: ``(V, d)``.
        target: class indices ``(...)``.
        **options: as of :func:`fused_linear_loss`.

    Returns:
        What :func:`fused_linear_loss` returns.

    Example:
        >>> linear_cross_entropy(torch.eye(2, 3), torch.eye(4, 3), torch.tensor([0, 1]))
        tensor(0.7437)
    """
    return fused_linear_loss(input, weight, target, **options)


def selective_log_softmax_fused(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    ignore_index: int = -100,
    chunk: Literal["auto"] | int | None = None,
    backend: Backend = "auto",
    process_group: Any = None,
) -> Tensor:
    """Log-probability of each target token, as policy objectives need it, without holding the logits.

    Args:
        input: features ``(..., d)``, real floating point.
        weight: ``(V, d)``, in the dtype of ``input``.
        target: class indices ``(...)``.
        bias: ``(V,)`` or None.
        temperature: divides the logits, positive.
        softcap: bound of the logits before the temperature, or None.
        ignore_index: tokens with this target get 0 and no gradient.
        chunk: rows per chunk, as in :func:`fused_linear_loss`.
        backend: as in :func:`fused_linear_loss`.
        process_group: as in :func:`fused_linear_loss`.

    Returns:
        ``log p`` of the shape of ``target``, at most 0, in nats, in float32 (float64 for float64), differentiable once
        with any upstream gradient.

    Raises:
        ArgumentTypeError: a tensor has the wrong dtype or layout, or an option the wrong type.
        ArgumentValueError: shapes do not match, a class index is out of range, or an option is not allowed.

    Example:
        >>> selective_log_softmax_fused(torch.eye(2, 3), torch.eye(4, 3), torch.tensor([0, 1]))
        tensor([-0.7437, -0.7437])
    """
    loss: Tensor = fused_linear_loss(
        input,
        weight,
        target,
        bias=bias,
        temperature=temperature,
        softcap=softcap,
        ignore_index=ignore_index,
        reduction="none",
        chunk=chunk,
        backend=backend,
        process_group=process_group,
    )
    return -loss
