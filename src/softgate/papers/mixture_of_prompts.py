"""Mixture of Prompt Learning: several soft prompts for a frozen CLIP, and a router that knows the image's style."""

from __future__ import annotations

from typing import Any

from softgate.lab.data.coop_splits import COOP_DATASETS
from softgate.lab.paper import Cell, Claim, Paper, Plot, Scale
from softgate.lab.prompt_benchmarks import measure_benchmark
from softgate.lab.prompt_styles import measure_styles

_ALL = ("coop", "single", "mocoop", "no_gate_loss", "no_text_loss")

#: Our own wording; the paper names the semantic groups and gives examples.
_GROUPS = [
    ["a photo of a {}", "a good photo of a {}"],
    ["a low resolution photo of a {}", "a blurry photo of a {}"],
    ["a close-up photo of a {}", "a cropped photo of a {}"],
    ["a dark photo of a {}", "a bright photo of a {}"],
    ["a drawing of a {}", "a painting of a {}", "a sketch of a {}"],
]
_BENCHMARK: dict[str, dict[str, Any]] = {
    "mocoop": {"templates": _GROUPS},
    "single": {"templates": [[template for group in _GROUPS for template in group]], "top_k": 1},
}


def _world(pretraining: int, methods: tuple[str, ...], steps: int, tested: int, seeds: int | None = None) -> Cell:
    config = {"pretraining": pretraining, "methods": list(methods), "steps": steps, "batch": 32, "tested": tested}
    return Cell(f"clip-{pretraining}", config, seeds=seeds)


def _benchmarks() -> tuple[Cell, ...]:
    # section on implementation and the configurations of the code: lr 0.032 at batch 32, 25 to 300 epochs by data set
    common = {"clip": "openai/clip-vit-base-patch16", "shots": 16, "epochs": 50, "batch": 32, "lr": 0.032, "warmup": 3}
    return tuple(
        Cell(f"{dataset}-{method}", {**common, "dataset": dataset, "options": options}, measure_benchmark)
        for dataset in COOP_DATASETS
        for method, options in _BENCHMARK.items()
    )


def _sum(method: str) -> str:
    return " + ".join(f'harmonic["{dataset}-{method}"]' for dataset in COOP_DATASETS)


_CLAIMS = (
    Claim(
        id="gate-loss-falls",
        statement="The router learns to choose the groups whose hard templates are nearest to the image.",
        paper_figure="not given",
        source="section on the hard-prompt-guided gating loss",
        relation='gate_loss_last_mocoop["clip-60"] < gate_loss_first_mocoop["clip-60"]',
        scales=("smoke",),
    ),
    Claim(
        id="router-finds-the-style",
        statement="After a few updates the router sends most images to the prompts of their style.",
        paper_figure="not given",
        source="section on the hard-prompt-guided gating loss",
        relation='routed_mocoop["clip-60"] > 0.5',
        scales=("smoke",),
        note="one half is what the same two groups for all images would reach",
    ),
    Claim(
        id="routing-by-style",
        statement="With the gating loss the router sends nearly all images to the prompts of their style; without it, "
        "it does not.",
        paper_figure="not given as a number",
        source="section on the hard-prompt-guided gating loss; ablation of the losses",
        relation='routed_mocoop["clip-200"] >= 0.9 and routed_no_gate_loss["clip-200"] <= 0.75',
        direction='routed_mocoop["clip-200"] > routed_no_gate_loss["clip-200"] + 0.1',
        scales=("laptop",),
        note="share of the test images that have the group of their style among the two chosen; chance is 40 %",
    ),
    Claim(
        id="better-than-one-prompt",
        statement="Several prompts and a guided router give a better harmonic mean of base and new classes than one "
        "learnt prompt, and than the same mixture without the gating loss.",
        paper_figure="gains over CoOp on 11 data sets; published means over these: CoOp 71.7, LASP 79.5",
        source="base-to-new table; ablation of the losses",
        relation='harmonic_mocoop["clip-200"] > harmonic_coop["clip-200"] and '
        'harmonic_mocoop["clip-200"] > harmonic_no_gate_loss["clip-200"]',
        direction='harmonic_mocoop["clip-200"] > min(harmonic_coop["clip-200"], harmonic_no_gate_loss["clip-200"])',
        scales=("laptop",),
        note="a CLIP stopped early, for which the style of a prompt still matters",
    ),
    Claim(
        id="text-loss-protects-new-classes",
        statement="Without the text loss, prompts for a well-trained CLIP lose accuracy on new classes.",
        paper_figure="not given as a number",
        source="section on the group-wise text loss; ablation of the losses",
        relation='new_mocoop["clip-700"] > new_no_text_loss["clip-700"]',
        scales=("laptop",),
    ),
    Claim(
        id="better-than-one-prompt-at-scale",
        statement="On the data sets of CoOp the mean harmonic mean is at least that of one prompt with text loss.",
        paper_figure="published mean of a single prompt with text loss (LASP), 11 data sets: 79.5",
        source="base-to-new table",
        relation=f"{_sum('mocoop')} >= {_sum('single')}",
        scales=("paper",),
    ),
)

