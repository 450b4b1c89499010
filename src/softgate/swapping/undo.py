"""A list of changes to objects that can be taken back exactly."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle


class Missing:
    """Stands for "had no such attribute". The class itself is the value: copying a model leaves classes alone."""


class Undo:
    """Sets attributes and adds hooks, and takes all of it back in reverse order.

    Deep-copying a model copies this list with it, and the copy's entries then point at the copy's objects.
    """

    def __init__(self) -> None:
        self._changes: list[tuple[Any, str, Any]] = []
        self._hooks: list[RemovableHandle] = []

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Set ``owner.name`` (an attribute, a child module, or ``__class__``) and remember what was there."""
        self._changes.append((owner, name, _own(owner, name)))
        _put(owner, name, value)

    def hook(self, handle: RemovableHandle) -> None:
        """Remember a hook that was just registered."""
        self._hooks.append(handle)

    def extend(self, later: Undo) -> None:
        """Take over the changes of another list, made after these."""
        self._changes += later._changes
        self._hooks += later._hooks

    def rollback(self) -> None:
        """Restore everything that was set; the last change first."""
        for handle in self._hooks:
            handle.remove()
        for owner, name, old in reversed(self._changes):
            _put(owner, name, old)
        self._changes, self._hooks = [], []


def _own(owner: Any, name: str) -> Any:
    """The instance's own attribute or child module, :class:`Missing` where the class or nothing provides it."""
    if name == "__class__":
        return type(owner)
    if isinstance(owner, nn.Module):
        for table in (owner._modules, owner._parameters, owner._buffers):
            if name in table:
                return table[name]
    return vars(owner).get(name, Missing)


def _put(owner: Any, name: str, value: Any) -> None:
    if value is Missing:
        delattr(owner, name)
        return
    if isinstance(owner, nn.Module) and name in owner._modules and not isinstance(value, nn.Module):
        delattr(owner, name)  # a child module may only be overwritten by another module
    setattr(owner, name, value)
