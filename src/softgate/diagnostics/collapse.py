"""Softmax Collapse and naive loss minimisation: is cross-entropy still telling the network anything?"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from softgate._checks import check_dim, check_float_tensor, check_number
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type, bad_value, check_choice
from softgate.registry import method

__all__ = ["CollapseMonitor", "CollapseWarning", "nlm_alignment", "softmax_collapse"]

NORMALIZERS = ("softmax", "stablemax")


class CollapseWarning(UserWarning):
    """The loss has stopped telling rows apart from perfectly fitted ones."""


def _logits(dtype: torch.dtype, generator: torch.Generator) -> Iterable[tuple[tuple[Any, ...], dict[str, Any]]]:
    for normalizer in NORMALIZERS:
        yield (30 * torch.randn(6, 5, dtype=dtype, generator=generator),), {"normalizer": normalizer}


def _bad_logits() -> Iterable[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    x = torch.zeros(2, 3)
    wrong: Any
    for wrong in (None, 1.0, [1.0], "x", x.long(), x.bool(), x.to(torch.complex64), x.to_sparse()):
        yield (wrong,), {}, TypeError, "logits"
    for shape in ((), (2, 0), (0,)):
        yield (torch.zeros(shape),), {}, ValueError, "logits"
    for wrong in (torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn, "float32", float):
        yield (x,), {"dtype": wrong}, TypeError, "dtype"
    for wrong in (2, -3, 10**6):
        yield (x,), {"dim": wrong}, ValueError, "dim"
    for wrong in (None, 1.0, "1", (0,)):
        yield (x,), {"dim": wrong}, TypeError, "dim"
    yield (x,), {"normalizer": "sigmoid"}, ValueError, "normalizer"
    yield (x,), {"normalizer": None}, TypeError, "normalizer"


@method(
    site="diagnostics",
    family="custom",
    paper="stablemax",
    source="sec. 3, eq. 4: sum_j exp(z_j - max z) == 1 in the arithmetic of the loss",
    samples=_logits,
    bad_inputs=_bad_logits,
    output_range=(0.0, 1.0),
)
@torch.no_grad()
def softmax_collapse(
    logits: Tensor, dtype: torch.dtype | None = None, *, dim: int = -1, normalizer: str = "softmax"
) -> Tensor:
    r"""Share of rows in which the largest logit has absorbed all others: Softmax Collapse.

    A row has collapsed when :math:`\sum_j e^{z_j - \max z} = 1` exactly in the arithmetic of the loss: the loss of that
    class and its gradient are then exactly 0. It happens at a margin of about 17 in float32, 7.6 in float16 and 5.5 in
    bfloat16. Under StableMax the condition is :math:`\sum_j s(z_j) = s(\max z)`.

    Args:
        logits: scores as they enter the loss, real floating point, classes along ``dim``.
        dtype: floating-point dtype in which the loss is computed; that of ``logits`` if None. Passing logits that were
            upcast hides a collapse.
        dim: axis of the classes.
        normalizer: ``"softmax"`` or ``"stablemax"``.

    Returns:
        0-d float32 tensor in ``[0, 1]``, without gradient; a row with NaN or ``+inf`` counts as not collapsed, no rows
        give 0.

    Raises:
        ArgumentTypeError: ``logits`` or ``dtype`` is not real floating point.
        ArgumentValueError: ``dim`` or ``normalizer`` is not allowed, or there are no classes.

    Example:
        >>> softmax_collapse(torch.tensor([[16.0, 0.0], [17.0, 0.0]]))
        tensor(0.5000)

    Source: Prieto et al., Grokking at the Edge of Numerical Stability, arXiv 2501.04697, sec. 3, eq. 4.
    """
    check_float_tensor("logits", logits)
    axis = check_dim(dim, logits.ndim)
    check_choice("normalizer", normalizer, NORMALIZERS)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize > 1):
        raise ArgumentTypeError(f"dtype must be a real floating-point dtype or None, got {dtype!r}")
    if logits.ndim == 0 or logits.shape[axis] == 0:
        raise ArgumentValueError(f"logits must have a class along dim {dim}, got shape {tuple(logits.shape)}")
    if logits.numel() == 0:
        return torch.zeros((), device=logits.device)
    scores = logits if dtype is None else logits.to(dtype)
    if normalizer == "softmax":
        terms = (scores - scores.amax(axis, keepdim=True)).exp()
        top = torch.ones((), dtype=terms.dtype, device=terms.device)
    else:
        terms = torch.where(scores >= 0, scores + 1, 1 / (1 - scores.clamp(max=0)))
        top = terms.amax(axis)
    collapsed = (terms.sum(axis) == top) & ~torch.isinf(scores.amax(axis))
    return collapsed.float().mean()


def _weights(dtype: torch.dtype, generator: torch.Generator) -> Iterable[tuple[tuple[Any, ...], dict[str, Any]]]:
    weights, gradients = (
        [torch.randn(shape, dtype=dtype, generator=generator) for shape in ((4, 3), (5,))] for _ in range(2)
    )
    yield (weights, gradients), {}


def _bad_weights() -> Iterable[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    w = torch.ones(3)
    for wrong in (3, None, 1.0, w.dtype, object(), [1.0], [None], [w, 1.0], ["w"], "w", [[w]]):
        yield (wrong,), {}, TypeError, "model"
    for empty in ([w], [], [torch.ones(3, requires_grad=True)], nn.Linear(2, 2), nn.ReLU()):
        yield (empty,), {}, ValueError, "model"
    for wrong in (3, 1.0, "w", [1.0], [None], [w.to_sparse()], object()):
        yield ([w], wrong), {}, TypeError, "gradients"
    for wrong in ([], [w, w], [torch.ones(2)], [torch.ones(3, 1)]):
        yield ([w], wrong), {}, ValueError, "gradients"


@method(
    site="diagnostics",
    family="custom",
    paper="stablemax",
    source="sec. 5: cosine between the negative gradient and the weights, the direction of naive loss minimisation",
    samples=_weights,
    bad_inputs=_bad_weights,
    output_range=(-1.0, 1.0),
)
@torch.no_grad()
def nlm_alignment(model: nn.Module | Iterable[Tensor], gradients: Iterable[Tensor] | None = None) -> Tensor:
    r"""Cosine between the update direction and the weights: 1 means that training only scales the logits up.

    .. math:: \cos = \frac{\langle -\nabla_\theta L, \theta\rangle}{\lVert\nabla_\theta L\rVert \lVert\theta\rVert}

    For a homogeneous network (ReLU without biases) moving along the weights multiplies the logits and changes no
    prediction. Call it after ``backward()`` and before the gradients are projected or cleared.

    Args:
        model: a module or an iterable of parameters.
        gradients: one gradient per parameter; their ``.grad`` if None, parameters without one being left out.

    Returns:
        0-d float64 tensor in ``[-1, 1]``, taken over all parameters together; 0 if weights or gradients are zero.

    Raises:
        ArgumentTypeError: ``model`` or ``gradients`` holds something else, or a gradient is sparse.
        ArgumentValueError: no parameter has a gradient, or the shapes do not match.

    Example:
        >>> nlm_alignment([torch.tensor([3.0, 4.0])], [torch.tensor([-3.0, -4.0])])
        tensor(1., dtype=torch.float64)

    Source: Prieto et al., Grokking at the Edge of Numerical Stability, arXiv 2501.04697, sec. 5.
    """
    pairs = _pairs(model, gradients)
    terms = []
    for weight, gradient in pairs:
        wide = torch.complex128 if weight.is_complex() else torch.float64
        w, g = weight.detach().to(wide), gradient.detach().to(wide)
        terms.append(torch.stack([(w.conj() * g).sum().real, w.abs().square().sum(), g.abs().square().sum()]))
    dot, weights, slopes = torch.stack([t.to(terms[0].device) for t in terms]).sum(0).unbind()
    length = weights.sqrt() * slopes.sqrt()
    return torch.where(length == 0, 0.0, -dot / length).clamp(-1.0, 1.0)


def _pairs(model: Any, gradients: Any) -> list[tuple[Tensor, Tensor]]:
    parameters = _tensors("model", model.parameters() if isinstance(model, nn.Module) else model)
    if gradients is None:
        pairs = [(p, p.grad) for p in parameters if p.grad is not None]
        if not pairs:
            raise ArgumentValueError("model must have a parameter with a gradient, got none; call backward() before")
    else:
        given = _tensors("gradients", gradients)
        shapes = [tuple(p.shape) for p in parameters], [tuple(g.shape) for g in given]
        if shapes[0] != shapes[1] or not given:
            raise ArgumentValueError(f"gradients must have the shapes of the parameters {shapes[0]}, got {shapes[1]}")
        pairs = list(zip(parameters, given, strict=True))
    for _, gradient in pairs:
        if gradient.layout is not torch.strided:
            raise ArgumentTypeError(f"gradients must be dense, got layout {gradient.layout}")
    return pairs


def _tensors(name: str, values: Any) -> list[Tensor]:
    if isinstance(values, str | Tensor) or not isinstance(values, Iterable):
        bad_type(name, values, "a module or an iterable of tensors" if name == "model" else "an iterable of tensors")
    tensors = list(values)
    for value in tensors:
        if not isinstance(value, Tensor):
            bad_type(name, value, "an iterable of tensors")
    return tensors


class CollapseMonitor:
    """Watches the logits during training and warns once when more than a share of the rows has collapsed.

    Args:
        threshold: warn above this share of collapsed rows.
        every: look at every ``every``-th batch only; one look costs about a forward pass of softmax.
        dtype: dtype in which the loss is computed, that of the logits if None.
        normalizer: ``"softmax"`` or ``"stablemax"``.
        keep: number of shares kept in ``history``.

    Attributes:
        history: the latest ``(batch, share)`` pairs, batches counted from 0.

    Example:
        >>> monitor = CollapseMonitor(every=100)
        >>> model = nn.Linear(4, 3)
        >>> handle = monitor.watch(model)  # or call monitor(logits) in the training loop
        >>> _ = model(torch.randn(2, 4))
        >>> handle.remove()
    """

    def __init__(
        self,
        threshold: float = 0.01,
        *,
        every: int = 1,
        dtype: torch.dtype | None = None,
        normalizer: str = "softmax",
        keep: int = 1000,
    ) -> None:
        self.threshold = check_number("threshold", threshold, low=0.0, high=1.0)
        for name, value in (("every", every), ("keep", keep)):
            if isinstance(value, bool) or not isinstance(value, int):
                bad_type(name, value, "a positive int")
            if value < 1:
                bad_value(name, value, "a positive int")
        check_choice("normalizer", normalizer, NORMALIZERS)
        self.every, self.dtype, self.normalizer = every, dtype, normalizer
        self.history: deque[tuple[int, float]] = deque(maxlen=keep)
        self._batches = 0
        self._warned = False

    def __call__(self, logits: Tensor) -> float | None:
        """Look at one batch of logits, classes along the last axis.

        Returns:
            Share of collapsed rows, None if this batch was not due.
        """
        batch, self._batches = self._batches, self._batches + 1
        if batch % self.every:
            return None
        share = float(softmax_collapse(logits, self.dtype, normalizer=self.normalizer))
        self.history.append((batch, share))
        if share > self.threshold and not self._warned:
            self._warned = True
            warnings.warn(
                f"softmax collapse in {share:.1%} of the rows of batch {batch}: their loss and gradient round to 0 in "
                f"{self.dtype or logits.dtype}; consider softgate.losses.stablemax_cross_entropy, "
                "collapse_free_cross_entropy or softgate.optim.OrthoGrad",
                CollapseWarning,
                stacklevel=2,
            )
        return share

    def watch(self, module: nn.Module) -> RemovableHandle:
        """Look at every output of ``module`` in training mode; ``remove()`` the handle to stop."""

        def hook(module: nn.Module, _inputs: Any, output: Any) -> None:
            if module.training and isinstance(output, Tensor):
                self(output)

        return module.register_forward_hook(hook)
