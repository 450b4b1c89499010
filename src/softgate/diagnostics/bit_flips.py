"""Flip bits in the stored weights of a model, and take them back."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Literal

import torch
from torch import Tensor, nn

from softgate._checks import check_number
from softgate._math.number_formats import number_format
from softgate.activations.clipping_relu import ClippedReLU
from softgate.errors import StateError, bad_type, check_choice

__all__ = ["BitFlipInjector"]

#: What :class:`BitFlipInjector` may decide by: name of a parameter, and the parameter.
Include = Callable[[str, nn.Parameter], bool]
COUNTS = ("binomial", "floor")


class BitFlipInjector:
    """A model whose memory has faults, inside a ``with`` block.

    On entry the parameters are rounded to the format and some of their bits are flipped, in place; on exit they are,
    bit for bit, what they were, also after an exception. The same seed flips the same bits of a parameter of the same
    name and size, on every device and whatever else the model holds.

    Args:
        model: the model, of floating-point parameters.
        ber: bit error rate, the probability that a bit is flipped, in [0, 1].
        fmt: how numbers are stored: ``"q15.16"`` (fixed point in two's complement, any ``"qINTEGER.FRACTION"``),
            ``"int8"`` (with a scale per tensor), ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        seed: of the faults.
        include: ``(name, parameter) -> bool``. None takes weights and biases of ``nn.Linear`` and ``nn.Conv1d`` to
            ``nn.Conv3d``, and bounds of :class:`softgate.activations.ClippedReLU` that are one per neuron; single
            bounds and norms count as free of faults.
        count: ``"binomial"`` flips every bit with probability ``ber``; ``"floor"`` flips, as the authors' toolbox does,
            ``int(bits * ber)`` bits per tensor drawn with replacement, of which two hits cancel.

    Attributes:
        names: of the parameters that can have faults.
        flipped: inside the block, how many bits are flipped.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: ``ber`` outside [0, 1], an unknown ``fmt`` or ``count``.
        StateError: no parameter is included, or the block is entered twice.

    Example:
        >>> model = torch.nn.Linear(4, 2)
        >>> before = model.weight.detach().clone()
        >>> with BitFlipInjector(model, 0.1, seed=3) as faults:
        ...     changed = not torch.equal(model.weight, before)
        >>> changed, faults.names, torch.equal(model.weight, before)
        (True, ['weight', 'bias'], True)

    Paper: ProAct, arXiv 2406.06313, fault model: memory faults in parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        ber: float,
        fmt: str = "q15.16",
        *,
        seed: int = 0,
        include: Include | None = None,
        count: Literal["binomial", "floor"] = "binomial",
    ) -> None:
        if not isinstance(model, nn.Module):
            bad_type("model", model, "an nn.Module")
        if isinstance(seed, bool) or not isinstance(seed, int):
            bad_type("seed", seed, "an int")
        self.ber = check_number("ber", ber, low=0.0, high=1.0)
        self.fmt, self.seed = number_format(fmt), seed
        check_choice("count", count, COUNTS)
        self.count = count
        self._included = list(_included(model, include))
        if not self._included:
            raise StateError(f"{type(model).__name__} has no parameter that can have faults")
        self.names = [name for name, _ in self._included]
        self.flipped = 0
        self._before: list[tuple[nn.Parameter, Tensor]] = []

    def __enter__(self) -> BitFlipInjector:
        """Round and flip."""
        if self._before:
            raise StateError("the faults of this injector are in the model already")
        self.flipped = 0
        try:
            for name, parameter in self._included:
                self._before.append((parameter, parameter.detach().clone()))
                self._inject(name, parameter)
        except BaseException:
            self._restore()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put every parameter back."""
        self._restore()

    def _restore(self) -> None:
        with torch.no_grad():
            for parameter, before in self._before:
                parameter.copy_(before)
        self._before.clear()

    @torch.no_grad()
    def _inject(self, name: str, parameter: nn.Parameter) -> None:
        flat = parameter.detach().flatten()
        unit = self.fmt.unit(flat)
        stored = self.fmt.decode(self.fmt.encode(flat, unit), unit)
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed}/{name}".encode()))
        bits = fault_bits(parameter.numel() * self.fmt.bits, self.ber, self.count, generator)
        self.flipped += len(bits)
        where, mask = words_of(bits, self.fmt.bits)
        where, mask = where.to(flat.device), mask.to(flat.device)
        stored[where] = self.fmt.decode(self.fmt.flip(self.fmt.encode(flat[where], unit), mask), unit)
        parameter.copy_(stored.reshape(parameter.shape))


def _included(model: nn.Module, include: Include | None) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters that can have faults, every parameter once."""
    layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    for name, parameter in model.named_parameters():
        if include is not None:
            wanted = include(name, parameter)
        else:
            owner = model.get_submodule(name.rpartition(".")[0])
            wanted = isinstance(owner, layers) or (isinstance(owner, ClippedReLU) and parameter.numel() > 1)
        if wanted and parameter.is_floating_point():
            yield name, parameter


def fault_bits(bits: int, ber: float, count: str, generator: torch.Generator) -> Tensor:
    """Which of ``bits`` bits are flipped, ascending, int64."""
    if count == "floor":
        drawn = torch.randint(max(bits, 1), (int(bits * ber),), generator=generator)
        hit, times = drawn.unique(return_counts=True)
        return hit[times % 2 == 1]
    total = torch.tensor(float(bits), dtype=torch.float64)
    number = int(torch.binomial(total, torch.tensor(ber, dtype=torch.float64), generator=generator))
    if number > bits // 4:
        return torch.randperm(bits, generator=generator)[:number].sort().values
    found = torch.empty(0, dtype=torch.int64)
    while len(found) < number:  # a few are drawn twice
        more = torch.randint(bits, (number - len(found),), generator=generator)
        found = torch.cat((found, more)).unique()
    return found


def words_of(bits: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Positions of bits in numbers of ``width`` bits -> which numbers, and a mask for each."""
    words, index = torch.div(bits, width, rounding_mode="floor").unique(return_inverse=True)
    # the bits of one number differ, so that their sum is their union
    return words, torch.zeros_like(words).index_add_(0, index, torch.ones_like(bits) << (bits % width))
