"""JEI-DNN: exits of a frozen network and the small gates that choose among them, learned together."""

from __future__ import annotations

from typing import Any

from softgate.lab.exit_training import measure_exits, measure_speed
from softgate.lab.paper import Cell, Claim, Paper, Plot, Scale

__all__ = ["PAPER"]

_SMOKE: dict[str, Any] = {
    "dataset": "mnist", "side": None, "sizes": {"train": 6000, "validation": 1000, "calibration": 1000, "test": 2000},
    "network": "mlp", "width": 64, "blocks": 4, "backbone": {"steps": 188, "batch": 64, "lr": 2e-3},
    "lams": [0.0, 0.3, 1.0, 3.0], "epochs": 8, "warmup_epochs": 2, "swap_every": 12, "batch": 128,
}  # fmt: skip
_LAPTOP: dict[str, Any] = {
    "dataset": "cifar10", "side": 16,
    "sizes": {"train": 25_000, "validation": 5000, "calibration": 5000, "test": 10_000},
    "network": "cnn", "width": 16, "backbone": {"steps": 1000, "batch": 128, "lr": 4e-3},
    "lams": [0.0, 0.1, 0.6, 1.5], "epochs": 10, "warmup_epochs": 4, "swap_every": 200, "batch": 64,
}  # fmt: skip
_PAPER: dict[str, Any] = {
    "dataset": "cifar10", "side": 224,
    "sizes": {"train": 45_000, "validation": 2500, "calibration": 2500, "test": 10_000},
    "network": "timm", "model": "deit_tiny_patch16_224", "weights": "timm/deit_tiny_patch16_224.safetensors",
    "backbone": {"steps": 7000, "batch": 128, "lr": 5e-4},
    "lams": [0.01, 0.1, 0.5, 0.7, 1.0, 2.0, 4.0, 9.0], "epochs": 15, "warmup_epochs": 6, "swap_every": 200, "batch": 64,
}  # fmt: skip
_SPEED: dict[str, Any] = {
    "width": 32, "side": 32, "shares": (0.35, 0.25, 0.15, 0.1, 0.05), "batches": (64, 256), "turns": 7,
}  # fmt: skip

_CLAIMS = (
    Claim(
        id="price-sets-cost",
        statement="The price of computation sets the mean cost: the higher it is, the earlier samples leave.",
        paper_figure="curves over lambda from 0.01 to 9",
        source="figures of accuracy over multiply-adds",
        relation='smallest_drop["images"] > 0 and cost_span["images"] >= 0.25',
        direction='cost_span["images"] > 0',
        note="Prices of 0, 0.1, 0.6 and 1.5 at laptop scale. At smoke scale they are 0, 0.3, 1 and 3, the digits so "
        "easy that 0.3 already sends all out at the first exit.",
    ),
    Claim(
        id="modes-agree",
        statement="Dropping samples that have left, keeping them and running one by one give the same predictions.",
        paper_figure="none",
        source="none: what must hold before speed means anything",
        relation='modes_differ["images"] < 1e-4',
        scales=("smoke", "laptop"),
        note="Largest difference of logits, in float32.",
    ),
    Claim(
        id="above-thresholds",
        statement="At equal mean cost, jointly learned exits and gates classify better than confidence thresholds on "
        "heads that were trained without gates.",
        paper_figure="curves above the baselines on CIFAR-10, CIFAR-100 and SVHN (figures not seen as numbers)",
        source="figures of accuracy over multiply-adds",
        relation='mean_gain_thresholds["images"] >= 0 and mean_gain_supervised["images"] >= 0',
        direction='mean_gain_thresholds["images"] >= 0 or mean_gain_supervised["images"] >= 0',
        scales=("laptop", "paper"),
        note="Mean over prices and seeds. In a pilot of the same kind the gain was 0.4 points.",
    ),
    Claim(
        id="better-calibrated",
        statement="What leaves through learned gates is better calibrated than what leaves by thresholds.",
        paper_figure="lower ECE (figures not seen as numbers)",
        source="section on calibration",
        relation='mean_ece["images"] <= mean_ece_thresholds["images"]',
        scales=("laptop", "paper"),
        note="15 bins of equal mass, at equal mean cost, mean over prices and seeds.",
    ),
    Claim(
        id="smaller-sets",
        statement="Conformal sets with a threshold for each exit are smaller than with confidence thresholds, at the "
        "same coverage.",
        paper_figure="smaller sets (figures not seen as numbers)",
        source="section on conformal prediction",
        relation='mean_set_size["images"] <= mean_set_size_thresholds["images"] and mean_coverage["images"] > 0.94',
        direction='mean_set_size["images"] <= mean_set_size_supervised["images"]',
        scales=("laptop", "paper"),
        note="95 % coverage; the thresholds have the gates' mean cost on validation samples.",
    ),
    Claim(
        id="savings-are-real",
        statement="Dropping samples that have left makes whole batches faster nearly as much as they cost less.",
        paper_figure="multiply-adds only",
        source="not in the paper",
        relation='of_ideal_256["speed"] >= 0.7 and masked_256["speed"] < 1.1',
        direction='speedup_256["speed"] > 1.2',
        scales=("laptop",),
        timing=True,
        note="Six convolutional blocks at 32×32 with gates that let out planned shares; ideal is one over the mean "
        "cost. Without dropping rows nothing is saved.",
    ),
)

