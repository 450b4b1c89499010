"""Gated Attention for Large Language Models: a sigmoid gate after attention removes the attention sink."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from softgate.diagnostics.sink import attention_sink, record_attention
from softgate.lab.cell import CellRun
from softgate.lab.data.text import load_corpus
from softgate.lab.paper import Cell, Claim, Paper, Plot, Scale
from softgate.lab.tasks.bigram_backcopy import Batch, BigramBackcopy
from softgate.lab.tasks.character_lm import CharacterLM
from softgate.lab.training import TrainConfig, fit
from softgate.models import GPT, GPTConfig

__all__ = ["PAPER"]

Figures = dict[str, float | Sequence[float]]

#: Gate variants (Tables 1 and 4), as options of GatedAttention.
VARIANTS: dict[str, dict[str, Any]] = {
    "softmax": {"gate_position": "none"},
    "headwise": {"granularity": "headwise"},
    "elementwise": {"granularity": "elementwise"},
    "ns_sigmoid": {"activation": "ns_sigmoid"},
    "value_gate": {"gate_position": "value"},
    "head_shared": {"head_shared": True},
}


def build(vocabulary: int, config: Mapping[str, Any]) -> GPT:
    """The cell's transformer: identical in all variants but for the gate."""
    sizes = {name: config[name] for name in ("num_layers", "num_heads", "embed_dim")}
    names = ("hidden_dim", "num_kv_heads", "head_dim", "qk_norm", "rope", "learned_positions")
    optional = {name: config[name] for name in names if name in config}
    options = VARIANTS[config["variant"]]
    return GPT(GPTConfig(vocab_size=vocabulary, attention="gated", attention_options=options, **sizes, **optional))


def measure_backcopy(run: CellRun) -> Figures:
    """Train on Bigram-Backcopy, then look at sink, gates and activations on unseen sequences."""
    config = run.config
    task = BigramBackcopy(run.seed)
    model = build(task.vocabulary, config)
    held_out = task.batch("held out", size=64)

    def step_loss(model: nn.Module, batch: Batch) -> Tensor:
        return model(batch.tokens, batch.targets)[1]

    def evaluate(model: nn.Module) -> dict[str, float]:
        losses = _token_losses(model, held_out.tokens, held_out.targets)
        sink = attention_sink(model, held_out.tokens)
        return {
            "held_out_loss": float(losses.mean()),
            "trigger_loss": float(losses[held_out.on_trigger].mean()),
            "share": sink["first_token_share"],
            "max_activation": sink["max_activation"],
        }

    # The learning rate stays constant: the sink keeps growing long after the task is learned.
    training = TrainConfig(
        steps=config["steps"],
        lr=config["lr"],
        schedule="constant",
        betas=(0.9, 0.99),
        eval_every=config["steps"] // 20,
    )
    curves = fit(model, step_loss, training, run=run, batches=lambda step: task.batch("train", step), evaluate=evaluate)
    figures = _sink_figures(model, held_out.tokens, curves)
    figures |= {name: curves[name][-1] for name in ("held_out_loss", "trigger_loss")}
    figures["best_possible_loss"] = task.best_loss(held_out)
    figures |= _gate_by_position(model, held_out)
    return figures


