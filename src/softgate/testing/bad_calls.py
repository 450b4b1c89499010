"""Invalid calls, generated from the signature family: each must raise an error that names the argument."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softgate.errors import SoftgateError
from softgate.testing.inputs import extras_like, small_call
from softgate.testing.report import Check, ConformanceError, describe
from softgate.testing.subject import Call, Subject

__all__ = ["BadCall", "bad_call_checks", "bad_calls"]

#: How many invalid calls there must be, 25 if not here. An elementwise function of one tensor has no more ways than
#: the generated ones, and those of a custom function are only known to its record.
MINIMUM = {"scalar_map": 20, "custom": 10}


@dataclass(frozen=True)
class BadCall:
    """A call that must raise ``error`` with ``word`` in the message.

    ``by_python`` marks calls that already Python's call protocol refuses, with a plain ``TypeError``.
    """

    what: str
    args: tuple[Any, ...]
    word: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    error: tuple[type[BaseException], ...] = (ValueError, TypeError)
    by_python: bool = False


def not_tensors() -> Iterator[tuple[str, Any]]:
    """Values that are no tensor at all."""
    yield "None", None
    yield "a list", [[1.0, 2.0], [3.0, 4.0]]
    yield "a tuple", (1.0, 2.0)
    yield "a float", 1.0
    yield "a string", "x"
    yield "a numpy array", np.ones((2, 3), dtype=np.float32)
    yield "a dict", {"x": torch.ones(2)}
    yield "an object", object()


def wrong_tensors(like: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Tensors of the right shape whose dtype or layout no floating-point op can take."""
    for dtype in (torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64, torch.complex128):
        yield f"a {dtype} tensor", torch.ones(like.shape, dtype=dtype)
    yield "a sparse COO tensor", torch.ones(like.shape).to_sparse()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that CSR and nested tensors are in beta
        flat = torch.ones(like.shape[-2:] if like.ndim > 1 else (1, max(like.numel(), 1)))
        yield "a sparse CSR tensor", flat.to_sparse_csr()
        yield "a nested tensor", torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3)])
    yield "a float8 tensor", torch.ones(like.shape).to(torch.float8_e4m3fn)


def _numbers(*outside: float) -> Iterator[tuple[str, Any]]:
    for value in (*outside, float("nan"), "0.1", None, [0.1], True):
        yield describe(value), value


def bad_calls(subject: Subject) -> list[BadCall]:
    """All invalid calls for the op: its family's and those of its record."""
    makers = {
        "row_map": _bad_rows,
        "row_reduction": _bad_rows,
        "scalar_map": _bad_rows,
        "loss": _bad_losses,
        "attention": _bad_attention,
        "custom": _bad_custom,
    }
    calls = list(makers[subject.record.family](subject))
    named = {call.word for call in calls}
    if calls:
        calls += [
            call for call in _bad_options(subject, small_call(subject, torch.float32, "bad")) if call.word not in named
        ]
    if subject.record.bad_inputs is not None:
        for args, kwargs, error, word in subject.record.bad_inputs():
            calls.append(BadCall("the record's own", args, word, kwargs, (error,)))
    calls.append(
        BadCall("no arguments", (), subject.positional[0] if subject.positional else "argument", by_python=True)
    )
    if calls:
        good = calls[0].args
        calls.append(BadCall("an unknown keyword", good, "no_such_argument", {"no_such_argument": 1}, by_python=True))
    return calls


def _bad_rows(subject: Subject) -> Iterator[BadCall]:
    x = torch.linspace(-2, 2, 6).reshape(2, 3)
    first = subject.positional[0]
    for what, value in (*not_tensors(), *wrong_tensors(x)):
        yield BadCall(f"{first} is {what}", (value,), first)
    if subject.record.family == "scalar_map":
        return
    for dim in (2, -3, 10**6, -(10**12)):
        yield BadCall(f"dim={dim} of 2", (x, dim), "dim")
    yield BadCall("dim=1 of a 0-d tensor", (torch.tensor(1.0), 1), "dim")
    others: tuple[Any, ...] = (1.0, "1", True, None, [0], (0, 1), torch.tensor([0, 1]), float("nan"))
    for other in others:
        yield BadCall(f"dim={describe(other)}", (x, other), "dim")
    if subject.accepts("out"):
        yield BadCall("out has another shape", (x,), "out", {"out": torch.empty(3, 3)})
        yield BadCall("out has another dtype", (x,), "out", {"out": torch.empty(2, 3, dtype=torch.float64)})
        yield BadCall("out is an int tensor", (x,), "out", {"out": torch.empty(2, 3, dtype=torch.int64)})
        yield BadCall("out is no tensor", (x,), "out", {"out": [1.0]})


