"""Under the names and signatures of Liger's fused linear cross-entropy: one changed import, or one call, to switch."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from softgate.errors import ArgumentValueError, StateError
from softgate.losses import fused_linear_loss
from softgate.swapping.undo import Undo

__all__ = ["LigerFusedLinearCrossEntropyLoss", "liger_fused_linear_cross_entropy", "use_in_liger"]


@dataclass
class CrossEntropyOutput:
    """What is returned beside the loss where Liger, whose class is taken otherwise, is not installed."""

    loss: Tensor
    z_loss: Tensor | None = None
    token_accuracy: Tensor | None = None
    predicted_tokens: Tensor | None = None


def liger_fused_linear_cross_entropy(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    ce_weight: Tensor | None = None,
    ignore_index: int = -100,
    lse_square_scale: float = 0.0,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    softcap: float | None = None,
    return_z_loss: bool = False,
    accum_dtype: torch.dtype | None = None,
    use_token_scaling: bool = False,
    return_token_accuracy: bool = False,
    return_predicted_tokens: bool = False,
    chunk_mem_const: int = 1,
    **options: Any,
) -> Any:
    """:func:`softgate.losses.fused_linear_loss` with the arguments of Liger's function of this name.

    Gradients are exact for ``reduction="none"`` too, sums are float32 whatever ``accum_dtype``, and it runs on the CPU.

    Args:
        input: features ``(N, d)``.
        weight: one row per class, ``(V, d)``.
        target: class indices ``(N,)``.
        bias: ``(V,)`` or None.
        ce_weight: how much rows of each class count, ``(V,)``; not together with ``lse_square_scale``, which Liger
            leaves unweighted.
        ignore_index: rows with this target do not count.
        lse_square_scale: ``z_penalty``, factor of the squared log-sum-exp.
        label_smoothing: in ``[0, 1]``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        softcap: bound of the logits or None.
        return_z_loss: also return the part of the loss that ``lse_square_scale`` adds, without gradient.
        accum_dtype: ``torch.float64`` for wider sums; anything narrower is ignored.
        use_token_scaling: weight each row by the probability of its target, which counts as a constant.
        return_token_accuracy: also return the share of rows whose target is predicted, or for ``"none"`` which.
        return_predicted_tokens: also return the class with the largest logit, -1 in ignored rows; costs one more
            product.
        chunk_mem_const: from 2 on, how many times the memory of ``input`` a chunk of logits may take; 1 leaves the
            choice open.
        **options: of :func:`softgate.losses.fused_linear_loss`, which Liger does not have: ``loss``, ``tau``,
            ``gamma``, ``temperature``, ``backend``.

    Returns:
        The loss, or Liger's ``CrossEntropyOutput`` where more was asked for.

    Raises:
        ArgumentTypeError: a tensor or option has the wrong type.
        ArgumentValueError: shapes do not match, or options are not allowed together.

    Example:
        >>> liger_fused_linear_cross_entropy(torch.eye(2, 3), torch.eye(4, 3), torch.tensor([0, 1]))
        tensor(0.7437)

    Paper: none.
    """
    if ce_weight is not None and lse_square_scale:
        raise ArgumentValueError("ce_weight must be None with lse_square_scale: Liger leaves that part unweighted")
    if use_token_scaling:
        if "loss" in options or label_smoothing or lse_square_scale:
            raise ArgumentValueError("use_token_scaling needs plain cross-entropy: no loss, label_smoothing or "
                                     "lse_square_scale")  # fmt: skip
        options["loss"] = _scaled_by_probability
    if chunk_mem_const > 1:
        options["chunk"] = max(1, chunk_mem_const * input.numel() // weight.shape[0])
    value = fused_linear_loss(
        input, weight, target, bias=bias, class_weight=ce_weight, ignore_index=ignore_index, softcap=softcap,
        label_smoothing=label_smoothing, z_penalty=lse_square_scale, reduction=reduction, return_lse=return_z_loss,
        return_accuracy=return_token_accuracy, accum_dtype=torch.float64 if accum_dtype is torch.float64 else None,
        **options,
    )  # fmt: skip
    loss, *extras = value if isinstance(value, tuple) else (value,)
    if not (return_z_loss or return_token_accuracy or return_predicted_tokens):
        return loss
    counted = target != ignore_index
    z_loss = _z_loss(extras.pop(0), counted, lse_square_scale, reduction) if return_z_loss else None
    accuracy = extras.pop(0) if return_token_accuracy else None
    predicted = None
    of_rows = return_token_accuracy and reduction == "none"
    if return_predicted_tokens or of_rows:
        predicted = _predicted(input.detach(), weight.detach(), bias, counted)
        accuracy = torch.eq(predicted, target).float() * counted if of_rows else accuracy
    return _output()(loss, z_loss, accuracy, predicted if return_predicted_tokens else None)


def _scaled_by_probability(log_p: Tensor) -> tuple[Tensor, Tensor]:
    """``-p log p`` with the gradient of ``-log p`` times p."""
    p = log_p.exp()
    return torch.where(p == 0.0, 0.0, -p * log_p), p


def _z_loss(lse: Tensor, counted: Tensor, scale: float, reduction: str) -> Tensor:
    rows = torch.where(counted, scale * lse.square(), 0.0)
    if reduction == "none":
        return rows
    return rows.sum() if reduction == "sum" else rows.sum() / counted.sum().clamp(min=1)


@torch.no_grad()
def _predicted(x: Tensor, weight: Tensor, bias: Tensor | None, counted: Tensor) -> Tensor:
    """Class of the largest logit of every row that counts; a soft cap does not change which it is."""
    rows = max(64, x.numel() // max(weight.shape[0], 1))
    found = [nn.functional.linear(part, weight, bias).argmax(-1) for part in x.split(rows)]
    return torch.where(counted, torch.cat(found), -1)


def _output() -> Any:
    """Liger's own class, which its models look for."""
    try:
        return importlib.import_module("liger_kernel.transformers.functional").CrossEntropyOutput
    except ModuleNotFoundError:
        return CrossEntropyOutput


