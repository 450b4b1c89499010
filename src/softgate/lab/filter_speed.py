"""How much of the multiply-adds that dynamic filters save becomes time: layers and whole networks, sample by sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn import functional as F

from softgate import native
from softgate.dynamic import DynamicConv2d, DynamicNetwork, MaskPredictor, _native_filters, prune_dynamic
from softgate.dynamic._gathered import Compact, run_filters
from softgate.lab.cell import CellRun
from softgate.lab.filter_networks import filter_network
from softgate.lab.timing import interleaved

__all__ = ["layer_candidates", "measure_filter_speed", "network_candidates", "plan_masks"]


@torch.no_grad()
def plan_masks(model: DynamicNetwork, x: Tensor, keep: float) -> None:
    """Give ``model`` predictors that let a share ``keep`` of the filters of every layer run, on average over ``x``.

    Which and how many they are differs from sample to sample: what all samples have in common is taken away.
    """
    model.eval()
    for layer in model.layers.values():
        head = layer.predictor
        assert isinstance(head, MaskPredictor)
        model(x)  # the layers before have their masks by now
        assert layer.last is not None
        own = layer.last.logits - layer.last.logits.mean(0)
        limit = own.flatten().sort().values[min(own.numel() - 1, round((1.0 - keep) * own.numel()))]
        head.linear.bias.sub_(layer.last.logits.mean(0) + limit)
    model.eval()


def cycled(function: Callable[[Tensor], object], x: Tensor) -> Callable[[], None]:
    """A function that runs ``function`` on the next sample of ``x`` at every call."""
    samples, place = x.split(1), [0]

    def step() -> None:
        place[0] = (place[0] + 1) % len(samples)
        function(samples[place[0]])

    return step


def network_candidates(
    config: Mapping[str, Any], side: int, keep: float, samples: int = 8
) -> tuple[DynamicNetwork, dict[str, Callable[[], object]]]:
    """A dynamic network of random weights, and what to time, one sample at a time.

    ``dense``: the network with normalisation folded in; ``masked``: all filters, then zeros; ``skipping``: only what is
    needed; ``predictors``: the dense network with predictors that let all filters pass.
    """
    torch.manual_seed(0)
    net = filter_network(config, 3, 10).eval()
    x = torch.randn(samples, 3, side, side)
    model = prune_dynamic(net, 0.9, x[:1])
    plan_masks(model, x, keep)
    model(x)
    model.tune(x[:2])
    everything = prune_dynamic(net, 0.9, x[:1]).eval()
    for layer in everything.layers.values():
        nn.init.constant_(layer.predictor.linear.bias, 1e6)  # type: ignore[union-attr, arg-type]
    return model, {
        "dense": cycled(fuse(net), x),
        "masked": cycled(model, x),
        "skipping": cycled(model.infer, x),
        "predictors": cycled(lambda sample: everything.infer(sample, "dense"), x),
    }


@torch.no_grad()
def layer_candidates(width: int, side: int, keep: float) -> dict[str, Callable[[], object]]:
    """One 3×3 convolution on one sample: ``dense``, and a share ``keep`` of filters and channels.

    ``native`` (where it is there), ``both`` and ``rows`` are plans of :meth:`softgate.dynamic.DynamicNetwork.infer`,
    ``pick`` is its plan ``"dense"``; ``bare`` is the convolution on weights that were gathered before.
    """
    generator = torch.Generator().manual_seed(0)
    layer = DynamicConv2d(nn.Conv2d(width, width, 3, padding=1)).eval()
    count = max(1, round(keep * width))
    which, index = (torch.randperm(width, generator=generator)[:count].sort().values for _ in range(2))
    state = Compact(torch.randn(1, count, side, side), which, width)
    full, folded = state.spread(), layer.folded()
    small = folded.weight[index][:, which].contiguous()

    def planned(plan: str) -> Callable[[], object]:
        return lambda: run_filters(layer.conv, folded, state, index, plan)

    return {
        "dense": lambda: F.conv2d(full, layer.conv.weight, layer.conv.bias, padding=1),
        "bare": lambda: F.conv2d(state.x, small, padding=1),
        **({"native": lambda: _native_filters.run(layer.conv, folded, state, index)} if native.available() else {}),
        "both": planned("both"),
        "rows": planned("rows"),
        "pick": planned("dense"),
    }


@torch.no_grad()
def measure_filter_speed(run: CellRun) -> dict[str, float]:
    """Times of one sample, as ratios.

    Args:
        run: its ``config`` holds ``turns``, ``layer`` (width, side and share to keep of one convolution), and, for a
            whole network, ``network`` and its options, ``side`` and ``keep`` (None leaves it out).

    Returns:
        ``layer_speedup`` of computing only the share of filters from only the share of channels, beside the dense
        convolution, and ``layer_ideal``; for the network ``reduction``, ``speedup`` beside the dense network with
        normalisation folded in, ``ideal``, one over what is left, ``of_ideal``, ``masked``, the speed-up of zeros, and
        ``overhead`` of the predictors.
    """
    config = run.config
    width, side, keep = config["layer"]
    times = interleaved(layer_candidates(width, side, keep), turns=config["turns"])
    fastest = min(times[plan].best for plan in ("native", "both", "rows") if plan in times)
    figures = {"layer_speedup": times["dense"].best / fastest, "layer_ideal": keep**-2}
    if config["keep"] is None:
        return figures
    model, runs = network_candidates(config, config["side"], config["keep"])
    reduction = model.dynamic_stats().reduction
    times = interleaved(runs, turns=config["turns"])
    ratio = {name: times["dense"].best / timing.best for name, timing in times.items()}
    return {
        **figures,
        "reduction": reduction,
        "ideal": 1.0 / (1.0 - reduction),
        "speedup": ratio["skipping"],
        "of_ideal": ratio["skipping"] * (1.0 - reduction),
        "masked": ratio["masked"],
        "overhead": 1.0 / ratio["predictors"] - 1.0,
    }
