"""Fourier Head: a head for ordered bins whose probabilities are those of a truncated Fourier series density."""

from __future__ import annotations

from typing import Any

from softgate.lab.binned_training import measure_binned_density
from softgate.lab.paper import Cell, Claim, Paper, Plot, Scale

#: How often the paper's sweep over frequencies is sampled.
_SWEEP = (2, 6, 12, 20)


def _cell(dataset: str, head: str, epochs: int, batch: int = 32, seeds: int | None = None, **options: Any) -> Cell:
    name = head + "".join(str(options[key]) for key in ("frequencies",) if key in options)
    name += "-small-init" if "init_scale" in options else ""
    config = {"dataset": dataset, "head": head, "epochs": epochs, "batch": batch, **options}
    return Cell(f"{dataset}-{name}", config, seeds=seeds)


def _study(epochs: int, datasets: tuple[str, ...], frequencies: tuple[int, ...], few: int | None) -> tuple[Cell, ...]:
    """Linear and Fourier heads with all seeds; sweep, mixture and initialisation with ``few``."""
    cells = [_cell(d, h, epochs, **o) for d in datasets for h, o in (("linear", {}), ("fourier", {"frequencies": 12}))]
    cells += [
        _cell("gmm2", "fourier", epochs, seeds=few, frequencies=frequency)
        for frequency in frequencies
        if frequency != 12
    ]
    cells += [_cell(dataset, "gmm", epochs, seeds=few) for dataset in datasets]
    cells += [_cell("gmm2", "fourier", epochs, seeds=few, frequencies=12, init_scale=0.01)]
    return tuple(cells)


def _closer(dataset: str) -> str:
    return f'kl["{dataset}-fourier12"] < kl["{dataset}-linear"]'


_CLAIMS = (
    Claim(
        id="closer-to-the-truth",
        statement="On a conditional mixture of two Gaussians the Fourier head's distributions are closer to the true "
        "ones than those of a linear head.",
        paper_figure="KL 0.146 against 0.238 (4 seeds, 500 epochs)",
        source="table of toy results, GMM-2; saved metrics of the authors' code",
        relation='kl["gmm2-fourier12"] < kl["gmm2-linear"] - 0.04',
        direction=_closer("gmm2"),
        per_scale={"smoke": _closer("gmm2")},
    ),
    Claim(
        id="closer-to-the-truth-beta",
        statement="The same on a two-sided beta distribution.",
        paper_figure="KL 0.191 against 0.234 (4 seeds, 500 epochs)",
        source="table of toy results, beta; saved metrics of the authors' code",
        relation='kl["beta-fourier12"] < kl["beta-linear"] - 0.04',
        direction=_closer("beta"),
        scales=("laptop", "paper"),
    ),
    Claim(
        id="smoother",
        statement="They are smoother.",
        paper_figure="smoothness 0.038 against 0.068 (GMM-2), 0.076 against 0.127 (beta); lower is smoother",
        source="table of toy results; smoothness metric",
        relation='smoothness["gmm2-fourier12"] < 0.6 * smoothness["gmm2-linear"] and '
        'smoothness["beta-fourier12"] < 0.6 * smoothness["beta-linear"]',
        direction='smoothness["gmm2-fourier12"] < smoothness["gmm2-linear"] and '
        'smoothness["beta-fourier12"] < smoothness["beta-linear"]',
        scales=("laptop", "paper"),
    ),
    Claim(
        id="smoother-once",
        statement="On the mixture they are smoother after a short training already.",
        paper_figure="smoothness 0.038 against 0.068 (500 epochs)",
        source="table of toy results",
        relation='smoothness["gmm2-fourier12"] < 0.7 * smoothness["gmm2-linear"]',
        direction='smoothness["gmm2-fourier12"] < smoothness["gmm2-linear"]',
        scales=("smoke",),
    ),
    Claim(
        id="frequencies-and-smoothness",
        statement="The more frequencies, the less smooth the distributions: the theorem on smoothness.",
        paper_figure="smoothness grows with N (curve)",
        source="theorem on smoothness; figure over frequencies",
        relation=" < ".join(f'smoothness["gmm2-fourier{n}"]' for n in _SWEEP),
        direction='smoothness["gmm2-fourier2"] < smoothness["gmm2-fourier20"]',
        scales=("laptop", "paper"),
    ),
    Claim(
        id="frequencies-and-fit",
        statement="With too few frequencies the fit is bad; from some number on more of them gain little.",
        paper_figure="KL falls with N, then stays (curve)",
        source="figure over frequencies",
        relation='kl["gmm2-fourier2"] > kl["gmm2-fourier6"] > kl["gmm2-fourier12"] and '
        'abs(kl["gmm2-fourier20"] - kl["gmm2-fourier12"]) < 0.25 * (kl["gmm2-fourier2"] - kl["gmm2-fourier12"])',
        direction='kl["gmm2-fourier2"] > kl["gmm2-fourier12"]',
        scales=("laptop", "paper"),
    ),
    Claim(
        id="present-default-initialisation",
        statement="The head is closer to the truth than a linear one with the present default of the authors' code, "
        "which divides the initial weights by 100.",
        paper_figure="not in the paper: its saved results come out with undivided weights",
        source="default arguments of the authors' code",
        relation='kl["gmm2-fourier12-small-init"] < kl["gmm2-linear"]',
        scales=("laptop", "paper"),
        note="the density does not depend on the scale of the coefficients, but Adam's steps are 100 times larger "
        "relative to them at first",
    ),
)

