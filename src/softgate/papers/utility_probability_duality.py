"""Utility-Probability Duality of Neural Networks: a reconstruction from the abstract."""

from __future__ import annotations

from typing import Any

from softgate.lab.paper import Cell, Claim, Paper, Plot, Scale
from softgate.lab.utility_training import measure_characters, measure_transduction

#: The specification's task: {0..11}^6, targets corrupted with probability 0.25, GRUs of width 96, Adam 2e-3.
_TASK = {"vocabulary": 12, "length": 6, "noise": 0.25, "width": 96, "batch": 128, "lr": 2e-3, "tested": 500}
_TEXT = {"layers": 2, "heads": 4, "embed": 64, "length": 64, "batch": 32, "lr": 3e-3}


def _cell(name: str, steps: int, **settings: Any) -> Cell:
    return Cell(name, {**_TASK, "steps": steps, **settings})


def _noises(steps: int) -> tuple[Cell, ...]:
    return tuple(_cell(f"noise-{noise:g}", steps, noise=noise) for noise in (0.0, 0.1, 0.25, 0.5))


def _text(steps: int, **settings: Any) -> Cell:
    return Cell("characters", {**_TEXT, "steps": steps, **settings}, measure=measure_characters)


PAPER = Paper(
    slug="utility-probability-duality",
    title="Utility-Probability Duality of Neural Networks (a reconstruction from the abstract)",
    arxiv="2305.14859",
    date="2023-05",
    code="none found",
    summary=(
        "A reconstruction: only the abstract and the first page were available, so maps, diagnostics and experiments "
        "are this project's own. The paper reads a softmax network trained by maximum likelihood as an ordinal "
        "utility, which is trusted for what it prefers, not for how probable it is. Rules that use the order alone "
        "(argmax, beams) then work where sampling does poorly, and turning the utility back into a probability "
        "repairs the rules that need one."
    ),
    methods=("losses.utility_to_probability",),
    measure=measure_transduction,
    claims=(
        Claim(
            id="order-is-right",
            statement="A model trained on noisy targets ranks the right answer first; its samples are mostly wrong.",
            paper_figure="greedy and beam search far above sampling (abstract, no number seen)",
            source="abstract; the task is this project's",
            relation='greedy["noise-0.25"] > 0.95 and sample["noise-0.25"] < 0.4',
            direction='gap["noise-0.25"] > 0.4',
            scales=("smoke", "laptop"),
        ),
        Claim(
            id="sampling-repaired",
            statement="With the utility turned back into a probability, fitted by a decision metric on a few clean "
            "pairs, sampling becomes as good as greedy decoding, which does not change.",
            paper_figure="double-digit improvements (abstract)",
            source="abstract; maps and task are this project's",
            relation='sample_power["noise-0.25"] > sample["noise-0.25"] + 0.5 and '
            'greedy_power["noise-0.25"] == greedy["noise-0.25"]',
            direction='sample_power["noise-0.25"] > sample["noise-0.25"] + 0.1',
            scales=("smoke", "laptop"),
            note="the map is a power, that is a temperature; new is what it is fitted by",
        ),
        Claim(
            id="minimum-bayes-risk",
            statement="Minimum Bayes risk over 16 samples, another rule that needs probabilities, gains as well or is "
            "perfect already.",
            paper_figure="double-digit improvements of probability-compatible rules (abstract)",
            source="abstract; maps and task are this project's",
            relation='mbr_power["noise-0.25"] >= mbr["noise-0.25"]',
            scales=("smoke", "laptop"),
        ),
        Claim(
            id="likelihood-does-not-see-it",
            statement="Fitted by likelihood on pairs as noisy as the training data, the same map changes nothing.",
            paper_figure="not in the paper (this project's control)",
            source="reconstruction",
            relation='beta_nll["noise-0.25"] < 1.2 < 1.5 < beta["noise-0.25"]',
            scales=("smoke", "laptop"),
        ),
        Claim(
            id="gap-grows-with-noise",
            statement="The gap between greedy decoding and sampling grows with the noise of the targets and with the "
            "length; without noise there is nothing to repair.",
            paper_figure="not in the paper (this project's control)",
            source="reconstruction",
            relation='gap["noise-0"] < gap["noise-0.1"] < gap["noise-0.25"] < gap["noise-0.5"] and '
            'gap["noise-0.25"] < gap["long"] and gain["noise-0"] < 0.01',
            direction='gap["noise-0"] < gap["noise-0.25"]',
            scales=("laptop",),
        ),
        Claim(
            id="noise-can-be-inverted",
            statement="Where the noise is known, taking its floor off the probabilities repairs sampling without any "
            "fit.",
            paper_figure="not in the paper (this project's reconstruction)",
            source="reconstruction",
            relation='sample_noise_inverse["noise-0.1"] > greedy["noise-0.1"] - 0.01 and '
            'sample_noise_inverse["noise-0.25"] > greedy["noise-0.25"] - 0.01 and '
            'sample_noise_inverse["noise-0.5"] > greedy["noise-0.5"] - 0.01',
            direction='sample_noise_inverse["noise-0.25"] > sample["noise-0.25"] + 0.1',
            scales=("laptop",),
        ),
        Claim(
            id="two-optima",
            statement="A character model has its best likelihood near beta = 1, while the accuracy of sampling rises "
            "with beta all the way: the two criteria ask for different probabilities.",
            paper_figure="not in the paper (this project's addition)",
            source="reconstruction",
            relation='0.9 < beta_nll["characters"] < 1.15 and smallest_rise["characters"] > 0',
            scales=("laptop", "paper"),
            note="tiny Shakespeare, a two-layer GPT",
        ),
    ),
    plots=(
        Plot("sampling", "lines", "sample_curve", "Exactly right samples", "beta_curve", "beta", "share of outputs",
             log="x"),
        Plot("rules", "bars", "greedy|sample|sample_power|mbr|mbr_power", "Exactly right outputs by rule",
             ylabel="share of outputs", cells=("noise-0.25",)),
        Plot("gap", "bars", "gap", "Greedy minus sampling", ylabel="share of outputs"),
        Plot("characters", "lines", "nll_curve|accuracy_curve", "Likelihood and sampling accuracy of characters",
             "beta_curve", "beta", "nats, share", cells=("characters",), log="x"),
    ),
    scales={
        "smoke": Scale(
            cells=(_cell("noise-0.25", 1200),),
            minutes=1.0,
            note="the specification's task with 1,200 updates, one seed",
        ),
        "laptop": Scale(
            cells=(
                *_noises(1500),
                _cell("long", 1500, length=12),
                _cell("wide", 1500, vocabulary=50),
                _text(300),
            ),
            minutes=6.0,
            note="one seed; of the grid of noise, vocabulary and length one axis at a time",
        ),
        "paper": Scale(
            cells=(
                *(
                    _cell(f"noise-{noise:g}-{size}-{length}", 5000, noise=noise, vocabulary=size, length=length)
                    for noise in (0.0, 0.1, 0.25, 0.5)
                    for size in (12, 50)
                    for length in (6, 12)
                ),
                _text(20_000, layers=6, heads=6, embed=384, length=256, batch=64, lr=1e-3),
            ),
            seeds=5,
            minutes=600.0,
            hardware="1 GPU",
            note="the whole grid with five seeds; translation needs a parallel corpus, which the project does not have",
        ),
    },
    notes=(
        "A reconstruction. The paper's equation that turns utilities into probabilities was not available: power, "
        "noise_inverse, rank and isotonic are this project's choices, and so are all tasks and thresholds. Only the "
        "direction (sampling gains two-digit amounts, greedy decoding stays) can be compared with the abstract.",
        "The power map is temperature scaling with temperature 1/beta; what is added is that it is fitted by a "
        "decision metric and the reading of which rules may use it.",
        "The maps act on every step: the product over the steps is not the transformed probability of the sequence.",
        "Exact match is the share of outputs without any wrong symbol; the fit maximises its expectation under "
        "sampling, which teacher-forced logits give without drawing.",
    ),
)  # fmt: skip