class LigerFusedLinearCrossEntropyLoss(nn.Module):
    """Module form of :func:`liger_fused_linear_cross_entropy`, with the arguments of Liger's module.

    To switch, import it from here instead of from ``liger_kernel.transformers``; ``loss="comp_sum", tau=1.5`` and the
    like then choose another loss.

    Args:
        ce_weight: how much rows of each class count, ``(V,)``.
        ignore_index: rows with this target do not count.
        lse_square_scale: factor of the squared log-sum-exp.
        label_smoothing: in ``[0, 1]``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        softcap: bound of the logits or None.
        return_z_loss: see :func:`liger_fused_linear_cross_entropy`, as for what follows.
        accum_dtype: dtype of sums if wider than float32.
        use_token_scaling: weight rows by the probability of their target.
        return_token_accuracy: also return the accuracy.
        return_predicted_tokens: also return the predicted classes.
        **options: of :func:`softgate.losses.fused_linear_loss`.

    Shapes: lin_weight (V, d), _input (N, d), target (N,), bias (V,) -> () or (N,).

    Raises:
        ArgumentTypeError: at the first call, if an argument has the wrong type.
        ArgumentValueError: at the first call, if an argument is not allowed.

    Example:
        >>> loss = LigerFusedLinearCrossEntropyLoss(softcap=30.0, loss="comp_sum", tau=1.5)
        >>> loss(torch.eye(4, 3), torch.eye(2, 3), torch.tensor([0, 1])).shape
        torch.Size([])

    Paper: none.
    """

    def __init__(
        self,
        ce_weight: Tensor | None = None,
        ignore_index: int = -100,
        lse_square_scale: float = 0.0,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
        softcap: float | None = None,
        return_z_loss: bool = False,
        accum_dtype: torch.dtype | None = None,
        use_token_scaling: bool = False,
        return_token_accuracy: bool = False,
        return_predicted_tokens: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        self.ce_weight = ce_weight
        self.options = {
            "ignore_index": ignore_index,
            "lse_square_scale": lse_square_scale,
            "label_smoothing": label_smoothing,
            "reduction": reduction,
            "softcap": softcap,
            "return_z_loss": return_z_loss,
            "accum_dtype": accum_dtype,
            "use_token_scaling": use_token_scaling,
            "return_token_accuracy": return_token_accuracy,
            "return_predicted_tokens": return_predicted_tokens,
            **options,
        }

    def forward(self, lin_weight: Tensor, _input: Tensor, target: Tensor, bias: Tensor | None = None) -> Any:
        """Loss of the logits ``_input @ lin_weight.T + bias``, which are never held as a whole."""
        return liger_fused_linear_cross_entropy(
            _input, lin_weight, target, bias, ce_weight=self.ce_weight, **self.options
        )

    def extra_repr(self) -> str:
        """The settings, for ``repr``."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


def use_in_liger(**options: Any) -> Undo:
    """Let every model that Liger has patched compute its loss here, with a loss that Liger does not have if asked for.

    Call it beside ``apply_liger_kernel_to_llama()`` or any other of Liger's functions, before or after; its models look
    the loss up at every step. Code that imported Liger's loss by name before keeps that.

    Args:
        **options: of :func:`softgate.losses.fused_linear_loss`, such as ``loss="comp_sum", tau=1.5``.

    Returns:
        A handle: ``handle.rollback()`` gives Liger its own loss back.

    Raises:
        StateError: Liger is not installed.

    Paper: none.
    """
    try:
        functional, module, package = (
            importlib.import_module(f"liger_kernel.transformers{part}")
            for part in (".functional", ".fused_linear_cross_entropy", "")
        )
    except ModuleNotFoundError as error:
        raise StateError("use_in_liger needs liger-kernel, which is not installed") from error
    undo = Undo()
    undo.set(functional, "liger_fused_linear_cross_entropy", partial(liger_fused_linear_cross_entropy, **options))
    for owner in (module, package):
        undo.set(owner, "LigerFusedLinearCrossEntropyLoss", partial(LigerFusedLinearCrossEntropyLoss, **options))
    return undo