_PLOTS = (
    Plot("kl", "bars", "kl", "Distance from the true distributions", ylabel="KL(truth || prediction), nats"),
    Plot("smoothness", "bars", "smoothness", "Smoothness of the predicted distributions", ylabel="lower is smoother"),
    Plot(
        "training",
        "lines",
        "curve_kl",
        "Distance from the truth while training",
        x="epoch",
        xlabel="epoch",
        ylabel="KL, nats",
        cells=("gmm2-linear", "gmm2-fourier12", "gmm2-fourier12-small-init", "gmm2-gmm"),
        log="y",
    ),
    Plot(
        "one_row",
        "lines",
        "truth|prediction",
        "One test row: the true distribution and the predicted one",
        xlabel="bin",
        ylabel="probability",
        cells=("gmm2-linear", "gmm2-fourier12"),
    ),
)

PAPER = Paper(
    slug="fourier-head",
    title="Fourier Head: Helping Large Language Models Learn Complex Probability Distributions",
    arxiv="2410.22269",
    date="2024-10",
    venue="ICLR 2025",
    code="nate-gillman/fourier-head",
    summary=(
        "A linear layer with softmax over bins of a continuous quantity knows nothing of their order and learns jagged "
        "distributions. The Fourier head learns the coefficients of a truncated Fourier series instead, whose squared "
        "modulus is a density, and gives every bin the density at its centre: neighbouring bins share what is learnt, "
        "and noise above the highest frequency cannot be fitted. It improves decision transformers on Atari and a "
        "foundation model of time series."
    ),
    claims=_CLAIMS,
    scales={
        "smoke": Scale(
            cells=(_cell("gmm2", "linear", 60, 64), _cell("gmm2", "fourier", 60, 64, frequencies=12)),
            minutes=0.5,
            note="60 of 500 epochs with twice the batch, one seed",
        ),
        "laptop": Scale(
            cells=_study(150, ("gmm2", "beta"), _SWEEP, few=1),
            seeds=3,
            minutes=6.0,
            note="150 of 500 epochs; three seeds for the comparisons, one for sweep, mixture and initialisation",
        ),
        "paper": Scale(
            cells=_study(500, ("gaussian", "gmm2", "beta"), tuple(range(2, 21, 2)), few=None),
            seeds=4,
            minutes=90.0,
            hardware="a machine with many cores: 76 trainings of a minute or two each",
            note="the toy study in full; the time is an estimate",
        ),
    },
    measure=measure_binned_density,
    plots=_PLOTS,
    methods=("losses.fourier_pmf", "losses.fourier_log_pmf"),
    notes=(
        "Measured is the paper's study of distributions whose truth is known. Decision transformers on Seaquest (+46 % "
        "returns) and time-series models on 20 benchmarks (+3.5 %) are not measured at any scale here.",
        "As in the authors' code the inputs are bin numbers from 0 to 49, not scaled, and the true distribution is "
        "that of the numbers before they were binned. Data and split are drawn anew for every seed; the authors keep "
        "one split.",
        "The head here computes |A|², the same number as the authors' sum over the autocorrelation; its initial "
        "weights are those of a linear layer, with which the authors' saved results come out.",
        "The Gaussian mixture head is shown for comparison: it wins where the truth is a Gaussian mixture.",
    ),
)
