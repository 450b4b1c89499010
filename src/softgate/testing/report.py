"""What a check is, what it says when it fails, and the error that collects all failures."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from softgate.errors import SoftgateError

__all__ = ["Check", "ConformanceError", "Failure", "Report", "describe", "fail"]


class ConformanceError(SoftgateError, AssertionError):
    """An op does not keep what its record or its family promises."""


def fail(message: str, **inputs: Any) -> None:
    """Raise :class:`ConformanceError` with the inputs that reproduce it."""
    shown = "".join(f"\n    {name} = {describe(value)}" for name, value in inputs.items())
    raise ConformanceError(message + shown)


def describe(value: Any) -> str:
    """Text of an argument from which a call can be rebuilt: small tensors whole, large ones by shape and dtype."""
    if isinstance(value, Tensor):
        if value.layout is not value.new_empty(0).layout or value.is_nested or value.is_meta:
            return f"<{value.layout} {value.dtype}>"
        if value.numel() <= 48:
            return f"torch.tensor({value.detach().tolist()}, dtype={value.dtype})"
        return f"<tensor {tuple(value.shape)} {value.dtype} stride {value.stride()}>"
    if isinstance(value, tuple | list):
        inner = ", ".join(describe(item) for item in value)
        return f"({inner},)" if isinstance(value, tuple) else f"[{inner}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {describe(item)}" for key, item in value.items()) + "}"
    return repr(value)


@dataclass(frozen=True)
class Check:
    """One generated check of one variant of an op.

    Attributes:
        name: ``group[detail]``, unique within the variant; ``only=`` selects by it.
        variant: key of ``Method.variants``.
        run: raises :class:`ConformanceError` (or lets the op's own exception through) if the op fails.
        quick: part of ``check_op(op, quick=True)``.
    """

    name: str
    variant: str
    run: Callable[[], None]
    quick: bool = True

    @property
    def group(self) -> str:
        """The name without its ``[detail]``."""
        return self.name.split("[", 1)[0]

    @property
    def title(self) -> str:
        """``variant/name``, unique within the op."""
        return f"{self.variant}/{self.name}"


@dataclass(frozen=True)
class Failure:
    """A check that failed and why."""

    check: Check
    error: BaseException

    def __str__(self) -> str:
        kind = "" if isinstance(self.error, ConformanceError) else f"{type(self.error).__name__}: "
        notes = "".join(f"\n    {note}" for note in getattr(self.error, "__notes__", ()))
        where = ""
        if kind and self.error.__traceback__ is not None:  # an exception of the op itself: say where it came from
            last = traceback.extract_tb(self.error.__traceback__)[-1]
            where = f"\n    raised at {last.filename}:{last.lineno}"
        return f"{self.check.title}: {kind}{self.error}{where}{notes}"


@dataclass
class Report:
    """What :func:`softgate.testing.check_op` did.

    Attributes:
        op: qualified name of the op.
        passed: titles of the checks that passed.
        failures: the checks that failed.
    """

    op: str
    passed: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    @property
    def failed(self) -> list[str]:
        """Titles of the failed checks."""
        return [failure.check.title for failure in self.failures]

    def run(self, checks: Iterable[Check]) -> Report:
        """Run ``checks`` one after the other; a failure never keeps the next one from running."""
        for check in checks:
            try:
                check.run()
            except Exception as error:
                self.failures.append(Failure(check, error))
            else:
                self.passed.append(check.title)
        return self

    def raise_failures(self) -> None:
        """Raise one :class:`ConformanceError` that lists every failed check, if there is any."""
        if self.failures:
            raise ConformanceError(str(self))

    def __iter__(self) -> Iterator[Failure]:
        return iter(self.failures)

    def __str__(self) -> str:
        total = len(self.passed) + len(self.failures)
        lines = [f"{self.op}: {len(self.passed)} of {total} checks passed"]
        lines += [f"- {failure}" for failure in self.failures]
        return "\n".join(lines)
