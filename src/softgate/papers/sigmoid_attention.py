"""Sigmoid Self-Attention: with the bias -ln n it trains as softmax does; the scale of its early outputs is the key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from softgate.attention import MultiHeadAttention, SigmoidAttention, sigmoid_attention
from softgate.attention.multihead import BaseAttention
from softgate.lab import seeds
from softgate.lab.cell import CellRun
from softgate.lab.data.text import load_corpus
from softgate.lab.paper import Cell, Claim, Paper, Plot, Scale
from softgate.lab.tasks.character_lm import CharacterLM
from softgate.lab.training import TrainConfig, fit
from softgate.models import GPT, GPTConfig

__all__ = ["PAPER"]

Figures = dict[str, float | Sequence[float]]

#: Options of SigmoidAttention; None stands for softmax.
VARIANTS: dict[str, dict[str, Any] | None] = {
    "softmax": None,
    "sigmoid": {"bias_init": "neg_log_n"},
    "no_bias": {"bias_init": 0.0},
    "bias_10": {"bias_init": -10.0},
    "alibi_no_bias": {"bias_init": 0.0, "alibi": True, "rope": None},
}
#: "Early" is the first so many updates.
EARLY = 50
#: Contexts of the length test, in lengths of training.
STRETCHES = (1, 2, 4, 8, 16)


def build(vocabulary: int, config: Mapping[str, Any]) -> GPT:
    """The cell's transformer: the variants differ in their attention weights alone."""
    sizes = {name: config[name] for name in ("num_layers", "num_heads", "embed_dim")}
    options = VARIANTS[config["variant"]]
    shared = {"rope": 10000.0, "qk_norm": "layer" if config["qk_norm"] else "none"}
    if options is None:
        return GPT(GPTConfig(vocabulary, **sizes, attention=MultiHeadAttention, attention_options=shared))
    options = {**shared, "seq_len": config["length"], **options}
    return GPT(GPTConfig(vocabulary, **sizes, attention=SigmoidAttention, attention_options=options))


