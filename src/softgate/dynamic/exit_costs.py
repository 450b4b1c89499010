"""What each exit of a network costs, in multiply-adds, and what leaving there saves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from softgate.dynamic._state import count_rows
from softgate.errors import bad_type, bad_value

if TYPE_CHECKING:
    from softgate.dynamic.early_exit import EarlyExit

__all__ = ["ExitCosts", "measure_costs"]


@dataclass(frozen=True)
class ExitCosts:
    """Multiply-adds per sample, as counted by :func:`measure_costs`.

    Attributes:
        stages: (L + 1,) int64, the stages of the backbone.
        exits: (L + 1,) int64, pooling, head and gate of each exit; at the last place pooling and the final head.

    Paper: arXiv 2310.09163, section on the inference cost.
    """

    stages: Tensor
    exits: Tensor

    @property
    def cumulative(self) -> Tensor:
        """(L + 1,) int64: all that has run when a sample leaves at each exit."""
        return (self.stages + self.exits).cumsum(0)

    @property
    def relative(self) -> Tensor:
        """(L + 1,) float64: :attr:`cumulative` over that of the last exit, so that the last is 1."""
        return self.cumulative.double() / self.cumulative[-1].double()

    @property
    def overhead(self) -> float:
        """What heads and gates add to a pass through the whole backbone, as a share of it."""
        dense = self.stages.sum() + self.exits[-1]
        return float(self.exits[:-1].sum() / dense)

    def mean(self, level: Tensor) -> float:
        """Mean relative cost of samples that left at ``level``, (N,) int64 as of :func:`softgate.dynamic.exit_level`.

        Raises:
            ArgumentTypeError: not an int64 tensor.
            ArgumentValueError: no samples.
        """
        return mean_cost(self.relative, level)


def mean_cost(costs: Tensor, level: Tensor) -> float:
    """Mean of ``costs`` at the exits ``level``."""
    if not isinstance(level, Tensor) or level.dtype is not torch.int64:
        bad_type("level", level if not isinstance(level, Tensor) else level.dtype, "an int64 tensor")
    if level.numel() == 0:
        bad_value("level", tuple(level.shape), "of at least one sample")
    return float(costs.double().cpu()[level.cpu()].mean())


@torch.no_grad()
def measure_costs(model: EarlyExit, example: Any) -> ExitCosts:
    """Count the multiply-adds of every stage and every exit of ``model`` on ``example``.

    Counted are matrix products, convolutions and attention, as ``torch.utils.flop_counter`` finds them (half of its
    number); elementwise operations, normalisation and pooling are not. The relative costs become those of the model.

    Args:
        model: an :class:`softgate.dynamic.EarlyExit`.
        example: input of at least one sample; the cost is that of a sample of this size.

    Returns:
        :class:`ExitCosts`, per sample.

    Raises:
        ArgumentValueError: ``example`` is empty.

    Example:
        >>> from softgate.dynamic import EarlyExit
        >>> net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> model = EarlyExit.from_sequential(net, cuts=[2], example=torch.zeros(1, 8)).eval()
        >>> costs = measure_costs(model, torch.zeros(1, 8))
        >>> costs.stages.tolist(), costs.exits.tolist()
        ([64, 88], [28, 0])

    Paper: Jointly-Learned Exit and Inference for a Dynamic Neural Network, arXiv 2310.09163, section on the inference
    cost.
    """
    rows = count_rows(example, "example")
    if rows == 0:
        bad_value("example", 0, "an input of at least one sample")
    stages, exits = [], []
    modes = {module: module.training for module in model.modules()}
    model.eval()  # nothing may be learnt from an example: neither running statistics nor lazy shapes of one row
    try:
        state = example
        for place, stage in enumerate(model.stages):
            state, work = counted(lambda state=state, stage=stage: stage(state))  # type: ignore[misc]
            stages.append(work // rows)
            exits.append(counted(lambda state=state, place=place: _leave(model, state, place))[1] // rows)  # type: ignore[misc]
    finally:
        for module, mode in modes.items():
            module.training = mode
    costs = ExitCosts(torch.tensor(stages), torch.tensor(exits))
    model.set_costs(costs.relative, costs)
    return costs


def _leave(model: EarlyExit, state: Any, place: int) -> None:
    logits = model.classify(state, place)
    if place < len(model.gates):
        model.gates[place](logits)


def counted(run: Callable[[], Any]) -> tuple[Any, int]:
    """Result and multiply-adds of ``run``; attention is counted through its products, which every device has."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        result = run()
    return result, counter.get_total_flops() // 2