def _bad_custom(subject: Subject) -> Iterator[BadCall]:
    """Wrong values for the floating-point tensors of the record's first sample."""
    if subject.record.samples is None:
        return
    good = small_call(subject, torch.float32, "bad")
    for place, (name, tensor) in enumerate(zip(subject.positional, good.args, strict=False)):
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            continue
        for what, value in (*not_tensors(), *wrong_tensors(tensor)):
            if value is None and subject.parameters.parameters[name].default is None:
                continue
            if name in subject.record.integers and isinstance(value, Tensor) and _holds_integers(value):
                continue
            args = (*good.args[:place], value, *good.args[place + 1 :])
            yield BadCall(f"{name} is {what}", args, name, dict(good.kwargs))


def _holds_integers(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _bad_options(subject: Subject, good: Call) -> Iterator[BadCall]:
    """Values of another type for every option with a default, by the type of that default."""
    wrong: dict[type, tuple[Any, ...]] = {
        bool: ("yes", 2, 0.5),
        int: ("1", 1.5, [1]),
        float: ("0.1", [0.1], {}),
        str: ("no_such_choice", 1, ["mean"]),
    }
    given = set(subject.positional[: len(good.args)])
    for name, parameter in subject.parameters.parameters.items():
        if name in given or not subject.is_free(name):
            continue
        for value in wrong.get(type(parameter.default), ()):
            yield BadCall(f"{name}={value!r}", good.args, name, {**good.kwargs, name: value})


def _bad_losses(subject: Subject) -> Iterator[BadCall]:
    x = torch.linspace(-2, 2, 12).reshape(3, 4)
    y = torch.tensor([0, 3, 1])
    first, second = subject.positional[:2]
    for what, value in (*not_tensors(), *wrong_tensors(x)):
        yield BadCall(f"{first} is {what}", (value, y), first)
    for what, value in not_tensors():
        yield BadCall(f"{second} is {what}", (x, value), second)
    for label in (4, -1, -5, 2**40):
        yield BadCall(f"label {label} of 4 classes", (x, torch.tensor([0, label, 1])), second)
    wrong: list[tuple[str, Tensor]] = [
        ("has another length", torch.tensor([0, 1])),
        ("has one dimension too many", y[:, None]),
        ("is a scalar", torch.tensor(1)),
        ("holds float labels", y.float()),
        ("is bool", y.bool()),
        ("is complex", torch.ones(3, 4, dtype=torch.complex64)),
        ("holds probabilities of another shape", torch.full((3, 5), 0.2)),
        ("holds integer probabilities", torch.ones(3, 4, dtype=torch.int64)),
        ("is sparse", torch.ones(3, 4).to_sparse()),
    ]
    for what, value in wrong:
        yield BadCall(f"{second} {what}", (x, value), second)
    yield BadCall(f"{first} is a scalar", (torch.tensor(1.0), torch.tensor(0)), first)
    yield from _bad_loss_options(subject, x, y)


def _bad_loss_options(subject: Subject, x: Tensor, y: Tensor) -> Iterator[BadCall]:
    options: dict[str, list[tuple[str, Any]]] = {
        "weight": [
            ("a weight too many", torch.ones(5)),
            ("2-d weights", torch.ones(3, 4)),
            ("integer weights", torch.ones(4, dtype=torch.int64)),
            ("complex weights", torch.ones(4, dtype=torch.complex64)),
            ("sparse weights", torch.ones(4).to_sparse()),
            ("a list of weights", [1.0, 1.0, 1.0, 1.0]),
            ("one float", 1.0),
        ],
        "reduction": [(describe(value), value) for value in ("average", "", "Mean", None, 1, True, ["mean"])],
        "label_smoothing": list(_numbers(-0.1, 1.1, float("inf"))),
        "ignore_index": [(describe(value), value) for value in (1.0, "1", None, True, [1], float("nan"))],
    }
    for name, values in options.items():
        if subject.accepts(name) and name not in subject.fixed:
            for what, value in values:
                yield BadCall(f"{name}: {what}", (x, y), name, {name: value})


def _bad_attention(subject: Subject) -> Iterator[BadCall]:
    q, k, v = torch.ones(2, 4, 3, 2), torch.ones(2, 4, 5, 2), torch.ones(2, 4, 5, 2)
    extras = extras_like(subject, q, subject.generator("bad"))
    good: list[Any] = [q, k, v, *extras]
    names = subject.positional[:3]

    def with_one(place: int, value: Any) -> tuple[Any, ...]:
        return (*good[:place], value, *good[place + 1 :])

    for place, name in enumerate(names):
        for what, value in (*not_tensors(), *wrong_tensors(q)):
            yield BadCall(f"{name} is {what}", with_one(place, value), name)
    shapes: list[tuple[int, str, Tensor]] = [
        (0, "is a vector", torch.ones(2)),
        (0, "is a scalar", torch.tensor(1.0)),
        (1, "is a vector", torch.ones(2)),
        (1, "has another width", torch.ones(2, 4, 5, 3)),
        (1, "has another batch size", torch.ones(3, 4, 5, 2)),
        (1, "has another number of heads", torch.ones(2, 3, 5, 2)),
        (1, "has another dtype", k.double()),
        (2, "has another length", torch.ones(2, 4, 6, 2)),
        (2, "has another batch size", torch.ones(3, 4, 5, 2)),
        (2, "has another number of heads", torch.ones(2, 3, 5, 2)),
        (2, "has another dtype", v.double()),
    ]
    for place, what, value in shapes:
        yield BadCall(f"{names[place]} {what}", with_one(place, value), names[place])
    yield from _bad_attention_options(subject, tuple(good))


def _bad_attention_options(subject: Subject, good: tuple[Any, ...]) -> Iterator[BadCall]:
    options: dict[str, list[tuple[str, Any]]] = {
        "attn_mask": [
            ("integer mask", torch.ones(3, 5, dtype=torch.int64)),
            ("complex mask", torch.ones(3, 5, dtype=torch.complex64)),
            ("mask of another length", torch.ones(3, 6, dtype=torch.bool)),
            ("mask for more queries", torch.ones(4, 5, dtype=torch.bool)),
            ("mask of five dimensions", torch.ones(1, 2, 4, 3, 5, dtype=torch.bool)),
            ("mask of another batch size", torch.ones(3, 1, 3, 5, dtype=torch.bool)),
            ("sparse mask", torch.ones(3, 5).to_sparse()),
            ("a list", [[True] * 5] * 3),
            ("a string", "causal"),
        ],
        "dropout_p": list(_numbers(-0.1, 1.0, 1.5, float("inf"))),
        "is_causal": [(describe(value), value) for value in ("yes", 2, 0.5, None, torch.tensor([True, False]))],
        "scale": [(describe(value), value) for value in ("1", float("nan"), float("inf"), [1.0], torch.ones(2))],
        "enable_gqa": [(describe(value), value) for value in ("yes", 2, 0.5, None)],
    }
    for name, values in options.items():
        if subject.accepts(name) and name not in subject.fixed:
            for what, value in values:
                yield BadCall(f"{name}: {what}", good, name, {name: value})
    yield from _beyond_limits(subject, good)
    if subject.is_free("enable_gqa"):
        odd = (good[0], torch.ones(2, 3, 5, 2), torch.ones(2, 3, 5, 2), *good[3:])
        yield BadCall("4 query heads on 3 key heads", odd, subject.positional[1], {"enable_gqa": True})


def _beyond_limits(subject: Subject, good: tuple[Any, ...]) -> Iterator[BadCall]:
    """Values that the family allows and the record does not: what an op cannot do it must refuse, not ignore."""
    each_query = torch.ones(3, 5, dtype=torch.bool).tril(2)
    each_head = torch.ones(2, 4, 1, 5, dtype=torch.bool)
    values: dict[str, tuple[Any, ...]] = {
        "attn_mask": (each_query, each_head, torch.zeros(3, 5), torch.zeros(1, 5)),
        "dropout_p": (0.5,),
        "is_causal": (True,),
        "scale": (0.5, 1.0),
        "enable_gqa": (True,),
    }
    for name in subject.limited:
        for value in values[name]:
            yield BadCall(f"{name} beyond its limits: {describe(value)}", good, name, {name: value})


def bad_call_checks(subject: Subject) -> Iterator[Check]:
    """``bad_input[argument]`` for every argument, and a check that there are enough of them."""
    calls = bad_calls(subject)
    yield Check("bad_input[count]", subject.variant, partial(_check_count, subject, len(calls)))
    for word in dict.fromkeys(call.word for call in calls):
        chosen = [call for call in calls if call.word == word]
        yield Check(f"bad_input[{word}]", subject.variant, partial(_check_all, subject, chosen))


def _check_count(subject: Subject, count: int) -> None:
    needed = MINIMUM.get(subject.record.family, 25)
    if count < needed:
        raise ConformanceError(f"only {count} invalid calls are known, {needed} are asked for; add some to bad_inputs")


def _check_all(subject: Subject, calls: list[BadCall]) -> None:
    wrong = [line for call in calls if (line := _problem(subject, call))]
    if wrong:
        raise ConformanceError(f"{len(wrong)} of {len(calls)} invalid calls are not refused properly:" + "".join(wrong))


def _problem(subject: Subject, call: BadCall) -> str | None:
    """What is wrong with how the op takes this call; None if it refuses it as it should."""
    function: Callable[..., Any] = subject
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = function(*call.args, **call.kwargs)
    except call.error as error:
        if not call.by_python and not isinstance(error, SoftgateError):
            return f"\n    {call.what}: {type(error).__name__} that is no SoftgateError: {_first_line(error)}"
        if not re.search(rf"(?<![A-Za-z_]){re.escape(call.word)}(?![A-Za-z_])", str(error)):
            return f"\n    {call.what}: the message does not name {call.word!r}: {_first_line(error)}"
        return None
    except Exception as error:
        return f"\n    {call.what}: {type(error).__name__} instead of ValueError or TypeError: {_first_line(error)}"
    return f"\n    {call.what}: accepted, gave {describe(result)[:120]}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or "no message").splitlines()[0][:160]
