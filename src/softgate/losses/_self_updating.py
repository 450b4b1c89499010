"""A head that takes its own SGD step while the gradient passes through it, and what guards that step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from softgate._checks import check_float_tensor, check_number
from softgate.errors import ArgumentValueError, StateError
from softgate.losses._spherical import check_classes

__all__: list[str] = []


class SelfUpdating(nn.Module):
    """Base of heads whose weights are buffers that the backward pass itself updates by ``lr`` times the gradient.

    Such a head has no parameters, so no optimizer, gradient clipping or weight decay from outside reaches it.
    """

    def __init__(self, lr: float, weight_decay: float) -> None:
        super().__init__()
        self.lr = check_number("lr", lr, low=0.0, high_open=True)
        self.weight_decay = check_number("weight_decay", weight_decay, low=0.0, high_open=True)
        self.steps = 0
        self.changes = 0
        self._without_update = 0
        self._seen: dict[str, tuple[int, int]] = {}
        self.register_load_state_dict_post_hook(_weights_loaded)

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the following backward passes; for schedules."""
        self.lr = check_number("lr", lr, low=0.0, high_open=True)

    @contextmanager
    def no_update(self) -> Iterator[None]:
        """Forward passes in this context give the same results and gradients, and their backward updates nothing."""
        self._without_update += 1
        try:
            yield
        finally:
            self._without_update -= 1

    @property
    def will_update(self) -> bool:
        """Whether the backward pass of a forward pass made now will update the weights."""
        return self.training and not self._without_update and torch.is_grad_enabled()

    def anchor(self, like: Tensor) -> Tensor | None:
        """A scalar that requires a gradient, so that autograd calls backward even if ``h`` needs none."""
        return torch.zeros((), device=like.device, requires_grad=True) if self.will_update else None

    def check_backward(self, changes: int) -> None:
        """Raise before anything is written if this backward pass no longer belongs to the weights.

        Args:
            changes: ``self.changes`` when the forward pass was made.
        """
        if torch.is_grad_enabled():
            raise StateError("the head has no second derivatives; call backward without create_graph")
        if changes != self.changes:
            raise StateError(
                "the weights were changed since this forward pass (backward was called twice, or several forward "
                "passes came before it): call forward again. To accumulate gradients, concatenate the micro-batches, "
                "or call forward and backward for each in turn"
            )

    def check_state(self) -> None:
        """Raise if someone else trains or has changed the weights, which would make them disagree with each other."""
        for name, tensor in (*self._buffers.items(), *self._parameters.items()):
            if tensor is None:
                continue
            if isinstance(tensor, nn.Parameter) or tensor.requires_grad:
                raise StateError(
                    f"{name} must stay a buffer: the head updates it itself in backward, and an optimizer, which "
                    "would update it a second time, must not own it"
                )
            seen = self._seen.get(name)
            if seen is not None and seen[0] == id(tensor) and seen[1] != tensor._version:
                raise StateError(
                    f"{name} was changed from outside (by an optimizer, an average of weights or a broadcast of "
                    "buffers?); change the weights through load_state_dict or set_weight only"
                )
        self._remember()

    def changed(self) -> None:
        """To be called after the head itself has written its weights: earlier forward passes no longer count."""
        self.changes += 1
        self._remember()

    def _remember(self) -> None:
        """Take the buffers as they are now for the ones that the head itself wrote."""
        self._seen = {
            name: (id(tensor), tensor._version) for name, tensor in self._buffers.items() if tensor is not None
        }

    def get_extra_state(self) -> Tensor:
        """Learning rate and step counters; a tensor, so that any checkpoint format can hold it."""
        return torch.tensor(self._counters(), dtype=torch.float64)

    def set_extra_state(self, state: Any) -> None:
        """Restore what :meth:`get_extra_state` gave."""
        self._set_counters([float(value) for value in state])

    def _counters(self) -> list[float]:
        return [self.lr, float(self.steps)]

    def _set_counters(self, values: list[float]) -> None:
        self.lr, self.steps = values[0], int(values[1])


def _weights_loaded(module: nn.Module, _: object) -> None:
    if isinstance(module, SelfUpdating):
        module.changed()


def full_precision(like: Tensor) -> AbstractContextManager[Any]:
    """Turns autocast off, which would take the products of the state in 16 bits."""
    kind = like.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def check_rows(
    h: Any, target: Any, in_features: int, num_classes: int, ignore_index: int, several: bool = False
) -> None:
    """Raise unless ``h`` is ``(..., in_features)`` and finite and ``target`` has its leading shape.

    Args:
        h: hidden rows.
        target: class indices, ``(...)``, or ``(..., K)`` if ``several``.
        in_features: width of ``h``.
        num_classes: upper end of the indices.
        ignore_index: index of a row to leave out.
        several: whether K targets per row are allowed.
    """
    check_float_tensor("h", h)
    if h.ndim == 0 or h.shape[-1] != in_features:
        raise ArgumentValueError(f"h must have shape (..., {in_features}), got {tuple(h.shape)}")
    check_classes("target", target, num_classes, ignore_index)
    if target.shape != h.shape[:-1] and not (several and target.shape[:-1] == h.shape[:-1] and target.ndim == h.ndim):
        allowed = f"{tuple(h.shape[:-1])}{' with or without a last dimension for several targets' if several else ''}"
        raise ArgumentValueError(f"target must have shape {allowed}, got {tuple(target.shape)}")
    if h.device != target.device:
        raise ArgumentValueError(f"all tensors must be on one device, got h on {h.device}, target on {target.device}")
    check_finite("h", h)


def check_finite(name: str, x: Tensor) -> None:
    """Raise if ``x`` holds NaN or infinities: they would stay in the weights for ever."""
    # one sum is a tenth of the work of isfinite; it may overflow without an infinity in x, hence the second look
    if not isfinite(float(x.detach().sum())) and not bool(x.detach().isfinite().all()):
        raise ArgumentValueError(f"{name} must be finite, got NaN or infinity; the head was not changed")