_PLOTS = (
    Plot("accuracy", "lines", "accuracy|accuracy_thresholds|accuracy_supervised", "Accuracy at equal cost",
         x="cost", xlabel="mean cost, share of the whole network", ylabel="accuracy on test images",
         cells=("images",)),
    Plot("cost", "lines", "cost", "What a price of computation does", x="lam", xlabel="price of the whole network",
         ylabel="mean cost", cells=("images",)),
    Plot("calibration", "lines", "ece|ece_thresholds|ece_supervised", "Calibration at equal cost", x="cost",
         xlabel="mean cost", ylabel="expected calibration error", cells=("images",)),
    Plot("exits", "lines", "exit_accuracy", "Each exit alone", x="exit_cost", xlabel="cost of the exit",
         ylabel="accuracy", cells=("images",)),
    Plot("speed", "bars", "speedup_64|speedup_256|masked_256|ideal_256", "Inference beside all stages",
         ylabel="times faster", cells=("speed",), reference={"all stages": 1.0}),
)  # fmt: skip

PAPER = Paper(
    slug="jei-dnn",
    title="Jointly-Learned Exit and Inference for a Dynamic Neural Network",
    arxiv="2310.09163",
    date="2023-10",
    venue="ICLR 2024",
    summary="A classifier and a gate of five parameters stand at every block of a frozen network. The gates model with "
    "which probability a sample leaves where; classifiers and gates are trained in turns for accuracy plus a price of "
    "computation. That takes away the mismatch between training all exits on all samples and letting a threshold "
    "choose among them later.",
    claims=_CLAIMS,
    scales={
        "smoke": Scale(
            cells=(Cell("images", _SMOKE),),
            minutes=0.5,
            note="6,000 digits of MNIST, a residual MLP of four blocks, eight epochs of 47 updates.",
        ),
        "laptop": Scale(
            cells=(Cell("images", _LAPTOP), Cell("speed", _SPEED, measure_speed, seeds=1)),
            seeds=3,
            minutes=6.0,
            note="CIFAR-10 averaged to 16×16, 25,000 training images, a convolutional network of six blocks in place "
            "of a vision transformer.",
        ),
        "paper": Scale(
            cells=(Cell("images", _PAPER),),
            seeds=10,
            minutes=600.0,
            hardware="1 GPU, CIFAR-10, and ImageNet weights in $SOFTGATE_DATA/timm/deit_tiny_patch16_224.safetensors",
            note="DeiT-Ti of timm, which has no T2T-ViT, fine-tuned on CIFAR-10 at 224×224, exits after blocks 1 to "
            "11. The paper also uses CIFAR-100, SVHN and long-tailed versions.",
        ),
    },
    measure=measure_exits,
    plots=_PLOTS,
    methods=(
        "dynamic.exit_probabilities",
        "dynamic.exit_level",
        "dynamic.uncertainty_features",
        "dynamic.exit_inference_loss",
        "dynamic.exit_gate_loss",
    ),
    code="networkslab/dynn",
    notes=(
        "The body of the paper was not available: the objective follows its abstract, its reviews and the authors' "
        "code.",
        "The authors' code divides the exit probabilities away again in the classifiers' loss, whose value and "
        "gradient then equal those of the plain mean over exits. Here the probabilities weigh the losses; "
        'weighting="uniform" is what that code computes.',
        "Its weight of positive targets counts another event than the targets do, and pushes all gates open. Here it "
        'is 1; pos_weight="official" is what that code does.',
        "A quotient 0/0 in its exit rule is avoided by the equivalent inequality.",
        "Thresholds are chosen on validation images for 61 exit budgets; between two of them the figures at equal cost "
        "are interpolated.",
    ),
)
