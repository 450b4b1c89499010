"""Building an optimizer for the training loop, and putting its saved state back exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from softgate.errors import ArgumentTypeError

#: An optimizer (or a wrapper with ``step``, ``zero_grad``, ``param_groups``, ``state_dict`` and ``load_state_dict``),
#: or a function that makes one from the list of trainable parameters.
OptimizerLike = Any

_NEEDED = ("step", "zero_grad", "param_groups", "state_dict", "load_state_dict")


def parameter_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Decay matrices, embeddings and kernels; leave biases, norms and other vectors alone."""
    listed = list(parameters)
    if weight_decay == 0.0:
        return [{"params": listed, "weight_decay": 0.0}]
    groups = [
        {"params": [p for p in listed if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in listed if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(model: nn.Module, given: OptimizerLike | None, make_default: Callable[..., Any]) -> Any:
    """The optimizer of ``model``: ``given`` itself, ``given(parameters)``, or ``make_default(parameters)``."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ArgumentTypeError("model must have a parameter with requires_grad=True, it has none")
    if given is None:
        return make_default(parameters)
    optimizer = given if is_ready(given) else given(parameters)
    missing = [name for name in _NEEDED if not hasattr(optimizer, name)]
    if missing:
        kind = type(optimizer).__name__
        raise ArgumentTypeError(f"optimizer must have {', '.join(_NEEDED)}; {kind} lacks {', '.join(missing)}")
    return optimizer


def is_ready(optimizer: OptimizerLike | None) -> bool:
    """Whether this is an optimizer already, not a class or function that makes one."""
    return hasattr(optimizer, "step") and not isinstance(optimizer, type)


def adamw(
    parameters: list[nn.Parameter], *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW without decay on vectors; the fused kernel, which on small models costs a third of the loop's time less."""
    groups = parameter_groups(parameters, weight_decay)
    fused = all(p.device.type in ("cpu", "cuda") and p.dtype.is_floating_point for p in parameters)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=fused)


def set_lr(group: dict[str, Any], lr: float) -> None:
    """Set the learning rate of a parameter group; a tensor (``capturable``) is filled in place."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr


def load_optimizer(optimizer: Any, saved: Mapping[str, Any]) -> None:
    """``optimizer.load_state_dict(saved)``, with every state tensor in the dtype it was saved in.

    torch casts state to the dtype of its parameter, which rounds the float32 state of a bfloat16 parameter.
    """
    optimizer.load_state_dict(saved)
    state = getattr(optimizer, "state", None)
    if not isinstance(state, Mapping) or "state" not in saved:
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    for number, parameter in zip(numbers, parameters, strict=True):
        for key, value in saved["state"].get(number, {}).items():
            current = state[parameter].get(key) if parameter in state else None
            if isinstance(current, Tensor) and current.dtype != value.dtype:
                state[parameter][key] = value.to(current.device)
