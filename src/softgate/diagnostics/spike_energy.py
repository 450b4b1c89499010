"""What a spiking network would cost on neuromorphic hardware: additions where there are spikes, products elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from softgate._checks import check_float_tensor
from softgate.errors import ArgumentValueError, bad_type

__all__ = ["EnergyReport", "LayerEnergy", "energy_report"]

#: Energy of a multiplication with addition and of an addition, in picojoules (45 nm, Horowitz 2014).
MULTIPLY_PJ, ADD_PJ = 4.6, 0.9
_COUNTED = (nn.Conv1d, nn.Conv2d, nn.Linear)


class LayerEnergy(NamedTuple):
    """One convolution or linear layer, for one sample.

    Attributes:
        name: of the module.
        steps: how often it runs for a sample; 1 where its input is the same in every step.
        products: multiplications of one step if nothing were left out.
        firing_rate: share of entries of its input that are spikes; NaN where the input is not made of spikes.
        operations: additions at spikes, firing_rate · steps · products; or all multiplications.
        picojoules: 0.9 per addition, 4.6 per multiplication.
    """

    name: str
    steps: int
    products: float
    firing_rate: float
    operations: float
    picojoules: float


class EnergyReport(NamedTuple):
    """See :func:`energy_report`.

    Attributes:
        layers: in the order in which they ran.
        synaptic_operations: additions at spikes, of all layers.
        multiplications: of the layers whose input is not made of spikes.
        millijoules: for one sample.
    """

    layers: tuple[LayerEnergy, ...]
    synaptic_operations: float
    multiplications: float
    millijoules: float


@torch.no_grad()
def energy_report(model: nn.Module, x: Tensor) -> EnergyReport:
    """Operations and energy of ``model`` for one sample of the batch ``x``, by the usual estimate of the field.

    A layer whose input holds 0 and 1 only adds its weights where there are spikes: firing rate x steps x products of a
    dense layer, at 0.9 pJ each. Other layers, such as the first, multiply, at 4.6 pJ; where their input is the same in
    every step, once. Counted are convolutions and linear layers; products of queries, keys and values are not.

    Args:
        model: a spiking network whose layers see all steps as one batch, time first, as those of ``softgate.models``.
        x: a batch, samples first. The model runs on it once, in eval mode, without gradients.

    Returns:
        The layers one by one, and their sums.

    Raises:
        ArgumentTypeError: ``model`` is no module, or ``x`` not a real floating-point tensor.
        ArgumentValueError: an empty batch, or a layer whose batch is no multiple of it.

    Example:
        >>> import torch
        >>> from softgate.models import MaxFormer
        >>> found = energy_report(MaxFormer(dim=16, depths=(1, 1, 1)), torch.randn(2, 3, 8, 8))
        >>> found.layers[0].name, found.layers[0].products  # 3 x 3 filters, 3 channels to 2, 8 x 8 pixels
        ('embeds.0.proj.conv', 3456.0)

    Paper: Spiking Neural Networks Need High Frequency Information, arXiv 2505.18608, energy of table 3.
    """
    if not isinstance(model, nn.Module):
        bad_type("model", model, "an nn.Module")
    check_float_tensor("x", x)
    if x.ndim == 0 or len(x) == 0:
        raise ArgumentValueError(f"x must be a batch with at least one sample, got shape {tuple(x.shape)}")
    layers: list[LayerEnergy] = []
    modes = {module: module.training for module in model.modules()}
    with _watched(model, layers, len(x)):
        try:
            model.eval()(x)
        finally:
            for module, training in modes.items():
                module.training = training
    added = sum(layer.operations for layer in layers if not math.isnan(layer.firing_rate))
    multiplied = sum(layer.operations for layer in layers if math.isnan(layer.firing_rate))
    return EnergyReport(tuple(layers), added, multiplied, 1e-9 * sum(layer.picojoules for layer in layers))


@contextmanager
def _watched(model: nn.Module, layers: list[LayerEnergy], batch: int) -> Iterator[None]:
    """While open, every convolution and linear layer that runs is entered in ``layers``."""

    def entered(name: str) -> Any:
        return lambda module, args, output: layers.append(_entry(name, module, args[0], output, batch))

    hooks = [m.register_forward_hook(entered(n)) for n, m in model.named_modules() if isinstance(m, _COUNTED)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _entry(name: str, module: nn.Module, x: Tensor, output: Tensor, batch: int) -> LayerEnergy:
    if len(x) % batch:
        raise ArgumentValueError(f"x must be a batch of which layers see steps x samples; {name} saw {len(x)} rows")
    steps = len(x) // batch
    weight: Tensor = module.weight  # type: ignore[assignment]
    products = output[0].numel() * weight[0].numel()
    spikes = bool(((x == 0) | (x == 1)).all())
    if spikes:
        rate = float(x.mean(dtype=torch.float64))
        operations = rate * steps * products
        return LayerEnergy(name, steps, float(products), rate, operations, ADD_PJ * operations)
    by_step = x.unflatten(0, (steps, batch))
    steps = 1 if bool((by_step == by_step[:1]).all()) else steps
    operations = float(steps * products)
    return LayerEnergy(name, steps, float(products), math.nan, operations, MULTIPLY_PJ * operations)
