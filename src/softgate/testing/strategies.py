"""Hypothesis strategies: the inputs on which laws are tried.

Hypothesis is imported inside the functions, so that ``import softgate.testing`` works without it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from softgate.errors import MissingExtraError, bad_value
from softgate.testing.inputs import extras_like, random
from softgate.testing.report import describe
from softgate.testing.subject import Subject, copied

__all__ = ["DRAWS", "AttentionDraw", "LossDraw", "RowDraw", "default_examples", "try_on_examples"]

EXAMPLES_VARIABLE = "SOFTGATE_TEST_EXAMPLES"
EXAMPLES, QUICK_EXAMPLES = 100, 25
_F32 = torch.finfo(torch.float32)


def default_examples(*, quick: bool = False) -> tuple[int, int]:
    """Examples per law for the first and for every further variant: ``SOFTGATE_TEST_EXAMPLES``, or 100 and 25.

    The variants of an op share most of their code; a law that breaks is nearly always broken for the first one too.
    """
    text = os.environ.get(EXAMPLES_VARIABLE, "").strip()
    if quick:
        return QUICK_EXAMPLES, QUICK_EXAMPLES
    if not text:
        return EXAMPLES, QUICK_EXAMPLES
    if not text.isdecimal() or int(text) < 1:
        bad_value(EXAMPLES_VARIABLE, text, "a positive whole number")
    return int(text), int(text)


@dataclass(frozen=True)
class RowDraw:
    """Rows of float32 scores, and a seed for whatever else a law draws."""

    x: Tensor
    seed: int

    @property
    def generator(self) -> torch.Generator:
        """A fresh generator of this draw."""
        return torch.Generator().manual_seed(self.seed)


@dataclass(frozen=True)
class LossDraw(RowDraw):
    """Logits ``x`` with a class index and a weight per class."""

    target: Tensor
    weight: Tensor


@dataclass(frozen=True)
class AttentionDraw:
    """Query, key and value of one call, and the op's further positional arguments."""

    query: Tensor
    key: Tensor
    value: Tensor
    extras: tuple[Any, ...]
    seed: int

    @property
    def generator(self) -> torch.Generator:
        """A fresh generator of this draw."""
        return torch.Generator().manual_seed(self.seed)


def hypothesis_module() -> Any:
    """The ``hypothesis`` package, or one sentence saying how to get it."""
    try:
        import hypothesis
        import hypothesis.strategies
    except ModuleNotFoundError as error:
        raise MissingExtraError("hypothesis", "dev", "trying laws on generated inputs") from error
    return hypothesis


def _values(st: Any, specials: tuple[float, ...], limit: float) -> Any:
    ordinary = st.floats(-20, 20, width=32)
    wide = st.floats(-limit, limit, width=32)
    ties = st.integers(-3, 3).map(float)
    tiny = (0.0, -0.0, 2.0**-149, -(2.0**-149), 2.0**-126, -(2.0**-126), 2.0**-24, limit, -limit)
    return st.one_of(ordinary, wide, ties, st.sampled_from(tiny + specials))


