"""Max-Former: spiking networks lose high frequencies, and max-pooling and early convolutions bring them back."""

from __future__ import annotations

from typing import Any

from softgate.lab.paper import Cell, Claim, Paper, Plot, Scale
from softgate.lab.spiking_training import measure_images, measure_mixers, measure_neurons

__all__ = ["PAPER"]

_NEURONS: dict[str, Any] = {
    "tau": 2.0, "layers": 3, "beta": 0.25, "threshold": 0.25, "kernel": 20, "amplitude": 1 / 3,
    "amplitudes": [0.2, 0.25, 0.3, 1 / 3, 0.4, 0.5, 0.7, 1.0],
}  # fmt: skip
_MIXERS: dict[str, Any] = {"side": 16, "images": 64, "dim": 32, "steps": 4, "layers": 4}
_SMALL: dict[str, Any] = {
    "dataset": "mnist", "side": 16, "sizes": {"train": 64, "validation": 1, "calibration": 1, "test": 200},
    "network": "max_former", "epochs": 10, "batch": 32, "lr": 1e-2, "weight_decay": 0.06,
    "options": {"dim": 16, "depths": [1, 1, 1], "steps": 2, "mlp_ratio": 2},
}  # fmt: skip
_LAPTOP: dict[str, Any] = {
    "dataset": "cifar10", "side": 16, "sizes": {"train": 4000, "validation": 1, "calibration": 1, "test": 2000},
    "network": "max_former", "epochs": 4, "batch": 64, "lr": 3e-3, "weight_decay": 0.06,
}  # fmt: skip
_PAPER: dict[str, Any] = {
    "dataset": "cifar10", "side": 32, "sizes": {"train": 49_998, "validation": 1, "calibration": 1, "test": 10_000},
    "epochs": 400, "batch": 128, "lr": 1.5e-3, "weight_decay": 0.06, "smoothing": 0.1, "precision": "bf16",
}  # fmt: skip
_PLAIN = ["orig", "orig", "orig"]
_POOLED = ["orig", "max", "max"]
_HYBRID = ["identity", "dwc3", "ssa"]


def _neurons() -> Cell:
    return Cell("neurons", _NEURONS, measure=measure_neurons, seeds=1)


def _mixers(dataset: str) -> Cell:
    return Cell("mixers", {**_MIXERS, "dataset": dataset}, measure=measure_mixers)


def _small(name: str, embeds: list[str], mixers: list[str], seeds: int | None = None) -> Cell:
    options = {"dim": 64, "depths": [1, 1, 1], "steps": 2, "mlp_ratio": 2, "embeds": embeds, "mixers": mixers}
    return Cell(name, {**_LAPTOP, "options": options}, seeds=seeds)


def _large(name: str, network: str, **options: Any) -> Cell:
    return Cell(name, {**_PAPER, "network": network, "options": {"steps": 4, **options}})


_CLAIMS = (
    Claim(
        id="low-pass",
        statement="Below threshold the membranes of L layers are a low-pass filter in time, the closed form to the "
        "power of L.",
        paper_figure="a theorem",
        source="section 3",
        relation='impulse_error["neurons"] < 1e-9',
        note="The response to an impulse, layer by layer, in float64, beside the transfer function.",
    ),
    Claim(
        id="spikes-lose-high-frequencies",
        statement="Of a sum of three sines, spikes keep less of the highest frequency than ReLU does.",
        paper_figure="a figure of spectra (figures not seen as numbers)",
        source="section 3",
        relation='spikes_300["neurons"] < relu_300["neurons"]',
        note="Amplitude at 300 Hz over that at 100 Hz; the mean of three sines, threshold 0.25.",
    ),
    Claim(
        id="at-any-strength",
        statement="They do so however strong the input is.",
        paper_figure="not varied",
        source="not in the paper",
        relation='excess["neurons"] < 0',
        scales=("laptop", "paper"),
        note="Amplitudes from 0.2 to 1 for each sine, with the threshold left at 0.25.",
    ),
    Claim(
        id="max-above-mean",
        statement="Spike maps keep more of their high spatial frequencies behind max-pooling than behind mean-pooling.",
        paper_figure="a figure of spectra",
        source="section 3",
        relation='max["mixers"] > avg["mixers"]',
    ),
    Claim(
        id="max-is-high-pass",
        statement="Max-pooling is a high-pass filter: behind it the share of high frequencies is larger than before.",
        paper_figure="a figure of spectra",
        source="section 3, where it is called a high-pass operator",
        relation='max["mixers"] > identity["mixers"]',
        scales=("laptop", "paper"),
        note="With stride 1 it is a low-pass beside no pooling at all, and high-pass beside mean-pooling only.",
    ),
    Claim(
        id="smoother-features",
        statement="Features of images behind layers of spiking neurons have less at high spatial frequencies than "
        "behind the same layers with ReLU.",
        paper_figure="figures of features and spectra",
        source="introduction",
        relation='rates["mixers"] < relu["mixers"]',
        scales=("laptop", "paper"),
        note="Random layers; the theory is about time, and thresholds add edges in space.",
    ),
    Claim(
        id="learns",
        statement="A small Max-Former learns.",
        paper_figure="not comparable",
        source="algorithm",
        relation='last_loss["tiny"] < first_loss["tiny"]',
        scales=("smoke",),
    ),
    Claim(
        id="max-beats-mean",
        statement="With everything else the same, max-pooling as the token mixer classifies better than mean-pooling.",
        paper_figure="76.73 % -> 79.12 % on CIFAR-100",
        source="introduction; table 4",
        relation='accuracy["max"] > accuracy["avg"] + 0.01',
        direction='accuracy["max"] > accuracy["avg"]',
        scales=("laptop",),
        note="CIFAR-10 at 16x16 pixels, 4,000 images, four epochs.",
    ),
    Claim(
        id="hybrid-beats-pools",
        statement="Max-pooled embeddings with identity, convolution and attention as mixers beat pooling alone.",
        paper_figure="82.65 % beside 79.12 % on CIFAR-100",
        source="tables 4 and 7",
        relation='accuracy["max_former"] > max(accuracy["max"], accuracy["avg"], accuracy["identity"])',
        direction='accuracy["max_former"] > max(accuracy["avg"], accuracy["identity"])',
        scales=("laptop",),
        note="It has more parameters: 'parameters' in the record.",
    ),
    Claim(
        id="accuracy-cifar10",
        statement="Max-Former and Max-ResNet-18 reach the published accuracies on CIFAR-10.",
        paper_figure="97.04 % and 97.17 %, best epoch on the test images; 96.79 % after the last for Max-Former",
        source="tables 2 and 5",
        relation='best_accuracy["max_former"] > 0.965 and best_accuracy["max_resnet"] > 0.965',
        direction='best_accuracy["max_resnet"] > best_accuracy["ms_resnet"]',
        scales=("paper",),
    ),
)

