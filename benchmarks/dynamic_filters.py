"""Dynamic filters: how much of the saving in multiply-adds becomes time, layer by layer and for whole networks.

    python benchmarks/dynamic_filters.py [--keeps 0.75,0.58,0.4] [--turns N] [--out DIR]

One thread, one sample at a time, candidates in turns. ``dense`` is the network (or the convolution) with normalisation
folded in; ``ideal`` is its time times the share of the multiply-adds that is left: the limit where arithmetic takes the
time. (Where reading the weights does, in layers of few places, it is the share of the filters.) ``masked`` computes all
filters and sets some to 0. ``predictors`` is the dense network with predictors that let all filters pass. Figures go to
DIR/benchmark-dynamic-filters.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from _timing import CONSOLE, table, write_record
from softgate.lab.filter_networks import VGG16
from softgate.lab.filter_speed import layer_candidates, network_candidates
from softgate.lab.filter_training import prepared_step
from softgate.lab.timing import interleaved, load_per_core

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
#: network -> its description and the side of its images
NETWORKS: dict[str, tuple[dict[str, Any], int]] = {
    "VGG16-BN": ({"network": "stack", "widths": VGG16}, 32),
    "ResNet-56": ({"network": "resnet", "blocks": 9}, 32),
    "MobileNetV1": ({"network": "mobilenet"}, 32),
}
#: channels and side of single convolutions
LAYERS = ((64, 32), (128, 16), (256, 8), (512, 4), (512, 2))
#: shares of the filters that run
KEEPS = [0.75, 0.58, 0.4]
LAYER_KEEPS = (0.75, 0.5, 0.25)


@torch.no_grad()
def network(name: str, keep: float, turns: int) -> dict[str, Any]:
    config, side = NETWORKS[name]
    model, runs = network_candidates(config, side, keep)
    reduction = model.dynamic_stats().reduction
    ms = {key: 1e3 * timing.best for key, timing in interleaved(runs, turns=turns).items()}
    return {
        "network": name,
        "keep": keep,
        "reduction": reduction,
        "ms": {**ms, "ideal": ms["dense"] * (1.0 - reduction)},
        "speedup": ms["dense"] / ms["skipping"],
        "overhead": ms["predictors"] / ms["dense"] - 1.0,
        "plans": sorted(set(model.plans.values())),
    }


@torch.no_grad()
def layer(width: int, side: int, keep: float, turns: int) -> dict[str, Any]:
    times = interleaved(layer_candidates(width, side, keep), turns=turns)
    ms = {key: 1e3 * timing.best for key, timing in times.items()}
    return {"width": width, "side": side, "keep": keep, "ms": {**ms, "ideal": ms["dense"] * keep**2}}


def training(turns: int, batch: int = 64) -> dict[str, Any]:
    """A training step of the network of the laptop scale, dense and dynamic."""
    runs = prepared_step((24, 24, 0, 48, 48, 0, 96, 96, 96), 16, batch)
    ms = {key: 1e3 * timing.best for key, timing in interleaved(runs, turns=turns).items()}
    return {"batch": batch, "ms": ms, "ratio": ms["dynamic"] / ms["dense"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--keeps", type=lambda text: [float(part) for part in text.split(",")], default=[0.75, 0.58, 0.4]
    )
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    networks = [network(name, keep, options.turns) for name in NETWORKS for keep in options.keeps]
    layers = [layer(*size, keep, options.turns) for size in LAYERS for keep in LAYER_KEEPS]
    step = training(options.turns)
    times = ("dense", "ideal", "skipping", "masked", "predictors")
    table(
        "one sample through networks with dynamic filters, ms (best)",
        ["network", "keep", "saved", *times, "speed-up", "predictors cost"],
        [
            [f["network"], f["keep"], f["reduction"], *(f["ms"][t] for t in times), f["speedup"], f["overhead"]]
            for f in networks
        ],
    )
    plans = [plan for plan in ("dense", "ideal", "bare", "native", "both", "rows", "pick") if plan in layers[0]["ms"]]
    table(
        "one 3×3 convolution on one sample, a share of filters and channels, ms (best)",
        ["channels", "side", "keep", *plans],
        [[f["width"], f["side"], f["keep"], *(f["ms"][plan] for plan in plans)] for f in layers],
    )
    CONSOLE.print(f"training step: {step['ratio']:.2f} times the dense one")
    CONSOLE.print(f"load per core {load_per_core():.2f}")
    write_record(
        options.out / "benchmark-dynamic-filters.json", {"networks": networks, "layers": layers, "training": [step]}
    )


if __name__ == "__main__":
    main()
