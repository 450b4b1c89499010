"""Post-training quantisation, simulated: what a model loses when weights and activations are rounded to few bits."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from softgate._checks import check_number
from softgate.diagnostics._fake_quant import Activations, WeightRange, call_order, final_head, rounded_weights
from softgate.diagnostics._running import checked_batches, eval_mode, run_model
from softgate.errors import ArgumentValueError, bad_type, bad_value, check_choice

__all__ = ["PTQReport", "ptq_evaluate"]


class PTQReport(TypedDict):
    """Result of :func:`ptq_evaluate`.

    Attributes:
        full_precision: what ``eval_fn`` gave for the model as it is.
        quantized: what it gave with rounded weights and activations.
        head: name of the final head, which stays exact; None if no ``nn.Linear`` ran.
        weights: number of rounded weight tensors.
        activations: number of rounded activation tensors, each with a static range of its own.
    """

    full_precision: float
    quantized: float
    head: str | None
    weights: int
    activations: int


@torch.no_grad()
def ptq_evaluate(
    model: nn.Module,
    calib: Iterable[Tensor | Mapping[str, Any]],
    eval_fn: Callable[[nn.Module], float],
    w_bits: int | None = 8,
    a_bits: int | None = 8,
    *,
    weight_range: WeightRange = "minmax",
    percentile: float = 100.0,
    momentum: float = 0.9,
    exclude: Sequence[str] = (),
) -> PTQReport:
    """Evaluate ``model`` as if its weights and activations were small integers; it is left as it was.

    Weights (all parameters with two or more dimensions) lie on a symmetric grid per tensor. Activations (the output of
    every module and the input of every module without children) lie on an asymmetric static grid per tensor, whose
    range comes from running ``calib`` through the model with rounded weights. The final head, the last ``nn.Linear``
    that runs, and what comes after it stay exact. Everything is computed in floating point ("fake quantisation").
    Tensors that never cross the border of a module (attention weights, rotated queries) are not rounded.

    Compare figures only between models that were measured with the same range estimators.

    Args:
        model: any module; needs no change.
        calib: batches for the ranges (the paper takes 16), each what the model takes as its argument; a mapping is
            passed as keyword arguments.
        eval_fn: ``model -> float``, a loss, say; called twice, in eval mode without gradients.
        w_bits: bits of the weights, 2 to 32; None leaves them alone.
        a_bits: bits of the activations, 2 to 32; None leaves them alone.
        weight_range: ``"minmax"``, or ``"mse"``: the range that makes the squared rounding error smallest.
        percentile: of a batch's entries inside its range, in (50, 100]: 100 is min-max; 99.99 and 99.999 are the
            paper's others.
        momentum: share of the old range when a batch's range is averaged in, in [0, 1).
        exclude: names of further modules that stay exact, with all they contain.

    Raises:
        ArgumentTypeError: wrong types; ``eval_fn`` does not give a number.
        ArgumentValueError: numbers or names that are not allowed, or no batches.
        StateError: NaN or infinities in calibration, or the evaluation reaches a module that ``calib`` did not.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
        >>> x = torch.linspace(-1, 1, 12).reshape(3, 4)
        >>> report = ptq_evaluate(net, [x], lambda m: float(m(x).square().mean()))
        >>> report["head"], report["weights"], report["activations"]
        ('2', 1, 4)

    Paper: Quantizable Transformers, arXiv 2306.12929, section 5 and appendix C (quantisation details).
    """
    if not isinstance(model, nn.Module):
        bad_type("model", model, "a torch.nn.Module")
    if not callable(eval_fn):
        bad_type("eval_fn", eval_fn, "a function of the model")
    for name, bits in (("w_bits", w_bits), ("a_bits", a_bits)):
        _check_bits(name, bits)
    check_choice("weight_range", weight_range, ("minmax", "mse"))
    check_number("percentile", percentile, low=50.0, high=100.0, low_open=True)
    check_number("momentum", momentum, low=0.0, high=1.0, high_open=True)
    further = _check_names(model, exclude)
    batches = checked_batches("calib", calib)
    first = next(batches, None)
    if first is None:
        raise ArgumentValueError("calib must hold at least one batch, got none")
    with eval_mode(model):
        full = _number(eval_fn(model))
        order = call_order(model, first)
        head = final_head(model, order)
        kept_exact = {*further, head} - {None}

        def exact(name: str) -> bool:
            return any(name == other or name.startswith(f"{other}.") for other in kept_exact)

        before = order if head is None else order[: len(order) - 1 - order[::-1].index(head)]
        after = set(order) - set(before)
        names = [name for name, _ in model.named_modules() if name not in after and not exact(name)]
        activations = Activations(a_bits or 32, percentile, momentum)
        with rounded_weights(model, exact, w_bits, weight_range) as weights:
            if a_bits is not None:
                with activations.attached(model, names):
                    for batch in itertools.chain([first], batches):
                        run_model(model, batch)
                    activations.learning = False
                    quantized = _number(eval_fn(model))
            else:
                quantized = _number(eval_fn(model))
    return PTQReport(
        full_precision=full,
        quantized=quantized,
        head=head,
        weights=weights,
        activations=len(activations.ranges),
    )


def _check_bits(name: str, bits: Any) -> None:
    if bits is None:
        return
    if isinstance(bits, bool) or not isinstance(bits, int):
        bad_type(name, bits, "an int from 2 to 32 or None")
    if not 2 <= bits <= 32:
        bad_value(name, bits, "an int from 2 to 32 or None")


def _check_names(model: nn.Module, exclude: Any) -> set[str]:
    if isinstance(exclude, str) or not isinstance(exclude, Sequence):
        bad_type("exclude", exclude, "a sequence of module names")
    known = dict(model.named_modules())
    unknown = [name for name in exclude if name not in known or not name]
    if unknown:
        raise ArgumentValueError(f"exclude must be names of modules of {type(model).__name__}, got {unknown}")
    return set(exclude)


def _number(value: Any) -> float:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        bad_type("the result of eval_fn", value, "a number")
    return float(value)
