"""Let a language model compute its loss from hidden states: no logits in training, unless asked for."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from softgate.errors import ArgumentTypeError, StateError
from softgate.losses import fused_linear_loss
from softgate.models import GPT
from softgate.swapping.undo import Undo

__all__ = ["FusedHead", "use_fused_loss"]

#: A statement that changes logits after the head; the soft-capping of Gemma is known and taken over.
_CHANGES = re.compile(r"^\s*logits = (?!self\.lm_head|outputs)", re.MULTILINE)
_CAPPING = re.compile(r"if self\.config\.final_logit_softcapping is not None:(\n\s+logits = .*)+")


def use_fused_loss(model: nn.Module, **options: Any) -> FusedHead:
    """Replace a model's head and loss by :func:`softgate.losses.fused_linear_loss`, in place.

    While training with labels the model then returns its loss and None for the logits. In evaluation, without labels,
    or inside ``handle.logits()``, logits come as before. Weights, parameter names and checkpoints stay what they
    are, tied weights included; DistributedDataParallel works. Sharded weights (FSDP) do not: the loss stands outside
    the head's forward.

    Args:
        model: a causal language model of transformers whose output embedding is a linear layer, or a
            :class:`softgate.models.GPT`.
        **options: of :func:`fused_linear_loss`, such as ``loss``, ``tau``, ``z_penalty`` or ``chunk``; the shift, the
            reduction, the ignored index and the soft-capping are the model's own.

    Returns:
        A handle: ``handle.remove()`` restores the model, ``with handle.logits():`` keeps the logits.

    Raises:
        ArgumentTypeError: ``model`` is no such model.
        StateError: it changes its logits in a way that is not known here, or has a fused loss already.

    Example:
        >>> from softgate.models import GPTConfig
        >>> import torch
        >>> model = GPT(GPTConfig(vocab_size=16, num_layers=1, num_heads=2, embed_dim=8))
        >>> handle = use_fused_loss(model, loss="comp_sum", tau=1.5)
        >>> logits, loss = model(torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.long))
        >>> logits is None, loss.shape
        (True, torch.Size([]))

    Paper: none.
    """
    if hasattr(model, "_softgate_fused_head"):
        raise StateError(f"{type(model).__name__} has a fused loss already; remove() that one first")
    if isinstance(model, GPT):
        return FusedHead(model, model.head, "targets", "_loss", options)
    if not hasattr(type(model), "loss_function") or not hasattr(model, "get_output_embeddings"):
        raise ArgumentTypeError(
            f"model must be a causal language model of transformers or softgate.models.GPT, got {type(model).__name__}"
        )
    kind = getattr(model.loss_function, "__name__", "")
    if kind != "ForCausalLMLoss":
        raise StateError(f"{type(model).__name__} computes {kind or 'a loss of its own'}, not ForCausalLMLoss")
    get_head: Any = model.get_output_embeddings
    head = get_head()
    if not isinstance(head, nn.Linear):
        raise StateError(f"{type(model).__name__} has no linear layer as its output embedding")
    source = _CAPPING.sub("", inspect.getsource(type(model).forward))
    if "self.loss_function(" not in source or _CHANGES.search(source):
        raise StateError(f"{type(model).__name__} changes its logits after the head in a way that is not known here")
    return FusedHead(model, head, "labels", "_loss_function", options)


class FusedHead:
    """What :func:`use_fused_loss` did to a model.

    Args:
        model: the model.
        head: its last layer.
        labels: name of the argument that brings labels.
        loss: name of the attribute that holds the loss function.
        options: of :func:`fused_linear_loss`.
    """

    def __init__(self, model: nn.Module, head: nn.Linear, labels: str, loss: str, options: dict[str, Any]) -> None:
        self.model, self.head, self.options = model, head, options
        self._labels, self._signature = labels, inspect.signature(type(model).forward)
        self._keep_logits = self._skipping = False
        self._hidden: Tensor | None = None
        self._softcap: float | None = None
        self._plain: Callable[..., Tensor] = head.forward
        self._undo = Undo()
        self._undo.set(model, "_softgate_fused_head", self)
        self._undo.set(head, "forward", self._head)
        self._undo.set(model, loss, self._flat_loss if isinstance(model, GPT) else self._token_loss)
        self._undo.hook(model.register_forward_pre_hook(self._before, with_kwargs=True))
        self._undo.hook(model.register_forward_hook(self._after, always_call=True))

    def remove(self) -> None:
        """Restore the model's own head and loss."""
        self._undo.rollback()

    @contextmanager
    def logits(self) -> Iterator[None]:
        """Inside, the model returns logits while training too."""
        before, self._keep_logits = self._keep_logits, True
        try:
            yield
        finally:
            self._keep_logits = before

    def _before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = self._signature.bind(model, *args, **kwargs).arguments.get(self._labels)
        self._skipping = given is not None and model.training and not self._keep_logits
        config: Any = model.config
        self._softcap = getattr(config, "final_logit_softcapping", None)
        if self._skipping and self._softcap is not None:
            config.final_logit_softcapping = None  # what passes through the head are no logits yet

    def _after(self, model: nn.Module, args: Any, output: Any) -> Any:
        skipped, self._skipping, self._hidden = self._skipping, False, None
        config: Any = model.config
        if self._softcap is not None:
            config.final_logit_softcapping = self._softcap
        if not skipped or output is None:
            return output
        if isinstance(output, tuple):  # return_dict=False puts the logits after the loss, GPT before it
            at = 0 if isinstance(model, GPT) else 1
            return (*output[:at], None, *output[at + 1 :])
        output.logits = None
        return output

    def _head(self, hidden: Tensor) -> Tensor:
        self._hidden = hidden
        return hidden if self._skipping else self._plain(hidden)

    def _flat_loss(self, logits: Tensor, targets: Tensor) -> Any:
        assert self._hidden is not None
        return self._loss(self._hidden.flatten(0, 1), targets)

    def _token_loss(
        self,
        logits: Tensor,
        labels: Tensor,
        vocab_size: int,
        num_items_in_batch: Tensor | int | None = None,
        ignore_index: int = -100,
        shift_labels: Tensor | None = None,
        **_: Any,
    ) -> Any:
        """The loss with the conventions of transformers: position t is scored on token t + 1."""
        hidden = self._hidden
        assert hidden is not None
        target = (labels if shift_labels is None else shift_labels).to(hidden.device)
        shift = 1 if shift_labels is None else 0
        if num_items_in_batch is None:
            return self._loss(hidden, target, ignore_index=ignore_index, shift=shift)
        total = self._loss(hidden, target, ignore_index=ignore_index, shift=shift, reduction="sum")
        items = num_items_in_batch
        return total / (items.to(total.device) if isinstance(items, Tensor) else items)

    def _loss(self, hidden: Tensor, target: Tensor, **options: Any) -> Any:
        softcap: dict[str, Any] = {} if self._softcap is None else {"softcap": self._softcap}
        return fused_linear_loss(
            hidden, self.head.weight, target, bias=self.head.bias, **softcap, **self.options, **options
        )
