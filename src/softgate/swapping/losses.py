"""Exchange the loss that a transformers model computes from its labels."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from softgate.errors import StateError
from softgate.swapping.names import check_accepts, check_callable, family, unknown_name
from softgate.swapping.undo import Undo

_ALSO = "a function called like torch.nn.functional.cross_entropy"
#: The losses of transformers that can be exchanged, by the name of their function.
_CAUSAL, _FLAT, _CLASSIFIER = "ForCausalLMLoss", "ForMaskedLMLoss", "ForSequenceClassificationLoss"


def loss_names() -> list[str]:
    """Names that ``loss=`` takes."""
    return sorted(_named())


def swap_loss(model: Any, loss: Any, options: Mapping[str, Any], undo: Undo) -> None:
    """Let ``model`` compute ``loss`` from its logits and labels, shifted as the model's own loss is."""
    if isinstance(loss, str):
        named = _named()
        if loss not in named:
            unknown_name("loss", loss, named, _ALSO)
        loss = named[loss]
    check_callable("loss", loss, _ALSO)
    check_accepts("loss", loss, options, given=2, taken=("ignore_index", "reduction"))
    if not hasattr(type(model), "loss_function"):
        raise StateError(
            f"{type(model).__name__} computes no loss itself: loss= is for models of transformers; elsewhere call the "
            "loss in the training loop"
        )
    if "self.loss_function(" not in inspect.getsource(type(model).forward):
        raise StateError(f"{type(model).__name__} does not use an exchangeable loss_function in its forward")
    kind = getattr(model.loss_function, "__name__", "")
    if kind in (_CAUSAL, _FLAT):
        function = token_loss(loss, options, shift=kind == _CAUSAL)
    elif kind == _CLASSIFIER:
        function = class_loss(loss, options)
    else:
        raise StateError(
            f"{type(model).__name__} computes {kind or 'a loss of its own'}; exchangeable are {_CAUSAL}, {_FLAT} and "
            f"{_CLASSIFIER}"
        )
    undo.set(model, "_loss_function", function)


def token_loss(loss: Callable[..., Tensor], options: Mapping[str, Any], *, shift: bool) -> Callable[..., Tensor]:
    """``loss`` over (B, T, V) logits and (B, T) labels; ``shift``: position t is scored on token t + 1."""

    def compute(
        logits: Tensor,
        labels: Tensor,
        vocab_size: int,
        num_items_in_batch: Tensor | int | None = None,
        ignore_index: int = -100,
        shift_labels: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        target = labels
        if shift:
            target = (
                nn.functional.pad(labels, (0, 1), value=ignore_index)[..., 1:] if shift_labels is None else shift_labels
            )
        flat = logits.float().reshape(-1, vocab_size)
        return _reduce(loss, flat, target.reshape(-1).to(flat.device), num_items_in_batch, ignore_index, options)

    return compute


def class_loss(loss: Callable[..., Tensor], options: Mapping[str, Any]) -> Callable[..., Tensor]:
    """``loss`` over (B, C) logits and (B,) integer labels; other kinds of problem are refused."""

    def compute(
        labels: Tensor,
        pooled_logits: Tensor,
        config: Any,
        num_items_in_batch: Tensor | int | None = None,
        ignore_index: int = -100,
        **_: Any,
    ) -> Tensor:
        if config.num_labels < 2 or labels.is_floating_point() or labels.ndim != 1:
            raise StateError("the exchanged loss is for single-label classification: integer labels of shape (batch,)")
        logits = pooled_logits.float()
        return _reduce(loss, logits, labels.to(logits.device), num_items_in_batch, ignore_index, options)

    return compute


def _reduce(
    loss: Callable[..., Tensor],
    logits: Tensor,
    target: Tensor,
    items: Tensor | int | None,
    ignore_index: int,
    options: Mapping[str, Any],
) -> Tensor:
    """Mean over the labels, or the sum over ``items`` where a trainer counts them over several batches."""
    if items is None:
        return loss(logits, target, ignore_index=ignore_index, **options)
    total = loss(logits, target, ignore_index=ignore_index, reduction="sum", **options)
    return total / (items.to(total.device) if isinstance(items, torch.Tensor) else items)


def _named() -> dict[str, Callable[..., Any]]:
    return {name.removesuffix("_cross_entropy"): record.function for name, record in family("losses", "loss").items()}