def measure_text(run: CellRun) -> Figures:
    """Train a character language model, watch the norms of its attention outputs, and score it at longer contexts."""
    config = run.config
    corpus = load_corpus("auto", download=run.download)
    run.log(0, config["steps"], corpus=corpus.name)
    task = CharacterLM(corpus.text, run.seed, config["length"])
    model = build(task.vocabulary, config)
    tokens, targets = task.validation(config["validation"])
    norms: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, BaseAttention):  # what the heads give, before the output projection
            module.o_proj.register_forward_pre_hook(lambda _, args: norms.append(args[0].detach().norm(dim=-1).mean()))

    def step_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        norms.clear()
        loss = model(*batch)[1]
        return loss, {"attention_norm": torch.stack(norms).mean()}

    training = TrainConfig(
        steps=config["steps"],
        lr=config["lr"],
        warmup=config.get("warmup", 0),
        weight_decay=0.1,
        eval_every=max(config["steps"] // 10, 1),
        precision=config.get("precision", "fp32"),
    )
    curves = fit(
        model,
        step_loss,
        training,
        run=run,
        batches=lambda step: task.batch("train", step, size=config["batch"]),
        evaluate=lambda model: {"val_loss": _loss(model, tokens, targets)},
    )
    early = curves["attention_norm"][:EARLY]
    return {
        "val_loss": curves["val_loss"][-1],
        "step": curves["eval_step"],
        "curve_val_loss": curves["val_loss"],
        "early_norm": sum(early) / len(early),
        "curve_norm": curves["attention_norm"],
        "parameters": float(model.num_parameters()),
        "corpus_is_tiny_shakespeare": float(corpus.name == "tinyshakespeare"),
        **_stretched(model, task, config["stretched"]),
    }


@torch.no_grad()
def _loss(model: nn.Module, tokens: Tensor, targets: Tensor) -> float:
    """Mean loss, of one thousand tokens or one window at a time."""
    size = max(1000 // tokens.shape[1], 1)
    device = next(model.parameters()).device
    pairs = zip(tokens.to(device).split(size), targets.to(device).split(size), strict=True)
    total = sum(float(cross_entropy(model(x).mT, y, reduction="sum")) for x, y in pairs)
    return total / targets.numel()


def _stretched(model: nn.Module, task: CharacterLM, characters: int) -> Figures:
    """Loss on the same characters, cut into windows of the length of training and of its multiples."""
    model.eval()
    lengths = [task.length * stretch for stretch in STRETCHES]
    losses = [_loss(model, *task.segments(length, characters)) for length in lengths]
    return {"context": lengths, "context_loss": losses, "loss_increase": losses[-1] - losses[0]}


def measure_initial_scale(run: CellRun) -> Figures:
    """Size of sigmoid's outputs relative to softmax's, for scores as they are before training and of variance one."""
    keys = run.config["keys"]
    generator = seeds.generator(run.seed, "initial-scale", keys)
    q, k, v = (torch.randn(1, 2, keys, 64, generator=generator) for _ in range(3))

    def ratio(scale: float, **bias: Any) -> float:
        ours, theirs = (
            sigmoid_attention(q * scale, k * scale, v, **bias),
            scaled_dot_product_attention(q * scale, k * scale, v),
        )
        return float(ours.norm() / theirs.norm())

    return {
        "ratio": ratio(0.05, seq_len=keys),
        "ratio_no_bias": ratio(0.05, bias=0.0) / keys,
        "ratio_unit_scores": ratio(1.0, seq_len=keys),
        "ratio_unit_scores_no_bias": ratio(1.0, bias=0.0) / keys,
    }


_SCALES = tuple(Cell(f"fresh_{n}", {"keys": n}, measure_initial_scale, seeds=1) for n in (64, 256, 1024))


def _text_cells(
    names: Sequence[str], config: Mapping[str, Any], suffix: str = "", seeds: int | None = None
) -> tuple[Cell, ...]:
    return tuple(Cell(f"{name}{suffix}", {"variant": name, **config}, measure_text, seeds) for name in names)


def _grid(names: Sequence[str], base: Mapping[str, Any]) -> tuple[Cell, ...]:
    """The named variants with and without norms of queries and keys, at three learning rates, one seed."""
    return tuple(
        cell
        for norms, qk_norm in (("norms", True), ("plain", False))
        for lr in (1e-3, 3e-3, 1e-2)
        for cell in _text_cells(names, {**base, "qk_norm": qk_norm, "lr": lr}, f"_{norms}_{lr * 1e3:g}", 1)
    )


_SMALL: dict[str, Any] = {
    "num_layers": 2, "num_heads": 2, "embed_dim": 64, "length": 32, "batch": 32, "steps": 300, "lr": 3e-3,
    "qk_norm": False, "validation": 256, "stretched": 8192,
}  # fmt: skip
_MEDIUM: dict[str, Any] = {
    "num_layers": 4, "num_heads": 2, "embed_dim": 128, "length": 128, "batch": 4, "steps": 400, "lr": 3e-3,
    "warmup": 20, "qk_norm": True, "validation": 64, "stretched": 8192,
}  # fmt: skip
_LARGE: dict[str, Any] = {
    "num_layers": 24, "num_heads": 32, "embed_dim": 2048, "length": 2048, "batch": 2048, "steps": 75_000, "lr": 3e-4,
    "warmup": 2000, "qk_norm": True, "validation": 64, "stretched": 32_768, "precision": "bf16",
}  # fmt: skip

_COMPARED = ("softmax", "sigmoid", "no_bias")
_SMOKE = Scale(
    cells=(*_SCALES, *_text_cells(_COMPARED, _SMALL)),
    minutes=1.0,
    note="Random queries and keys, and character models of 2 layers with T = 32, without norms of queries and keys.",
)
_LAPTOP = Scale(
    cells=(
        *_SCALES,
        *_text_cells(tuple(VARIANTS), _MEDIUM),
        *_grid(_COMPARED, {**_MEDIUM, "steps": _MEDIUM["steps"] // 4}),
    ),
    seeds=3,
    minutes=15.0,
    note="Character models of 4 layers with T = 128 on tiny Shakespeare (or, where that is absent, the standard "
    "library's source: corpus_is_tiny_shakespeare says which), three seeds. "
    "The grid over learning rates (name: variant, norms of queries and keys or plain, learning rate in thousandths) "
    "takes a quarter of the updates and one seed.",
)
_PAPER = Scale(
    cells=_text_cells(("softmax", "sigmoid", "no_bias", "alibi_no_bias"), _LARGE, seeds=1),
    minutes=60 * 24 * 10,
    hardware="64 GPUs of 80 GB or more for about ten days",
    note="The 1B language model: 24 layers, T = 2048, batches of 4M tokens, rotary positions with b = -ln n against "
    "ALiBi. The character corpus stands in for RedPajama until another is configured.",
)

_CLAIMS = (
    Claim(
        id="scale-at-the-start",
        statement="With near-zero scores, as before training, b = -ln n gives outputs of softmax's size; without a "
        "bias they are n/2 times as large.",
        paper_figure="row mass n σ(-ln n) ≈ 1",
        source="Section 2; n σ(-ln n) = n/(n + 1)",
        relation=" and ".join(
            f'abs(ratio["fresh_{n}"] - 1) < 0.1 and abs(ratio_no_bias["fresh_{n}"] - 0.5) < 0.05'
            for n in (64, 256, 1024)
        ),
        scales=("smoke", "laptop"),
        note="ratio_no_bias is divided by n. With scores of variance one: ratio_unit_scores.",
    ),
    Claim(
        id="early-norms",
        statement="Without a bias the outputs of attention are far too large early in training; b = -ln n prevents it.",
        paper_figure="curves of attention norms; no number",
        source="Abstract and section 5",
        relation='early_norm["no_bias"] > 5 * early_norm["sigmoid"]',
        direction='early_norm["no_bias"] > early_norm["sigmoid"]',
        per_scale={"smoke": 'early_norm["no_bias"] > early_norm["sigmoid"]'},
        note="Norm of the heads' outputs before the output projection, mean over the first 50 updates.",
    ),
    Claim(
        id="alibi-tames",
        statement="ALiBi alone, without a bias, lowers the early outputs too.",
        paper_figure="released configuration: ALiBi with b = 0",
        source="Section 5, language models",
        relation='early_norm["alibi_no_bias"] < early_norm["no_bias"]',
        scales=("laptop", "paper"),
        note="With T = 128 one of the two heads hardly notices ALiBi (slope 1/256); the paper's models have T = 2048.",
    ),
    Claim(
        id="matches-softmax",
        statement="With b = -ln n, sigmoid attention trains as well as softmax attention.",
        paper_figure="loss curves of 1B language models coincide",
        source="Section 5, language models",
        relation='val_loss["sigmoid"] <= val_loss["softmax"] + 0.02',
        per_scale={"smoke": 'val_loss["sigmoid"] <= val_loss["softmax"] + 0.03'},
        note="Smoke: T = 32 and no norms of queries and keys, where pilots on both corpora ended alike. With T = 128 "
        "pilots of 400 and 800 updates ended above softmax, with heads of 32 and of 64 features, with norms and (400 "
        "updates) without: so short a training favours softmax.",
    ),
    Claim(
        id="bias-helps",
        statement="b = -ln n ends at a lower loss than no bias.",
        paper_figure="training without it is unstable",
        source="Abstract and section 5",
        relation='val_loss["sigmoid"] < val_loss["no_bias"]',
        scales=("laptop", "paper"),
        note="At this size b = 0 trains, if worse; the instability is an effect of large models.",
    ),
    Claim(
        id="norms-help-at-large-rates",
        statement="Norms of queries and keys help sigmoid attention at a large learning rate.",
        paper_figure="part of the recipe for language models",
        source="Section 5",
        relation='val_loss["sigmoid_norms_10"] < val_loss["sigmoid_plain_10"]',
        scales=("laptop",),
        note="One seed, a quarter of the updates.",
    ),
    Claim(
        id="longer-contexts",
        statement="A known limit: beyond the length of training sigmoid attention degrades faster than softmax, since "
        "the weights of a row add up to more with every key.",
        paper_figure="not in the paper; loss from 1K to 8K: softmax 3.19 -> 6.28, sigmoid 3.19 -> 14.50",
        source="arXiv 2501.13428 (124M parameters, trained at 1K)",
        relation='loss_increase["sigmoid"] > loss_increase["softmax"]',
        note="Increase from T to 16 T on the same characters, rotary positions in both.",
    ),
)

_TEXT = tuple(VARIANTS)
_PLOTS = (
    Plot("loss", "lines", y="curve_val_loss", x="step", title="Loss on held-out text", xlabel="training step",
         ylabel="nats per character", cells=_TEXT),
    Plot("early_norm", "lines", y="curve_norm", title="Norm of the heads' outputs over training", log="y",
         xlabel="training step", ylabel="norm, mean over tokens and layers", cells=_TEXT),
    Plot("context", "lines", y="context_loss", x="context", title="Contexts longer than in training", log="x",
         xlabel="context in tokens", ylabel="nats per character", cells=_TEXT),
    Plot("grid", "bars", y="val_loss", title="Loss by learning rate, with and without norms of queries and keys",
         ylabel="nats per character",
         cells=tuple(f"{v}_{n}_{lr}" for v in _COMPARED for n in ("norms", "plain") for lr in (1, 3, 10))),
    Plot("scale", "bars", y="ratio|ratio_no_bias|ratio_unit_scores|ratio_unit_scores_no_bias",
         title="Size of outputs before training, relative to softmax", ylabel="ratio (without a bias: over n)"),
)  # fmt: skip

PAPER = Paper(
    slug="sigmoid-attention",
    title="Theory, Analysis, and Best Practices for Sigmoid Self-Attention",
    arxiv="2409.04431",
    date="2024-09",
    venue="ICLR 2025",
    summary="Attention weights need not compete: a sigmoid of each score, without normalisation over the keys, gives a "
    "universal approximator with a better regularity than softmax. Earlier attempts failed because the outputs of "
    "attention were far too large early in training. A bias of minus the logarithm of the sequence length, or ALiBi, "
    "removes that, and sigmoid attention then matches softmax in language, vision and speech. A kernel for it needs no "
    "running maximum or sum.",
    claims=_CLAIMS,
    scales={"smoke": _SMOKE, "laptop": _LAPTOP, "paper": _PAPER},
    measure=measure_text,
    plots=_PLOTS,
    methods=("attention.sigmoid_attention", "attention.sigmoid_attention_varlen"),
    code="apple/ml-sigmoid-attention",
    notes=(
        "Not measured at any scale here: ViT on ImageNet, speech, and the kernel's speed on H100 (17 % over "
        "FlashAttention-2 in inference).",
        "Row-wise -ln of the number of visible keys (bias='neg_log_visible') and packed sequences are ours.",
        "The bias belongs to the length of training; the module keeps it at every context, which is what the length "
        "test measures.",
    ),
)