PAPER = Paper(
    slug="max-former",
    title="Spiking Neural Networks Need High Frequency Information",
    arxiv="2505.18608",
    date="2025-05",
    venue="NeurIPS 2025",
    code="bic-L/MaxFormer",
    summary=(
        "Spiking networks fall behind others not because spikes are binary, it says, but because the neurons are "
        "low-pass filters, so that features lose their high frequencies from layer to layer. Max-pooling between the "
        "stages and depth-wise convolutions in place of early self-attention bring them back: Max-Former reaches "
        "82.39 % on ImageNet with 64 million parameters and four steps, and Max-ResNet-18 97.17 % on CIFAR-10."
    ),
    claims=_CLAIMS,
    scales={
        "smoke": Scale(
            cells=(_neurons(), _mixers("mnist"), Cell("tiny", _SMALL)),
            minutes=0.3,
            note="spectra of random layers on digits, and a network of 16 channels on 64 digits",
        ),
        "laptop": Scale(
            cells=(
                _neurons(),
                _mixers("cifar10"),
                _small("avg", _PLAIN, ["avg"] * 3),
                _small("max", _PLAIN, ["max"] * 3),
                _small("identity", _PLAIN, ["identity"] * 3, seeds=1),
                _small("max_former", _POOLED, _HYBRID, seeds=1),
            ),
            seeds=2,
            minutes=6.0,
            note="CIFAR-10 at 16x16 pixels, 4,000 training and 2,000 test images, 64 channels, two steps, four epochs; "
            "two seeds for what is compared first, one for the rest",
        ),
        "paper": Scale(
            cells=(
                _neurons(),
                _mixers("cifar10"),
                _large("max_former", "max_former"),
                _large("max_resnet", "max_resnet"),
                _large("ms_resnet", "max_resnet", halving="stride"),
            ),
            seeds=1,
            minutes=10_000.0,
            hardware="one GPU for about a week",
            note="CIFAR-10 with four steps and 400 epochs; of the paper's augmentation only mirroring and label "
            "smoothing; the time is an estimate",
        ),
    },
    measure=measure_images,
    plots=(
        Plot("gain", "lines", "gain_1|gain_2|gain_4", "Gain of one, two and four layers below threshold", x="w",
             xlabel="cycles per step", ylabel="gain", cells=("neurons",)),
        Plot("sines", "lines", "curve_spikes|curve_relu", "300 Hz beside 100 Hz", x="strength",
             xlabel="amplitude of each sine", ylabel="ratio of amplitudes", cells=("neurons",)),
        Plot("mixers", "bars", "identity|max|avg", "High frequencies of spike maps behind mixers",
             ylabel="share beyond 0.25 cycles per pixel", cells=("mixers",)),
        Plot("layers", "lines", "curve_rates|curve_relu", "High frequencies behind random layers", x="layer",
             xlabel="layer", ylabel="share beyond 0.25 cycles per pixel", cells=("mixers",)),
        Plot("accuracy", "bars", "accuracy", "Test accuracy after the last epoch", ylabel="accuracy"),
        Plot("training", "lines", "curve_accuracy", "Test accuracy while training", x="epoch", xlabel="epoch",
             ylabel="accuracy"),
        Plot("energy", "bars", "microjoules", "Energy of one image by the estimate of the field", ylabel="µJ"),
    ),
    methods=("activations.lif", "diagnostics.high_frequency_ratio", "diagnostics.relative_log_amplitude"),
    notes=(
        "Neurons reset to 0 as in the released code; the paper's eq. 3 subtracts the threshold, which `reset=\"soft\"` "
        "does. Parameters of all released sizes agree with the published numbers.",
        "The paper's accuracies are those of the best epoch on the test images; here the last epoch is compared, and "
        "the best is in the record.",
        "Sines are smoothed by an exponential of 20 samples, cut after as many: this project's reading.",
        "Training batches are drawn with replacement and mirrored at random; the rate rises for a tenth of the steps "
        "and falls along a cosine to 0, in the place of the one-cycle schedule.",
        "CIFAR-100, ImageNet and event data are measured at no scale here; the models for them are built.",
    ),
)  # fmt: skip
