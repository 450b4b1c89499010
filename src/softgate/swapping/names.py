"""From a name, a callable or a class to the method that it stands for."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable, Collection, Mapping
from typing import Any, NoReturn

from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type, did_you_mean
from softgate.registry import Method, methods


def check_options(argument: str, options: Any) -> dict[str, Any]:
    """Return a copy of ``options`` (None: empty) after checking that it maps names to values."""
    if options is None:
        return {}
    if not isinstance(options, Mapping) or not all(isinstance(key, str) for key in options):
        bad_type(f"{argument}_options", options, "a mapping of option names to values")
    return dict(options)


def check_accepts(
    argument: str, function: Callable[..., Any], options: Mapping[str, Any], *, given: int, taken: Collection[str] = ()
) -> None:
    """Raise unless ``function`` takes every option by name.

    Args:
        argument: the place, for messages.
        function: the function or class that will be called with the options.
        options: the options.
        given: how many arguments it is given by position.
        taken: names that it is given by the model.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())[given:]
    except (TypeError, ValueError):  # a function of C without a signature: the call itself will say
        return
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters if parameter.name not in taken]
    for option in options:
        if option not in known:
            raise ArgumentTypeError(
                f"{argument}_options for {callable_name(function)} must be among {', '.join(known) or 'none'}, "
                f"got {option!r}{did_you_mean(option, known)}"
            )


def unknown_name(argument: str, name: Any, known: Mapping[str, Any] | list[str], also: str) -> NoReturn:
    """Raise an error that lists the names known for ``argument``."""
    listed = ", ".join(repr(each) for each in sorted(known)) or "no names yet"
    hint = did_you_mean(name, known)
    raise ArgumentValueError(f"{argument} must be one of {listed}, or {also}; got {name!r}{hint}")


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
