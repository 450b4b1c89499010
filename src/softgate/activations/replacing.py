"""Replace the activations of a model by others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from softgate.activations.corrected import CRReLU
from softgate.errors import StateError, bad_type

__all__ = ["replace_activations"]


def replace_activations(
    model: nn.Module,
    from_: type[nn.Module] | Sequence[type[nn.Module]] = (nn.GELU, nn.ReLU),
    to: Callable[[], Any] = CRReLU,
) -> list[str]:
    """Put a new module in the place of every activation of certain classes, in place and for good.

    Every place gets a module of its own, also where the model had one module in several places, so that each layer
    learns its own parameters; a module that is *called* several times stays one. Do it before the optimizer is made.
    :func:`softgate.swap` does it reversibly, for all activations it knows at once, and keeps a manifest.

    Args:
        model: what holds the activations. It cannot be an activation itself.
        from_: the class or classes to replace, subclasses included; those of transformers are not torch's:
            ``transformers.activations.GELUActivation``.
        to: called without arguments for every place: a class, or a ``functools.partial`` of one.

    Returns:
        Names of the places, as in ``model.named_modules()``.

    Raises:
        ArgumentTypeError: ``model`` is no module, ``from_`` holds something else than module classes, or ``to`` does
            not return modules.
        StateError: there is nothing to replace.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.GELU(), torch.nn.Linear(4, 2))
        >>> replace_activations(model)
        ['1']
        >>> model[1]
        CRReLU(init=0.01)

    Paper: arXiv 2405.12954, experiments: the activation of every feed-forward block.
    """
    if not isinstance(model, nn.Module):
        bad_type("model", model, "an nn.Module")
    classes = (from_,) if isinstance(from_, type) else from_
    if not isinstance(classes, tuple | list) or not classes or not all(map(_is_module_class, classes)):
        bad_type("from_", from_, "a class of modules or a tuple of them")
    if not callable(to):
        bad_type("to", to, "a class of modules")
    places = [
        (prefix, owner, name)
        for prefix, owner in model.named_modules()
        for name, child in owner._modules.items()  # unlike named_children, with every place of a shared module
        if isinstance(child, tuple(classes))
    ]
    if not places:
        names = ", ".join(cls.__name__ for cls in classes)
        raise StateError(f"{type(model).__name__} holds no {names} as a module; functions such as F.gelu are not seen")
    like = next(model.parameters(), None)
    for _, owner, name in places:
        new = to()
        if not isinstance(new, nn.Module):
            bad_type("to", new, "what returns an nn.Module")
        new.train(owner.training)
        setattr(owner, name, new if like is None else new.to(like.device, like.dtype))
    return [f"{prefix}.{name}" if prefix else name for prefix, _, name in places]


def _is_module_class(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, nn.Module)