_PLOTS = (
    Plot("harmonic", "bars", "harmonic_*", "Base and new classes together", ylabel="harmonic mean of the accuracies"),
    Plot("new", "bars", "new_*", "New classes", ylabel="accuracy among 30 new classes"),
    Plot(
        "routing", "bars", "routed_*", "Is the group of the style among the two chosen?", ylabel="share of test images",
        reference={"the same two for all": 0.5},
    ),
    Plot("first_choice", "bars", "top1_*", "Is it the first choice?", ylabel="share of test images",
         reference={"the same one for all": 0.25}),
    Plot(
        "gate_loss", "lines", "curve_gate_*", "Gating loss while training", x="step", xlabel="update",
        ylabel="cross-entropy against the target, nats",
    ),
    Plot("scale", "bars", "harmonic", "Data sets of CoOp", ylabel="harmonic mean of the accuracies"),
)  # fmt: skip

PAPER = Paper(
    slug="mixture-of-prompts",
    title="Mixture of Prompt Learning for Vision Language Models",
    arxiv="2409.12011",
    date="2024-09",
    venue="Frontiers in Artificial Intelligence 8:1580973, 2025",
    code="dyabel/mocoop",
    summary=(
        "One learnt prompt cannot serve all styles of a data set and forgets what CLIP knows of other classes. Here "
        "several soft prompts start from groups of hard templates (photos, low resolution, art), and a linear router "
        "on the image feature mixes the class features of the best two for every image. The router is taught by the "
        "groups whose hard templates are most similar to the image, and every soft prompt must stay close to its "
        "group's templates, for the names of unseen classes too."
    ),
    claims=_CLAIMS,
    scales={
        "smoke": Scale(
            cells=(_world(60, ("mocoop",), 40, 5),),
            minutes=0.4,
            note="60 updates of the CLIP, 40 of the prompts",
        ),
        "laptop": Scale(
            cells=(_world(200, _ALL, 150, 30), _world(700, _ALL, 150, 30, seeds=2)),
            seeds=3,
            minutes=6.0,
            note="a CLIP trained on the spot on styled digits, stopped early (200 updates) and later (700)",
        ),
        "paper": Scale(
            cells=_benchmarks(),
            seeds=3,
            minutes=3000.0,
            hardware="a GPU with 24 GB; CLIP ViT-B/16 and nine data sets in the folders of CoOp under $SOFTGATE_DATA",
            note="16 shots, base to new classes; the time is an estimate",
        ),
    },
    measure=measure_styles,
    plots=_PLOTS,
    methods=("routing.mix_text_features", "routing.mixture_logits", "routing.hard_prompt_gate_target",
             "routing.PromptMixture", "routing.PromptBank"),
    notes=(
        "No pretrained CLIP is used below paper scale: a tiny one (transformers' CLIP with a text transformer of two "
        "layers and a convolutional image encoder, 64 wide) is trained on MNIST digits in six colours and five styles "
        "with captions that leave out the style in 40 % and the colour in 30 % of the cases.",
        "The 60 classes are split into 30 base classes, with one shot in each of the four hard styles, and 30 new; "
        "test images have the four hard styles. Every style has a group of two templates.",
        "A CLIP stopped after 200 updates is under-trained on purpose: after 700 the hard templates leave little to "
        "gain. The harmonic mean there is shown, and no sign of it is required.",
        "The gating target gets no gradient here; in the authors' code its image features do, which matters only where "
        "layer norms of the image encoder are trained. Prompts end in a full stop in all passes.",
        "At paper scale the templates' wording is ours, every data set gets 50 epochs, the learning rate warms up "
        "linearly, and ImageNet and FGVC Aircraft, whose splits are no JSON files, are left out.",
    ),
)  # fmt: skip
