"""FTWT: convolutions that predict, sample by sample, which of their filters will fire, and run only these."""

from __future__ import annotations

from typing import Any

from softgate.lab.filter_networks import VGG16
from softgate.lab.filter_speed import measure_filter_speed
from softgate.lab.filter_training import measure_filters
from softgate.lab.paper import Cell, Claim, Paper, Plot, Scale

__all__ = ["PAPER"]

_SMOKE: dict[str, Any] = {
    "dataset": "mnist", "side": 14, "sizes": {"train": 4000, "validation": 500, "calibration": 0, "test": 1000},
    "network": "stack", "widths": (16, 0, 32, 0, 64), "dense": {"steps": 125, "batch": 64, "lr": 0.05},
    "rs": [0.9], "epochs": 1, "warm_up": 60, "batch": 64, "lr": 0.01, "mode": "decoupled", "official": None,
    "static": False,
}  # fmt: skip
_LAPTOP: dict[str, Any] = {
    "dataset": "cifar10", "side": 16,
    "sizes": {"train": 25_000, "validation": 2000, "calibration": 0, "test": 5000},
    "network": "stack", "widths": (24, 24, 0, 48, 48, 0, 96, 96, 96), "dense": {"steps": 1200, "batch": 64, "lr": 0.1},
    "rs": [0.97, 0.95, 0.9], "epochs": 1, "warm_up": 100, "batch": 64, "lr": 0.01, "mode": "decoupled", "official": 0.9,
    "static": True,
}  # fmt: skip
_PAPER: dict[str, Any] = {
    "dataset": "cifar10", "side": None,
    "sizes": {"train": 45_000, "validation": 5000, "calibration": 0, "test": 10_000},
    "dense": {"steps": 70_400, "batch": 128, "lr": 0.1}, "epochs": 200, "warm_up": 150, "batch": 128, "lr": 0.01,
    "mode": "decoupled", "official": 0.9, "static": True,
}  # fmt: skip
_LAYER: dict[str, Any] = {"turns": 9, "layer": (128, 16, 0.25), "keep": None}
_SPEED: dict[str, Any] = {
    "turns": 9, "layer": (128, 16, 0.25), "network": "stack", "widths": VGG16, "side": 32, "keep": 0.58,
}  # fmt: skip

_CLAIMS = (
    Claim(
        id="budget-before-training",
        statement="What dynamic filters will save can be estimated on the dense network before any training.",
        paper_figure="one hyper-parameter r sets the budget",
        source="abstract; section on the ground-truth mask",
        relation='largest_estimate_error["images"] <= 0.08',
        per_scale={
            "smoke": 'largest_estimate_error["images"] <= 0.10',
            "paper": 'largest_estimate_error["vgg16"] <= 0.08',
        },
        note="Share of multiply-adds saved on test images beside the estimate from as many validation images; the "
        "predictors are counted.",
    ),
    Claim(
        id="masks-are-predictable",
        statement="A small head on the input of a layer finds which of its filters will fire most.",
        paper_figure="none as a number",
        source="section on the decision head",
        relation='smallest_mask_accuracy["images"] > 0.8',
        scales=("smoke", "laptop"),
        note="Share of filters about which predictors and targets agree on test images.",
    ),
    Claim(
        id="skipping-changes-nothing",
        statement="Computing only the filters that are needed gives what computing all and masking gives.",
        paper_figure="none: the authors' code masks",
        source="none: what must hold before speed means anything",
        relation='largest_skipping_differs["images"] < 1e-4',
        scales=("smoke", "laptop"),
        note="Largest difference of logits over 50 test images, in float32.",
    ),
    Claim(
        id="masks-follow-the-input",
        statement="The filters that run differ from input to input, with a head without softmax; with the softmax of "
        "the authors' head they do not in a short training.",
        paper_figure="none: the paper normalises with softmax",
        source="section on the decision head; the authors' code",
        relation='smallest_dynamic_fraction["images"] >= 0.3 and official_dynamic_fraction["images"] <= 0.05',
        direction='smallest_dynamic_fraction["images"] > official_dynamic_fraction["images"]',
        scales=("laptop",),
        note="Share of filters that run for some test images and not for others.",
    ),
    Claim(
        id="accuracy-is-kept",
        statement="A quarter of the multiply-adds or more can go for a small loss of accuracy.",
        paper_figure="CIFAR-10, VGG16-BN: 93.82 -> 93.73 at 56 % fewer FLOPs",
        source="table of CIFAR-10",
        relation='drop_at_quarter["images"] <= 0.03',
        direction='drop_at_quarter["images"] <= 0.06',
        scales=("laptop",),
        note="Against the dense network trained as long, the best of the shares that save a quarter.",
    ),
    Claim(
        id="vgg-at-half-the-cost",
        statement="VGG16-BN keeps its accuracy with half of the multiply-adds.",
        paper_figure="93.82 -> 93.73 at 56 % fewer FLOPs (r = 0.92, decoupled)",
        source="table of CIFAR-10",
        relation='drop_at_half["vgg16"] <= 0.005',
        scales=("paper",),
        note="Against the dense network trained as long, the best of the shares that save a half.",
    ),
    Claim(
        id="mobilenet-dead-filters",
        statement="In MobileNetV1, dropping only filters that do not fire at all saves more than half of the "
        "multiply-adds and costs no accuracy.",
        paper_figure="90.89 -> 91.06 at 78 % fewer FLOPs (r = 1)",
        source="table of CIFAR-10",
        relation='drop_at_three_fifths["mobilenet"] <= 0.003',
        scales=("paper",),
        note="At least 60 %: the authors' count takes depthwise convolutions for free unless all of their inputs are "
        "there.",
    ),
    Claim(
        id="a-layer-is-faster",
        statement="A convolution that computes a quarter of its filters from a quarter of its channels is faster, the "
        "gathering of weights included.",
        paper_figure="FLOPs only",
        source="not in the paper",
        relation='layer_speedup["layer"] > 1',
        per_scale={"laptop": 'layer_speedup["speed"] > 1'},
        scales=("smoke", "laptop"),
        timing=True,
        note="128 channels, 16×16, one sample, one thread.",
    ),
    Claim(
        id="savings-are-real",
        statement="Skipping filters makes a whole network faster for one sample.",
        paper_figure="FLOPs only",
        source="not in the paper",
        relation='speedup["speed"] >= 1.5 and masked["speed"] < 1.1',
        direction='speedup["speed"] > 1',
        scales=("laptop",),
        timing=True,
        note="VGG16-BN at 32×32 with predictors that let planned shares run, two thirds of the multiply-adds saved, "
        "beside the dense network with normalisation folded in, one thread. Masking alone saves nothing.",
    ),
)

