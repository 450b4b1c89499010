"""From a name, a callable or a class to the method that it stands for."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type
from softgate.registry import Method, methods


def check_options(argument: str, options: Any) -> dict[str, Any]:
    """Return a copy of ``options`` (None: empty) after checking that it maps names to values."""
    if options is None:
        return {}
    if not isinstance(options, Mapping) or not all(isinstance(key, str) for key in options):
        bad_type(f"{argument}_options", options, "a mapping of option names to values")
    return dict(options)


def unknown_name(argument: str, name: Any, known: Mapping[str, Any] | list[str], also: str) -> NoReturn:
    """Raise an error that lists the names known for ``argument``."""
    listed = ", ".join(repr(each) for each in sorted(known)) or "no names yet"
    raise ArgumentValueError(f"{argument} must be one of {listed}, or {also}; got {name!r}")


def family(site: str, kind: str) -> dict[str, Method]:
    """Records of one room with one kind of signature, by the name of their function."""
    return {record.name: record for record in methods(site) if record.family == kind}


def room(name: str) -> Any | None:
    """The room ``softgate.<name>``, None while it has no module."""
    try:
        return importlib.import_module(f"softgate.{name}")
    except ModuleNotFoundError as error:
        if error.name == f"softgate.{name}":
            return None
        raise


def is_json(value: Any) -> bool:
    """Whether ``value`` comes back equal from JSON."""
    try:
        return bool(json.loads(json.dumps(value, allow_nan=False)) == value)
    except (TypeError, ValueError):
        return False


def callable_name(function: Callable[..., Any]) -> str:
    """What to call a callable in messages."""
    return getattr(function, "__qualname__", type(function).__qualname__)


def check_callable(argument: str, value: Any, also: str) -> None:
    """Raise unless ``value`` is callable (a string has been handled before)."""
    if not callable(value):
        raise ArgumentTypeError(f"{argument} must be a name, {also}; got {type(value).__name__}")