def _tensor(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def _same_for_all(make: Callable[[Any], Any]) -> Callable[[Subject], Any]:
    """A maker of strategies that do not depend on the subject: made once, so that their draws are made once too."""
    made = cache(lambda: make(hypothesis_module().strategies))
    return lambda subject: made()


def _rows(specials: tuple[float, ...], limit: float = 1e4) -> Callable[[Any], Any]:
    def strategy(st: Any) -> Any:
        values = _values(st, specials, limit)
        shapes = st.tuples(st.integers(1, 3), st.one_of(st.integers(1, 5), st.sampled_from((8, 9, 17, 33))))
        rows = shapes.flatmap(
            lambda s: st.lists(st.lists(values, min_size=s[1], max_size=s[1]), min_size=s[0], max_size=s[0])
        )
        return st.builds(lambda r, seed: RowDraw(_tensor(r), seed), rows, st.integers(0, 2**31))

    return strategy


def _losses(specials: tuple[float, ...]) -> Callable[[Any], Any]:
    def strategy(st: Any) -> Any:
        def build(draw: RowDraw, weight: list[float]) -> LossDraw:
            n, classes = draw.x.shape
            target = torch.randint(classes, (n,), generator=draw.generator)
            return LossDraw(draw.x, draw.seed, target, torch.tensor((weight * classes)[:classes]))

        weights = st.lists(st.floats(0.125, 4, width=32), min_size=1, max_size=6)
        return st.builds(build, _rows(specials)(st), weights)

    return strategy


@lru_cache(maxsize=8)
def _attention(subject: Subject) -> Any:
    st = hypothesis_module().strategies
    smallest = subject.record.smallest_width
    widths = tuple(dict.fromkeys(max(width, smallest) for width in (1, 2, 4, 7)))
    sizes = st.tuples(
        st.integers(1, 2), st.integers(1, 3), st.integers(1, 6), st.integers(1, 8), st.sampled_from(widths)
    )

    def build(size: tuple[int, ...], seed: int, scale: float) -> AttentionDraw:
        batch, heads, queries, keys, width = size
        generator = torch.Generator().manual_seed(seed)
        q = random(generator, batch, heads, queries, width, dtype=torch.float32, scale=scale)
        k = random(generator, batch, heads, keys, width, dtype=torch.float32)
        v = random(generator, batch, heads, keys, width, dtype=torch.float32)
        return AttentionDraw(q, k, v, extras_like(subject, q, generator), seed)

    return st.builds(build, sizes, st.integers(0, 2**31), st.sampled_from((1.0, 0.0, 1e-3, 10.0, 300.0)))


_MAX = (_F32.max, -_F32.max)
_NAN_INF = (float("nan"), float("inf"), float("-inf"))

#: Name of a draw -> strategy for a subject.
DRAWS: dict[str, Callable[[Subject], Any]] = {
    "finite_rows": _same_for_all(_rows(_MAX)),
    "bounded_rows": _same_for_all(_rows(())),
    "masked_rows": _same_for_all(_rows((float("-inf"), float("-inf"), float("-inf")))),
    "any_rows": _same_for_all(_rows(_NAN_INF + _MAX)),
    "losses": _same_for_all(_losses(())),
    "any_losses": _same_for_all(_losses(_NAN_INF + _MAX)),
    "attention": _attention,
}


def try_on_examples(strategy: Any, body: Callable[[Any], None], examples: int) -> None:
    """Run ``body`` on ``examples`` draws, the same ones in every run; the error names the simplest draw that fails.

    Making a draw takes longer than trying most laws on it. So the draws of a strategy are made once, and every law gets
    copies of them; only when it fails on one does Hypothesis draw again, to find the simplest.
    """
    hypothesis_module()  # laws need it, also when the draws are there already
    for draw in _draws(strategy, examples):
        try:
            body(dataclasses.replace(draw, **copied(vars(draw))))
        except Exception as error:
            failure = error
            break
    else:
        return
    _run(strategy, body, examples)
    raise failure  # one that does not come back


@lru_cache(maxsize=16)
def _draws(strategy: Any, examples: int) -> tuple[Any, ...]:
    made: list[Any] = []
    _run(strategy, made.append, examples)
    return tuple(made)


def _run(strategy: Any, body: Callable[[Any], None], examples: int) -> None:
    hypothesis = hypothesis_module()

    @hypothesis.settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        print_blob=False,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategy)
    def try_one(draw: Any) -> None:
        try:
            body(draw)
        except Exception as error:
            error.add_note(f"    on {_describe_draw(draw)}")
            raise

    try_one()


def _describe_draw(draw: Any) -> str:
    return ", ".join(f"{name}={describe(value)}" for name, value in vars(draw).items())