_PLOTS = (
    Plot("accuracy", "lines", "accuracy", "Accuracy over what is saved: masks of every input", x="reduction",
         xlabel="share of multiply-adds saved", ylabel="accuracy on test images"),
    Plot("static", "lines", "static_accuracy", "Accuracy over what is saved: the same mask for all inputs",
         x="static_reduction", xlabel="share of multiply-adds saved", ylabel="accuracy on test images"),
    Plot("estimate", "lines", "estimate|reduction", "Saved multiply-adds: estimated before training, and found", x="r",
         xlabel="share r of the firing that targets keep", ylabel="share of multiply-adds saved"),
    Plot("dynamic", "lines", "dynamic_fraction|mask_accuracy", "Masks that follow the input", x="r",
         xlabel="share r of the firing that targets keep", ylabel="share of filters"),
    Plot("speed", "bars", "speedup|ideal|masked", "One sample through VGG16-BN beside the dense network",
         ylabel="times faster", cells=("speed",), reference={"dense": 1.0}),
)  # fmt: skip

PAPER = Paper(
    slug="fire-together-wire-together",
    title="Fire Together Wire Together: A Dynamic Pruning Approach with Self-Supervised Mask Prediction",
    arxiv="2110.08232",
    date="2021-10",
    venue="CVPR 2022",
    summary="Every convolution gets a small predictor that looks at the layer's input and says which filters are worth "
    "running for this sample. It learns by binary classification from the filters that really fired most, as many as "
    "together make up a share r of all firing. So one number sets the budget, and what it saves can be told before "
    "training.",
    claims=_CLAIMS,
    scales={
        "smoke": Scale(
            cells=(Cell("images", _SMOKE), Cell("layer", _LAYER, measure_filter_speed)),
            minutes=0.5,
            note="4,000 digits of MNIST at 14×14, three convolutions, two epochs dense and one dynamic.",
        ),
        "laptop": Scale(
            cells=(Cell("images", _LAPTOP), Cell("speed", _SPEED, measure_filter_speed)),
            minutes=7.0,
            note="CIFAR-10 averaged to 16×16, 25,000 training images, seven convolutions, batches of 64; 1,200 updates "
            "dense, then 391 for every network, dynamic, static and dense alike.",
        ),
        "paper": Scale(
            cells=(
                Cell("vgg16", {**_PAPER, "network": "stack", "widths": VGG16, "rs": [0.92, 0.85]}),
                Cell("vgg16-joint", {**_PAPER, "network": "stack", "widths": VGG16, "rs": [0.92, 0.88], "mode": "joint",
                                     "official": None}),
                Cell("resnet56", {**_PAPER, "network": "resnet", "blocks": 9, "rs": [0.88, 0.8]}),
                Cell("mobilenet", {**_PAPER, "network": "mobilenet", "rs": [1.0], "official": 1.0}),
            ),
            minutes=1500.0,
            hardware="1 GPU and CIFAR-10",
            note="200 epochs dense and 200 dynamic as in the paper, the rate of the network on a cosine, images "
            "mirrored but not cropped. ImageNet needs the user's data.",
        ),
    },
    measure=measure_filters,
    plots=_PLOTS,
    methods=("dynamic.topk_mass_mask", "dynamic.uniform_mask", "dynamic.mask_prediction_loss"),
    code="selkerdawy/FTWT",
    notes=(
        "The body of the paper was not available: definitions follow its abstract, poster and the authors' code.",
        "Predictors pool by maximum and do not normalise; the authors' code averages and takes a softmax over "
        "channels, which makes all entries about one over their number. It is run beside the others.",
        "Predictors are trained alone for some updates first: at random they drop half of the filters.",
        "The rate of the network falls along a cosine in place of three steps.",
        "Multiply-adds include predictors, classifier and layers that are not dynamic; depthwise convolutions are "
        "counted by what they compute, where the authors' code rounds them down to nothing.",
        "Dynamic masks are compared with static ones of the same mean numbers of filters; which is better is reported "
        "and not claimed.",
    ),
)  # fmt: skip
