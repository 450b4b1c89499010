"""Accuracy of a model over the rate of bit errors in its memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from softgate._checks import check_number, check_sizes
from softgate._evaluation import accuracy_of, evaluating
from softgate._math.number_formats import number_format
from softgate.diagnostics.bit_flips import BitFlipInjector, Include
from softgate.errors import ArgumentValueError

__all__ = ["BerCurve", "ber_curve"]

#: What the paper looks at.
RATES = (1e-7, 3e-7, 1e-6, 3e-6, 1e-5, 3e-5)


class BerCurve(NamedTuple):
    """What :func:`ber_curve` measured, one entry per bit error rate.

    Attributes:
        bers: the rates.
        mean: mean over the trials.
        std: standard deviation over the trials.
        quantiles: 5 % and 95 % quantile; the distribution often has two humps, which mean and deviation hide.
        trials: all results, (rates, trials).
        clean: without faults, in the number format.
    """

    bers: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    quantiles: tuple[tuple[float, float], ...]
    trials: tuple[tuple[float, ...], ...]
    clean: float

    def table(self) -> str:
        """The curve as a table of text."""
        lines = ["     BER    mean     std      5 %     95 %", f"       0  {self.clean:6.3f}"]
        for ber, mean, std, (low, high) in zip(self.bers, self.mean, self.std, self.quantiles, strict=True):
            lines.append(f"{ber:8.1e}  {mean:6.3f}  {std:6.3f}  {low:7.3f}  {high:7.3f}")
        return "\n".join(lines)

    def plot(self, axes: Any = None, label: str | None = None) -> Any:
        """Draw the mean, and the band between the quantiles, into ``axes`` of matplotlib (new ones if None)."""
        if axes is None:
            from matplotlib.figure import Figure

            axes = Figure().subplots()
        axes.semilogx(self.bers, self.mean, marker="o", label=label)
        axes.fill_between(self.bers, *zip(*self.quantiles, strict=True), alpha=0.2)
        axes.set_xlabel("bit error rate")
        axes.set_ylabel("accuracy")
        return axes


def ber_curve(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    bers: Sequence[float] = RATES,
    trials: int = 100,
    fmt: str = "q15.16",
    *,
    seed: int = 0,
    include: Include | None = None,
    measure: Callable[[nn.Module], float] | None = None,
) -> BerCurve:
    """Measure how much of its accuracy a model keeps when bits of its weights flip.

    Models with the same names of parameters get the same faults in them: differences between a model and a protected
    copy of it are not those of the dice.

    Args:
        model: left as it was.
        loader: batches (inputs, labels), iterated once per trial.
        bers: bit error rates.
        trials: injections per rate.
        fmt: how numbers are stored, see :class:`BitFlipInjector`.
        seed: of the faults.
        include: which parameters can have faults, see :class:`BitFlipInjector`.
        measure: ``model -> figure`` in the place of top-1 accuracy on ``loader``; a row with NaN counts as wrong there.

    Returns:
        Means, deviations, quantiles and all results.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: no rates, a rate outside [0, 1], no trials, an unknown format, or an empty loader.
        StateError: the model has no parameter that can have faults.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 2)
        >>> x = torch.randn(64, 2)
        >>> curve = ber_curve(model, [(x, model(x).argmax(1))], bers=(1e-4, 0.3), trials=5, fmt="float32")
        >>> curve.clean, curve.mean[0] >= curve.mean[1]
        (1.0, True)

    Paper: ProAct, arXiv 2406.06313, evaluation.
    """
    number_format(fmt)
    rates = tuple(check_number("bers", ber, low=0.0, high=1.0) for ber in bers)
    if not rates:
        raise ArgumentValueError("bers must hold at least one bit error rate, got none")
    check_sizes(trials=trials)
    with evaluating(model):

        def run(ber: float, number: int) -> float:
            # the same dice at every rate: more faults at a higher one, not other luck
            with BitFlipInjector(model, ber, fmt, seed=seed * 1_000_003 + number, include=include):
                return accuracy_of(model, loader) if measure is None else float(measure(model))

        clean = run(0.0, 0)
        found = np.array([[run(ber, number) for number in range(trials)] for ber in rates])
    low, high = np.quantile(found, (0.05, 0.95), axis=1)
    return BerCurve(
        rates,
        tuple(found.mean(1).tolist()),
        tuple(found.std(1).tolist()),
        tuple(zip(low.tolist(), high.tolist(), strict=True)),
        tuple(map(tuple, found.tolist())),
        clean,
    )
