"""The exceptions softgate raises, and the argument checks that raise them.

Every error names the argument, says what it was and what it may be. The classes derive from the built-in ones, so
``except ValueError`` keeps working in code that does not know softgate.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, NoReturn


class SoftgateError(Exception):
    """Base class of every exception that softgate raises on purpose."""


class ArgumentValueError(SoftgateError, ValueError):
    """An argument has the right type and a value that is not allowed."""


class ArgumentTypeError(SoftgateError, TypeError):
    """An argument has a type (or a tensor a dtype) that is not allowed."""


class StateError(SoftgateError, RuntimeError):
    """The call is not possible in the present state: a file, a lock, a device, an earlier call."""


class MissingExtraError(SoftgateError, ImportError):
    """An optional dependency is needed and not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        """Say which ``package`` is missing, what for, and which ``extra`` of softgate brings it."""
        super().__init__(f"{purpose} needs {package}; install it with: pip install 'softgate[{extra}]'")
        self.package, self.extra = package, extra


def bad_value(name: str, value: object, allowed: str) -> NoReturn:
    """Raise :class:`ArgumentValueError` for argument ``name``."""
    raise ArgumentValueError(f"{name} must be {allowed}, got {value!r}")


def bad_type(name: str, value: object, allowed: str) -> NoReturn:
    """Raise :class:`ArgumentTypeError` for argument ``name``."""
    raise ArgumentTypeError(f"{name} must be {allowed}, got {type(value).__name__}")


def did_you_mean(value: object, choices: Iterable[str]) -> str:
    """The end of a message about an unknown name: ``"; did you mean 'x'?"``, empty where nothing known is close."""
    import difflib

    known = {name.lower(): name for name in choices}
    close = difflib.get_close_matches(str(value).lower(), known, n=1, cutoff=0.6)
    return f"; did you mean {known[close[0]]!r}?" if close else ""


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """Raise unless the string ``value`` is one of ``choices``."""
    if not isinstance(value, str):
        bad_type(name, value, "a string, one of " + ", ".join(map(repr, choices)))
    if value not in choices:
        listed = ", ".join(map(repr, choices))
        raise ArgumentValueError(f"{name} must be one of {listed}, got {value!r}{did_you_mean(value, choices)}")