def measure_text(run: CellRun) -> Figures:
    """Train a character language model on real text, with BOS in front of every sequence."""
    config = run.config
    corpus = load_corpus("auto", download=run.download)
    run.log(0, config["steps"], corpus=corpus.name)
    task = CharacterLM(corpus.text, run.seed, config["length"])
    model = build(task.vocabulary, config)
    tokens, targets = task.validation(config["validation"])
    looked_at = tokens[: config["looked_at"]]  # all attention weights of these are held at once

    def step_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return model(*batch)[1]

    def evaluate(model: nn.Module) -> dict[str, float]:
        sink = attention_sink(model, looked_at)
        loss = float(_token_losses(model, tokens, targets).mean())
        return {"val_loss": loss, "share": sink["first_token_share"], "max_activation": sink["max_activation"]}

    training = TrainConfig(
        steps=config["steps"],
        lr=config["lr"],
        warmup=config["warmup"],
        weight_decay=0.1,
        eval_every=config["steps"] // 20,
        precision=config.get("precision", "fp32"),
    )
    curves = fit(
        model,
        step_loss,
        training,
        run=run,
        batches=lambda step: task.batch("train", step, size=config["batch"]),
        evaluate=evaluate,
    )
    figures = _sink_figures(model, looked_at, curves)
    last = curves["loss"][-config["steps"] // 20 :]
    figures |= {
        "val_loss": curves["val_loss"][-1],
        "train_loss": sum(last) / len(last),
        "curve_val_loss": curves["val_loss"],
        "parameters": float(model.num_parameters()),
        "corpus_is_tiny_shakespeare": float(corpus.name == "tinyshakespeare"),
        "corpus_characters": float(len(corpus)),
    }
    return figures


@torch.no_grad()
def _token_losses(model: nn.Module, tokens: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(model(tokens).mT, targets, reduction="none")


def _sink_figures(model: GPT, tokens: Tensor, curves: Mapping[str, list[float]]) -> Figures:
    """Sink, activations and gates of the trained model; curves over training; attention maps of every layer."""
    sink = attention_sink(model, tokens)
    figures: Figures = {
        "share": sink["first_token_share"],
        "max_activation": sink["max_activation"],
        "layer_share": sink["per_layer"],
        "step": curves["eval_step"],
        "curve_share": curves["share"],
        "curve_max_activation": curves["max_activation"],
        "curve_loss": curves["loss"],
    }
    if sink["gate_mean"] is not None:
        figures |= {"gate_mean": sink["gate_mean"], "gate_hist": sink["gate_hist"]}
    for layer, record in enumerate(record_attention(model, tokens)):
        attention_map: Any = record.weights.mean((0, 1))[:64, :64].tolist()
        figures[f"map_layer{layer + 1}"] = attention_map
    return figures


def _gate_by_position(model: GPT, batch: Batch) -> Figures:
    """Mean gate where an attention head is needed and where it is not; of the layer in which they differ most."""
    gates = [r.gate.float().mean((1, 3)) for r in record_attention(model, batch.tokens) if r.gate is not None]
    if not gates:
        return {}
    pairs = [(float(gate[batch.on_trigger].mean()), float(gate[~batch.on_trigger].mean())) for gate in gates]
    needed, idle = max(pairs, key=lambda pair: pair[0] - pair[1])
    return {"gate_on_triggers": needed, "gate_elsewhere": idle}


def _backcopy_cells(
    names: Sequence[str], prefix: str = "", seeds: int | None = None, **config: Any
) -> tuple[Cell, ...]:
    return tuple(Cell(f"{prefix}{name}", {"variant": name, **config}, measure_backcopy, seeds) for name in names)


def _text_cells(prefix: str, seeds: int | None, variants: Mapping[str, int], **config: Any) -> tuple[Cell, ...]:
    """Each variant at the base learning rate and at four times it; ``variants`` maps to FFN widths."""
    cells = []
    for variant, hidden_dim in variants.items():
        for suffix, factor in (("", 1), ("_lr_x4", 4)):
            cell = {**config, "variant": variant, "hidden_dim": hidden_dim, "lr": config["lr"] * factor}
            cells.append(Cell(f"{prefix}_{variant}{suffix}", cell, measure_text, seeds))
    return tuple(cells)


_SMOKE = Scale(
    cells=_backcopy_cells(("softmax", "headwise"), num_layers=1, num_heads=1, embed_dim=64, steps=1000, lr=3e-3),
    minutes=1.0,
    note="Bigram-Backcopy, one layer, one head: synthetic sequences on which the effect shows within a minute.",
)
_LAPTOP = Scale(
    cells=(
        *_backcopy_cells(
            ("softmax", "headwise", "elementwise", "ns_sigmoid", "value_gate"),
            num_layers=1, num_heads=1, embed_dim=64, steps=2000, lr=3e-3,
        ),
        *_backcopy_cells(
            ("softmax", "elementwise", "head_shared"), "two_layers_", seeds=1,
            num_layers=2, num_heads=2, embed_dim=64, steps=2000, lr=3e-3,
        ),
        *_backcopy_cells(
            ("softmax", "elementwise", "headwise"), "learned_", seeds=1,
            num_layers=1, num_heads=1, embed_dim=64, rope=None, learned_positions=64, steps=2000, lr=3e-3,
        ),
        # The gated model's FFN is narrowed from 344 to 301, so that both have the same number of parameters (as the
        # paper does for its dense models).
        *_text_cells(
            "text", 1, {"softmax": 344, "elementwise": 301},
            num_layers=4, num_heads=4, embed_dim=128, length=128, batch=8, steps=800, warmup=50, lr=2e-3,
            validation=64, looked_at=16,
        ),
    ),
    seeds=3,
    minutes=15.0,
    note="Bigram-Backcopy with one layer of one head and rotary positions (three seeds), with two layers of two heads "
    "(heads without a task dilute the mean share) and with learned positions (one seed each), and a 4-layer character "
    "model on tiny Shakespeare (or, where that is absent, the standard library's source: corpus_is_tiny_shakespeare "
    "says which), one seed.",
)  # fmt: skip
_PAPER = Scale(
    cells=_text_cells(
        "dense", 1, {"softmax": 6144, "elementwise": 5461},
        num_layers=28, num_heads=16, num_kv_heads=8, head_dim=128, embed_dim=2048, qk_norm=True, length=4096,
        batch=1024, steps=100_000, warmup=1000, lr=4e-3, validation=16, looked_at=1, precision="bf16",
    ),
    minutes=60 * 24 * 14,
    hardware="64 GPUs of 80 GB or more for about two weeks",
    note="The 1.7B dense model: 28 layers, T = 4096, 400B tokens (batch 1024 x 100k steps), peak learning rate 4e-3, "
    "and four times it. The paper's corpus is private; the character corpus stands in until another is configured. Its "
    "15B mixture-of-experts grid (Table 1) and RULER (Table 5) are not part of this file.",
)  # fmt: skip

_CLAIMS = (
    Claim(
        id="sink-vanishes",
        statement="A sigmoid gate on the output of attention removes the attention sink: later queries stop parking "
        "their weight on the first token.",
        paper_figure="first-token share 46.7 % without gate; 7.3 % headwise, 4.8 % elementwise",
        source="Table 4, F-Attn",
        relation='share["headwise"] < 0.1 and share["elementwise"] < 0.1 and 0.5 < share["softmax"]',
        direction='share["headwise"] < 0.5 * share["softmax"]',
        scales=("smoke", "laptop"),
        per_scale={"smoke": 'share["headwise"] < 0.5 * share["softmax"]'},
        note="Synthetic task; the paper's figures are those of a 15B mixture of experts trained on 400B tokens. How "
        "large the share gets depends on positions, depth and seed; see the other set-ups below.",
    ),
    Claim(
        id="sink-vanishes-two-layers",
        statement="The same with two layers of two heads.",
        paper_figure="first-token share 46.7 % -> 4.8 % (elementwise)",
        source="Table 4, F-Attn",
        relation='share["two_layers_elementwise"] < 0.1 and 0.5 < share["two_layers_softmax"]',
        direction='share["two_layers_elementwise"] < 0.5 * share["two_layers_softmax"]',
        scales=("laptop",),
        note="One seed.",
    ),
    Claim(
        id="sink-vanishes-learned-positions",
        statement="The same with learned position embeddings in place of rotary ones.",
        paper_figure="first-token share 46.7 % -> 7.3 % (headwise), 4.8 % (elementwise)",
        source="Table 4, F-Attn",
        relation='share["learned_headwise"] < 0.1 and share["learned_elementwise"] < 0.1 and '
        '0.5 < share["learned_softmax"]',
        direction='max(share["learned_headwise"], share["learned_elementwise"]) < 0.5 * share["learned_softmax"]',
        scales=("laptop",),
        note="One seed.",
    ),
    Claim(
        id="task-learned",
        statement="The gate costs nothing: both models solve the positions that need an attention head.",
        paper_figure="perplexity 6.026 -> 5.761 (elementwise), 5.792 (headwise)",
        source="Table 1, rows 1, 5 and 10",
        relation='trigger_loss["softmax"] < 0.03 and trigger_loss["headwise"] < 0.03',
        scales=("smoke", "laptop"),
        note="On this task perplexity has a floor that both reach, so the loss on the copied symbols is compared.",
    ),
    Claim(
        id="gate-is-sparse",
        statement="The gate depends on the query and is sparse: open where the head is needed, closed elsewhere.",
        paper_figure="mean gate 0.172 headwise, 0.116 elementwise",
        source="Table 4 and section 4.2",
        relation='gate_on_triggers["headwise"] > 0.5 and gate_elsewhere["headwise"] < 0.1',
        scales=("smoke", "laptop"),
    ),
    Claim(
        id="sparsity-is-the-cause",
        statement="A gate that cannot close (NS-sigmoid, between 0.5 and 1) leaves the sink in place.",
        paper_figure="first-token share 45.1 % with NS-sigmoid, 4.8 % with sigmoid",
        source="Table 4, last row",
        relation='share["ns_sigmoid"] > 3 * share["elementwise"]',
        direction='share["ns_sigmoid"] > share["elementwise"]',
        scales=("laptop",),
    ),
    Claim(
        id="head-specific",
        statement="Gates shared by all heads, or put on the values, leave more of the sink than gates of each head.",
        paper_figure="first-token share 30.1 % head-shared, 29.7 % value gate, 4.8 % elementwise",
        source="Table 4, rows 4 and 5",
        relation='share["two_layers_head_shared"] > share["two_layers_elementwise"] and '
        'share["value_gate"] > share["elementwise"]',
        note="Head-shared against elementwise with two layers of two heads (one seed), where either kind of gate "
        "removes the sink; value gates with one layer of one head (three seeds).",
        scales=("laptop",),
    ),
    Claim(
        id="massive-activations",
        statement="With the sink go the massive activations of the hidden states.",
        paper_figure="largest activation 1053 -> 94",
        source="Table 4, M-Act",
        relation='max_activation["elementwise"] < 0.5 * max_activation["softmax"]',
        direction='max_activation["elementwise"] < max_activation["softmax"]',
        scales=("laptop",),
    ),
    Claim(
        id="sink-on-text",
        statement="On real text, too, the gated model gives its first token less weight.",
        paper_figure="first-token share 46.7 % -> 4.8 %",
        source="Table 4, F-Attn",
        relation='share["text_elementwise"] < 0.5 * share["text_softmax"]',
        direction='share["text_elementwise"] < share["text_softmax"]',
        scales=("laptop",),
        note="Character model of 0.8M parameters, a million times fewer tokens than the paper's. At this size and "
        "length of training no sink forms with or without a gate, at the base learning rate or at four times it.",
    ),
    Claim(
        id="loss-on-text",
        statement="At equal parameters the gated language model is at least as good.",
        paper_figure="perplexity 6.026 -> 5.761 (MoE), 6.180 -> 6.130 (dense)",
        source="Tables 1 and 2",
        relation='val_loss["text_elementwise"] <= val_loss["text_softmax"] + 0.01',
        scales=("laptop", "paper"),
        per_scale={"paper": 'val_loss["dense_elementwise"] < val_loss["dense_softmax"]'},
        note="Independent reports find the gain in quality dependent on the set-up; the sink effect is the robust one.",
    ),
    Claim(
        id="large-learning-rates",
        statement="The gated model tolerates larger learning rates (here four times the base rate).",
        paper_figure="at learning rate 8e-3 the baseline diverges, the gated model reaches perplexity 7.078",
        source="Table 2, 48 layers, 1T tokens",
        relation='train_loss["text_elementwise_lr_x4"] <= train_loss["text_softmax_lr_x4"]',
        scales=("laptop", "paper"),
        per_scale={"paper": 'train_loss["dense_elementwise_lr_x4"] <= train_loss["dense_softmax_lr_x4"]'},
    ),
)

_PLOTS = (
    Plot("sink", "lines", y="curve_share", x="step", title="The attention sink grows without a gate",
         xlabel="training step", ylabel="attention on the first token",
         cells=("softmax", "headwise", "elementwise", "ns_sigmoid", "value_gate"),
         reference={"paper, no gate": 0.467, "paper, elementwise": 0.048}),
    Plot("sink_elsewhere", "lines", y="curve_share", x="step", title="The same with other depths, positions, data",
         xlabel="training step", ylabel="attention on the first token",
         cells=("two_layers_softmax", "two_layers_elementwise", "two_layers_head_shared", "learned_softmax",
                "learned_headwise", "learned_elementwise", "text_softmax", "text_elementwise")),
    Plot("share", "bars", y="share", title="Attention on the first token after training", ylabel="share",
         reference={"paper, no gate": 0.467, "paper, elementwise": 0.048}),
    Plot("maps_last", "heatmaps", y="map_layer*", title="Attention maps (query down, key across)", xlabel="key",
         ylabel="query", cells=("softmax", "headwise", "elementwise", "text_softmax", "text_elementwise")),
    Plot("gates", "lines", y="gate_hist", title="How far the gates are open", xlabel="gate score (bins of 0.05)",
         ylabel="share of scores"),
    Plot("activations", "bars", y="max_activation", title="Largest hidden activation, mean over layers",
         ylabel="largest |activation|"),
    Plot("text_loss", "lines", y="curve_val_loss", x="step", title="Character model: loss on held-out text",
         xlabel="training step", ylabel="nats per character"),
)  # fmt: skip

PAPER = Paper(
    slug="gated-attention",
    title="Gated Attention for Large Language Models: Non-linearity, Sparsity, and Attention-Sink-Free",
    arxiv="2505.06708",
    date="2025-05",
    venue="NeurIPS 2025 (best paper award)",
    summary="Multiplying the output of every attention head by a sigmoid gate, computed from the query token's hidden "
    "state, improves large language models, keeps training stable at larger learning rates, and removes the attention "
    "sink: the habit of softmax heads to park their weight on the first token when they have nothing to do. Of more "
    "than 30 variants, gates after attention win, for two reasons: a non-linearity between the value and output "
    "projections, and sparse scores that depend on the query.",
    claims=_CLAIMS,
    scales={"smoke": _SMOKE, "laptop": _LAPTOP, "paper": _PAPER},
    measure=measure_backcopy,
    plots=_PLOTS,
    methods=("attention.gated_attention",),
    code="qiuzh20/gated_attention",
    notes=(
        "Bigram-Backcopy stands in for language at the smaller scales: a head is needed on 'trigger' tokens only, so a "
        "softmax head must park its weight everywhere else.",
        "Not measured at any scale here: Table 1 (15B mixture of experts with the elementwise gate: perplexity "
        "6.026 -> 5.761, MMLU 58.79 -> 60.82) and Table 5 (RULER at 128k after YaRN: 31.65 -> 58.82).",
        "Attention shares are measured before the gate: a head whose gate is closed may look anywhere at no cost.",
        "The size of the sink on this task varies much with positions and seed. Pilots tried rotary positions with a "
        "base of 10,000 (the model's default, kept here) and of 100, and learned positions (kept as a second set-up).",
    ),
)
