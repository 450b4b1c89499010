"""IAPT: soft prompts computed from the instruction, by generators whose activations are learned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from softgate.lab.paper import Cell, Claim, Paper, Plot, Scale
from softgate.lab.renaming_training import measure_decoding, measure_renaming

__all__ = ["PAPER"]

#: A backbone that knows 8 operations on 3 digits, and one that knows 16 on 4.
_SMALL: dict[str, Any] = {
    "operations": 8, "length": 3, "width": 64, "layers": 2, "heads": 4, "pretraining": 700, "pretraining_lr": 2e-3,
    "lr": 5e-3, "batch": 64,
}  # fmt: skip
_LARGE: dict[str, Any] = {
    **_SMALL, "operations": 16, "length": 4, "width": 96, "layers": 3, "pretraining": 1800, "pretraining_lr": 1e-3,
}  # fmt: skip
_HUGE: dict[str, Any] = {
    **_LARGE, "length": 8, "width": 2048, "layers": 16, "heads": 16, "pretraining": 20_000, "pretraining_lr": 3e-4,
    "lr": 5e-4, "batch": 256,
}  # fmt: skip

_IAPT: dict[str, Any] = {"bottleneck": 16}
_ACTIVATIONS = ("gelu", "relu", "tanh", "identity")


def _static(tokens: int, **options: Any) -> dict[str, Any]:
    return {"prompt": "static", "num_tokens": tokens, **options}


def _cell(name: str, sizes: Mapping[str, Any], steps: int, replicates: int, **methods: Mapping[str, Any]) -> Cell:
    return Cell(name, {**sizes, "steps": steps, "replicates": replicates, "methods": methods})


def _activations() -> dict[str, Mapping[str, Any]]:
    return {name: {**_IAPT, "activation": name} for name in _ACTIVATIONS}


_SMOKE = Scale(
    cells=(_cell("methods", _SMALL, 400, 1, rational=_IAPT, static_same=_static(34)),),
    minutes=1.0,
    note="8 operations on 3 digits, a Llama of 2 layers and width 64, one seed; static prompts with as many "
    "parameters only, and no LoRA. 0.5 is asked instead of 0.8, which one seed of this size passes only just.",
)
_LAPTOP = Scale(
    cells=(
        _cell("methods", _LARGE, 700, 2, rational=_IAPT, static_same=_static(36), static_4=_static(4),
              static_first=_static(4, layers=[0]), lora={"lora": 9}),
        _cell("activations", _LARGE, 700, 2, **_activations()),
    ),
    minutes=8.0,
    note="16 operations on 4 digits, a Llama of 3 layers and width 96, two seeds.",
)  # fmt: skip
_PAPER = Scale(
    cells=(
        _cell("methods", _HUGE, 3000, 3, rational=_IAPT, shared={**_IAPT, "share": "all"},
              bilevel={**_IAPT, "activation_training": "bilevel"}, static_same=_static(32), static_4=_static(4),
              lora={"lora": 8}),
        _cell("activations", _HUGE, 3000, 3, **_activations()),
        Cell(
            "decoding",
            {"width": 2048, "layers": 16, "heads": 16, "vocabulary": 32_000, "batch": 8, "context": 256, "rank": 8,
             "bottleneck": 16, "turns": 50},
            measure=measure_decoding,
            seeds=1,
        ),
    ),
    minutes=600.0,
    exclusive=True,
    hardware="1 GPU with 40 GB",
    note="a Llama of about a billion parameters on the same task; the paper's data sets and pretrained weights are not "
    "part of this project",
)  # fmt: skip

_CLAIMS = (
    Claim(
        id="beats-static-prompts",
        statement="Prompts computed from the instruction teach a frozen model new words; static prompts, with as many "
        "parameters or as many tokens, do not.",
        paper_figure="better than prompt tuning and P-tuning v2 at comparable parameters (abstract, no number seen)",
        source="abstract; the task is this project's",
        relation='accuracy_rational["methods"] >= 0.93 and '
        'max(accuracy_static_same["methods"], accuracy_static_4["methods"], accuracy_static_first["methods"]) <= 0.1',
        per_scale={
            "smoke": 'accuracy_rational["methods"] >= 0.5 and accuracy_static_same["methods"] <= 0.15',
            "paper": 'accuracy_rational["methods"] >= accuracy_static_same["methods"] + 0.02',
        },
        direction='accuracy_rational["methods"] > accuracy_static_same["methods"] + 0.02',
    ),
    Claim(
        id="near-lora",
        statement="They come near LoRA with as many parameters.",
        paper_figure="better than LoRA (abstract, no number seen)",
        source="abstract; the task is this project's",
        relation='accuracy_rational["methods"] >= accuracy_lora["methods"] - 0.06',
        per_scale={"paper": 'accuracy_rational["methods"] >= accuracy_lora["methods"] - 0.005'},
        scales=("laptop", "paper"),
        note="LoRA on queries and values, rank chosen for the same number of parameters.",
    ),
    Claim(
        id="learned-activation-is-robust",
        statement="The learned activation's worst run is not behind the worst run of any fixed activation.",
        paper_figure="layers prefer different activations; learned ones are best (abstract, no number seen)",
        source="abstract; the task is this project's",
        relation='worst_rational["methods"] >= max(worst_gelu["activations"], worst_relu["activations"], '
        'worst_tanh["activations"], worst_identity["activations"]) - 0.02',
        scales=("laptop", "paper"),
        note="This shows that the rational activation is among the robust ones, not that it is needed.",
    ),
    Claim(
        id="cheaper-than-lora-at-decoding",
        statement="Where adapters stay un-merged, decoding with prompts is faster than with LoRA.",
        paper_figure="faster than LoRA with one backbone for many tenants (abstract, no number seen)",
        source="abstract",
        relation='lora["decoding"] <= 0.9 * iapt["decoding"]',
        direction='lora["decoding"] < iapt["decoding"]',
        scales=("paper",),
        timing=True,
        note="Steps per second of a Llama with random weights; LoRA on all linear layers.",
    ),
)

_PLOTS = (
    Plot("accuracy", "bars", "accuracy_*", "Exactly right answers after adaptation", ylabel="share of answers"),
    Plot("methods", "lines", "loss_*", "Training loss by method", "step", "update", "nats per token",
         cells=("methods",), log="y"),
    Plot("activations", "lines", "loss_*", "Training loss by activation of the generators", "step", "update",
         "nats per token", cells=("activations",), log="y"),
    Plot("decoding", "bars", "plain|iapt|lora", "Decoding", ylabel="steps per second", cells=("decoding",)),
)  # fmt: skip

PAPER = Paper(
    slug="iapt",
    title="IAPT: Instruction-Aware Prompt Tuning for Large Language Models",
    arxiv="2405.18203",
    date="2024-05",
    venue="ACL 2024",
    code="none found",
    summary=(
        "Soft prompts have lost to LoRA, and need many tokens. Four are enough if they are computed from the "
        "instruction: before every layer a small bottleneck pools the instruction's hidden states by self-attention "
        "into four vectors. The activation inside the bottleneck is a rational function that every layer learns for "
        "itself."
    ),
    claims=_CLAIMS,
    scales={"smoke": _SMOKE, "laptop": _LAPTOP, "paper": _PAPER},
    measure=measure_renaming,
    plots=_PLOTS,
    methods=("activations.rational", "models.IAPTModel"),
    notes=(
        "Only the abstract and descriptions of the generator were seen. The task, initialisation, positions (prompts "
        "are not rotated and count no position) and the meaning of sharing are this project's.",
        "Without pretrained weights the backbone is a small Llama that learns operations on digits and is frozen; "
        "downstream the operations have new words with random, frozen embeddings. Embeddings start from N(0, 1), the "
        "scale at which words differ in the residual stream that the generators read: with the model's own default "
        "(standard deviation 0.02) IAPT reached 0.03 in the smoke task, where LoRA reached 1.0. N(0, 1) was chosen "
        "after that run.",
        "Rational coefficients are trained jointly with the rest; the paper's alternating training is the method "
        "bilevel at paper scale.",
        "Accuracy is exact match of the teacher-forced arg-max on 1000 new prompts, which is that of greedy decoding. "
        "Worst means the smallest over the seeds inside a cell.",
    ),
)
