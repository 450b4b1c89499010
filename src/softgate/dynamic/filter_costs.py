"""What a network costs whose filters are switched sample by sample, in multiply-adds."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from softgate.errors import bad_value

__all__ = ["FilterCosts"]


def layer_multiply_adds(
    conv: nn.Conv2d, places: int, active: Tensor, inputs: Tensor, *, compat_floor_groups: bool = False
) -> Tensor:
    """Multiply-adds of ``conv`` for every sample.

    Args:
        conv: the convolution, dense or depthwise.
        places: of its output, height times width.
        active: (B,), how many filters run.
        inputs: (B,), how many channels of the input are not known to be zero.
        compat_floor_groups: count channels a filter as ``inputs // groups``, as the authors' code does, which makes
            depthwise convolutions free unless all inputs are there. A depthwise filter reads one channel.
    """
    size = conv.kernel_size[0] * conv.kernel_size[1]
    if conv.groups > 1 and not compat_floor_groups:
        return active * places * size
    return active * places * (inputs // conv.groups) * size


@dataclass(frozen=True)
class FilterCosts:
    """Mean multiply-adds of a sample, layer by layer.

    Attributes:
        names: of the dynamic convolutions.
        dense: (L,) int64, with all filters.
        active: (L,) float64, with the filters that the samples need, from the channels that they have.
        predictors: (L,) int64, of the predictors.
        rest: of everything else in the network.

    Paper: arXiv 2110.08232, FLOPs reduction; there the predictors are not counted.
    """

    names: tuple[str, ...]
    dense: Tensor
    active: Tensor
    predictors: Tensor
    rest: int

    @property
    def total(self) -> int:
        """Of the network without predictors and with all filters."""
        return int(self.dense.sum()) + self.rest

    @property
    def reduction(self) -> float:
        """Share of :attr:`total` that is saved, the predictors paid for."""
        return 1.0 - (float(self.active.sum()) + int(self.predictors.sum()) + self.rest) / self.total

    @property
    def layer_reduction(self) -> dict[str, float]:
        """Share of each layer that is saved, without its predictor."""
        saved = 1.0 - self.active / self.dense
        return dict(zip(self.names, saved.tolist(), strict=True))

    @property
    def overhead(self) -> float:
        """What the predictors add to :attr:`total`, as a share of it."""
        return int(self.predictors.sum()) / self.total


@dataclass(frozen=True)
class Wiring:
    """Where the dynamic convolutions of a network stand.

    Attributes:
        convs: name -> its convolution.
        sources: name -> the dynamic convolution whose channels it reads, None where it reads all of them.
        places: name -> height times width of its output.
        predictors: name -> multiply-adds of its predictor.
        total: multiply-adds of the dense network.
    """

    convs: dict[str, nn.Conv2d]
    sources: dict[str, str | None]
    places: dict[str, int]
    predictors: dict[str, int]
    total: int

    def sample_costs(self, active: dict[str, Tensor], *, compat_floor_groups: bool = False) -> dict[str, Tensor]:
        """Multiply-adds (B,) of every layer, for the numbers (B,) of filters that run in each, float64."""
        found = {}
        for name, conv in self.convs.items():
            count, source = active[name].double(), self.sources[name]
            inputs = count.new_full(count.shape, conv.in_channels) if source is None else active[source].double()
            found[name] = layer_multiply_adds(
                conv, self.places[name], count, inputs, compat_floor_groups=compat_floor_groups
            )
        return found

    def dense_costs(self) -> dict[str, int]:
        """Multiply-adds of every layer with all filters."""
        return {
            name: conv.weight.numel() * self.places[name]  # filters, channels a filter, size of the kernel
            for name, conv in self.convs.items()
        }

    def costs(self, active: dict[str, Tensor]) -> FilterCosts:
        """Mean costs of samples, as tensors (L,) of means ``active``: name -> (B,) multiply-adds."""
        import torch

        dense = torch.tensor(list(self.dense_costs().values()))
        means = torch.stack([active[name].mean() for name in self.convs]).double().cpu()
        predictors = torch.tensor([self.predictors[name] for name in self.convs])
        if means.isnan().any():
            bad_value("data", 0, "at least one sample")
        return FilterCosts(tuple(self.convs), dense, means, predictors, self.total - int(dense.sum()))
