"""Understanding the Differences in Foundation Models: token mixers as dynamical systems, and what tells them apart."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from softgate.attention import MixerLayer
from softgate.attention.mixers.layer import MIXERS
from softgate.diagnostics import dsf
from softgate.lab import seeds
from softgate.lab.cell import CellRun
from softgate.lab.paper import Cell, Claim, Paper, Plot, Scale
from softgate.lab.tasks.mqar import IGNORED, MQAR, RecallBatch
from softgate.lab.tasks.pair_recall import PairBatch, PairRecall, RecallNetwork
from softgate.lab.training import TrainConfig, fit
from softgate.models import GPT, GPTConfig

__all__ = ["PAPER"]

Figures = dict[str, float | Sequence[float]]

#: Mixers by the name of their cells.
VARIANTS: dict[str, dict[str, Any]] = {
    "softmax": {"mixer": "softmax"},
    "linear": {"mixer": "linear"},
    "normalized-exp": {"mixer": "normalized"},
    "normalized-softplus": {"mixer": "normalized", "norm": "softplus"},
    "normalized-sigmoid": {"mixer": "normalized", "norm": "sigmoid"},
    "s6": {"mixer": "s6"},
    "ssd": {"mixer": "ssd"},
    "qlstm": {"mixer": "qlstm", "reversed": False},
    "qlstm-reversed": {"mixer": "qlstm", "reversed": True},
}
#: Their states have no size to choose.
_FIXED_STATE = ("qlstm", "qlstm-reversed")
_ATTENTION = ("softmax", "linear", "normalized-exp", "normalized-softplus", "normalized-sigmoid")


def measure_identities(run: CellRun) -> Figures:
    """How far the execution forms of every mixer, and mixers that should be equal, are apart, in float64."""
    return {**dsf.identities(run.seed)}


def measure_taylor(run: CellRun) -> Figures:
    """Relative output error of Taylor polynomials in place of softmax's exponential, by order."""
    config, orders = run.config, list(run.config["orders"])
    generator = seeds.generator(run.seed, "taylor")
    shape = (3, 8, config["length"], config["dim"])
    q, k, v = torch.randn(shape, generator=generator, dtype=torch.float64)
    size = config["std"] ** 0.5  # scores of queries and keys of this size have standard deviation `std`
    q, k = size * q, size * k
    exact = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    errors = [float((dsf.taylor_weights(q, k, order=p) @ v - exact).norm() / exact.norm()) for p in orders]
    small = dsf.from_softmax(q, k, v, order=2)
    return {
        "order": [float(p) for p in orders],
        "error": errors,
        **{f"error_{p}": error for p, error in zip(orders, errors, strict=True)},
        "feature_error": float((small.chunked() - dsf.taylor_weights(q, k, order=2) @ v).abs().max()),
        "state_size": float(small.state_size),
    }


def measure_recall(run: CellRun) -> Figures:
    """One-layer recall by state size: the median accuracy of several trainings each."""
    config = run.config
    figures: Figures = {"state_dim": [float(n) for n in config["state_dims"]]}
    medians: list[float] = []
    for n in config["state_dims"]:
        repeats = config["repeats"].get(str(n), config["repeats"]["default"])
        found = [_train_recall(run, n, repeat) for repeat in range(repeats)]
        medians.append(statistics.median(found))
        figures |= {f"accuracy_{n}": medians[-1], f"each_accuracy_{n}": found}
    return figures | {"accuracy": medians}


def _train_recall(run: CellRun, state_dim: int, repeat: int) -> float:
    config = run.config
    seed = seeds.derive(run.seed, "recall", repeat)
    task = PairRecall(seed)
    options = _mixer_options(config["variant"], state_dim)
    mixer = MIXERS[options.pop("mixer")]
    with seeds.isolated_rng(seed):
        model = RecallNetwork(task, config["dim"], lambda dim: mixer(dim, **options))

    def step_loss(model: nn.Module, batch: PairBatch) -> Tensor:
        return model.loss(batch)  # type: ignore[operator]

    training = TrainConfig(
        steps=config["steps"], lr=config["lr"], weight_decay=0.01, betas=(0.9, 0.999), min_lr_ratio=0.0
    )
    fit(
        model, step_loss, training, run=run, name=f"{state_dim}-{repeat}",
        batches=lambda step: task.batch("train", step, size=config["batch"]),
    )  # fmt: skip
    return model.accuracy(task.batch("test", size=1024))


def _mixer_options(variant: str, state_dim: int) -> dict[str, Any]:
    state = {} if variant in _FIXED_STATE else {"state_dim": state_dim}
    return {**VARIANTS[variant], **state}


def measure_mqar(run: CellRun) -> Figures:
    """MQAR with a two-layer transformer around the mixer; the best of the learning rates, as the paper reports."""
    found = {lr: _train_mqar(run, lr) for lr in run.config["lrs"]}
    best = max(found, key=lambda lr: found[lr]["accuracy"][-1])
    return {
        "accuracy": found[best]["accuracy"][-1],
        "accuracy_curve": found[best]["accuracy"],
        "step": found[best]["eval_step"],
        "lr": best,
        "guess": 1.0 / run.config["pairs"],
    }


def _train_mqar(run: CellRun, lr: float) -> dict[str, list[float]]:
    config = run.config
    task = MQAR(run.seed, config["length"], config["pairs"], config["vocabulary"], config.get("examples"))
    with seeds.isolated_rng(seeds.derive(run.seed, "mqar", str(lr))):
        model = _mqar_model(config)
    test = task.draw("test", size=config["test"])

    def step_loss(model: nn.Module, batch: RecallBatch) -> Tensor:
        return model(batch.inputs, batch.labels)[1]

    def evaluate(model: nn.Module) -> dict[str, float]:
        pieces = zip(test.inputs.split(256), test.labels.split(256), strict=True)
        right = [(model(x.to(run.device)).argmax(-1).cpu() == y)[y != IGNORED] for x, y in pieces]
        return {"accuracy": float(torch.cat(right).float().mean())}

    training = TrainConfig(
        steps=config["steps"], lr=lr, weight_decay=0.1, betas=(0.9, 0.999), min_lr_ratio=0.0,
        eval_every=max(1, config["steps"] // 12),
    )  # fmt: skip

    def batches(step: int) -> RecallBatch:
        return RecallBatch(*(x.to(run.device) for x in task.batch(step, size=config["batch"])))

    return fit(model, step_loss, training, run=run, name=f"lr-{lr:g}", batches=batches, evaluate=evaluate)


def _mqar_model(config: Mapping[str, Any]) -> GPT:
    """Two blocks; learned positions for attention, none for state space models and recurrent networks."""
    positions = config["length"] if config["variant"] in _ATTENTION else None
    model = GPT(
        GPTConfig(
            vocab_size=config["vocabulary"], num_layers=2, num_heads=1, embed_dim=config["dim"], rope=None,
            learned_positions=positions, ffn="mlp", activation="gelu", dropout=config.get("dropout", 0.0),
            attention=MixerLayer, attention_options=_mixer_options(config["variant"], config["state_dim"]),
        )
    )  # fmt: skip
    if config.get("unit_scale"):
        for module in model.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=1.0)
    return model


def _taylor_cells() -> tuple[Cell, ...]:
    config = {"orders": (0, 2, 4, 6, 8), "dim": 8, "length": 64}
    return tuple(Cell(f"taylor-{std}", {"std": std, **config}, measure_taylor, seeds=1) for std in (0.5, 1.0, 2.0))


def _recall_cell(variant: str, state_dims: Sequence[int], repeats: int, **special: int) -> Cell:
    config = {
        "variant": variant,
        "state_dims": tuple(state_dims),
        "repeats": {"default": repeats, **{name.removeprefix("n"): count for name, count in special.items()}},
    }
    return Cell(f"recall-{variant}", {**config, "dim": 64, "steps": 400, "lr": 3e-3, "batch": 64}, measure_recall, 1)


def _mqar_cell(variant: str, state_dim: int, **config: Any) -> Cell:
    small = {"length": 32, "pairs": 4, "vocabulary": 64, "dim": 64, "steps": 600, "lrs": (3e-3,), "batch": 64}
    full = {"variant": variant, "state_dim": state_dim, **small, "test": 512, "unit_scale": True, **config}
    return Cell(f"mqar-{variant}", full, measure_mqar, 1)


def _paper_cells() -> Iterator[Cell]:
    """The official sweep, with the best of four learning rates inside a cell."""
    rates = tuple(10 ** (-4 + 2 * i / 3) for i in range(4))
    for length, pairs, batch in ((64, 4, 512), (128, 8, 256), (256, 16, 128), (512, 64, 64)):
        for dim in (64, 128, 256, 512):
            for variant in VARIANTS:
                for state_dim in (32, 64, 128, 256) if variant not in _FIXED_STATE else (1,):
                    config = {
                        "variant": variant, "state_dim": state_dim, "length": length, "pairs": pairs, "dim": dim,
                        "vocabulary": 8192, "batch": batch, "steps": 64 * 100_000 // batch, "examples": 100_000,
                        "lrs": rates, "test": 3000, "dropout": 0.1,
                    }  # fmt: skip
                    yield Cell(f"mqar-{length}-{pairs}-d{dim}-{variant}-n{state_dim}", config, measure_mqar)


_EXACT = (Cell("identities", {}, measure_identities, seeds=1), *_taylor_cells())
_SMOKE = Scale(
    cells=(
        *_EXACT,
        _recall_cell("normalized-exp", (16,), 5),
        _recall_cell("linear", (4, 16, 64), 1, n16=3),
    ),
    minutes=1.0,
    note="Identities and the Taylor table in full; recall with one layer and 400 steps, five trainings of normalised "
    "and three of linear attention at n = 16 (medians are compared), one at n = 4 and n = 64.",
)
_LAPTOP = Scale(
    cells=(
        *_EXACT,
        _recall_cell("normalized-exp", (4, 8, 16, 64), 2, n16=5),
        _recall_cell("linear", (4, 8, 16, 64), 2, n16=5),
        _recall_cell("normalized-softplus", (16,), 3),
        _recall_cell("normalized-sigmoid", (16,), 3),
        _recall_cell("softmax", (4, 16, 64), 1),
        _recall_cell("ssd", (16,), 1),
        _mqar_cell("softmax", 32),
        _mqar_cell("linear", 32),
        _mqar_cell("normalized-exp", 32),
        _mqar_cell("ssd", 32),
        _mqar_cell("qlstm", 1),
        _mqar_cell("qlstm-reversed", 1),
    ),
    minutes=10.0,
    note="Recall with one layer as in smoke, with more sizes of the state and all normalisers. MQAR reduced to length "
    "32, 4 pairs, 64 tokens, width 64 and 600 steps: within that budget softmax learns it, and models with a finite "
    "state mostly go on guessing among the four values (accuracy 0.25).",
)
_PAPER = Scale(
    cells=tuple(_paper_cells()),
    minutes=60 * 24 * 60,
    hardware="1 GPU (16 GB) for about two months, or a cluster with --on ray",
    note="The official MQAR sweep. A reduced one of (64, 4) and (128, 8) at width 128 is about one GPU-day. LRA and "
    "WikiText-103 are not part of this file.",
)

_CLAIMS = (
    Claim(
        id="one-form",
        statement="Attention, state space models and gated recurrences are linear time-varying systems with a diagonal "
        "transition: token by token, in chunks and as one matrix they give the same outputs.",
        paper_figure="exact (lemmas)",
        source="section 3",
        relation='form_error["identities"] < 1e-10',
        scales=("smoke", "laptop"),
        note="Taylor-softmax, linear, normalised (three η), S6, SSD, qLSTM (both), RG-LRU, in float64.",
    ),
    Claim(
        id="equal-mixers",
        statement="Linear attention is normalised attention with the row sum as η (and the paper's system with decays "
        "η_(i-1)/η_i); SSD without decay is unnormalised linear attention; S6 with one decay for all is SSD.",
        paper_figure="exact (lemmas)",
        source="section 3",
        relation='max(row_sum_error["identities"], eta_ratio_error["identities"], undecayed_error["identities"], '
        's6_ssd_error["identities"]) < 1e-10',
        scales=("smoke", "laptop"),
    ),
    Claim(
        id="reversed-sigmoid",
        statement="S6 forgets with a reversed sigmoid to a power: exp(-A softplus(x)) = σ(-x)^A.",
        paper_figure="exact (lemma)",
        source="section 4",
        relation='reversed_sigmoid_error["identities"] < 1e-12',
        scales=("smoke", "laptop"),
    ),
    Claim(
        id="softmax-is-the-limit",
        statement="Softmax attention is the limit of systems with ever larger states: with scores of modest size each "
        "further even order of its Taylor polynomial is closer.",
        paper_figure="exact in the limit (lemma)",
        source="section 3",
        relation='error_6["taylor-0.5"] < error_4["taylor-0.5"] < error_2["taylor-0.5"] < 0.2 and '
        'error_6["taylor-1.0"] < error_4["taylor-1.0"] < error_2["taylor-1.0"]',
        scales=("smoke", "laptop"),
    ),
    Claim(
        id="limit-needs-small-scores",
        statement="With large scores (standard deviation 2) the polynomial of order 8, whose state would have 19 "
        "million numbers per channel, is still far from softmax.",
        paper_figure="not in the paper",
        source="this project's addition",
        relation='error_8["taylor-2.0"] > 0.05',
        scales=("smoke", "laptop"),
    ),
    Claim(
        id="state-expansion",
        statement="Linear attention approaches softmax, which solves the task, as its state grows.",
        paper_figure="accuracy on MQAR rises with n towards softmax (curves)",
        source="Fig. on MQAR, section 5",
        relation='accuracy_64["recall-linear"] >= 0.95 and accuracy_4["recall-linear"] < 0.5',
        scales=("smoke", "laptop"),
        note="One-layer recall of 16 pairs in place of MQAR.",
    ),
    Claim(
        id="normaliser",
        statement="What separates linear attention from state space models is the row sum: with a normaliser that "
        "depends on the token alone, the same state holds more.",
        paper_figure="normalised attention far above linear attention at L = 512, 64 pairs, n = 128 (curve)",
        source="Fig. on MQAR, section 5",
        relation='accuracy_16["recall-normalized-exp"] >= accuracy_16["recall-linear"] + 0.1',
        direction='accuracy_16["recall-normalized-exp"] > accuracy_16["recall-linear"]',
        scales=("smoke", "laptop"),
        note="Medians over trainings: normalised attention sometimes stays on a plateau for all 400 steps.",
    ),
    Claim(
        id="any-normaliser",
        statement="The same with the normalisers softplus and sigmoid.",
        paper_figure="exp is the best of the three (LRA Image, MQAR)",
        source="Fig. on normalisers, section 5",
        relation='accuracy_16["recall-normalized-softplus"] > accuracy_16["recall-linear"] and '
        'accuracy_16["recall-normalized-sigmoid"] > accuracy_16["recall-linear"]',
        scales=("laptop",),
        note="Whether exp is the best of the three is not decided on this task, which all three solve.",
    ),
    Claim(
        id="softmax-solves-mqar",
        statement="Softmax attention solves MQAR.",
        paper_figure="accuracy 1 (curves)",
        source="Fig. on MQAR, section 5",
        relation='accuracy["mqar-softmax"] >= 0.95',
        scales=("laptop",),
        note="Reduced MQAR. Finite-state models are shown beside it, without a relation: 600 steps are "
        "too few for them.",
    ),
    Claim(
        id="normaliser-on-mqar",
        statement="On the hardest MQAR setting normalised attention is far above linear attention at the same state.",
        paper_figure="L = 512, 64 pairs, n = 128, d = 512 (curve)",
        source="Fig. on MQAR, section 5",
        relation='accuracy["mqar-512-64-d512-normalized-exp-n128"] > accuracy["mqar-512-64-d512-linear-n128"] + 0.1',
        scales=("paper",),
    ),
    Claim(
        id="reversed-sigmoid-helps",
        statement="A qLSTM that forgets with S6's reversed sigmoid recalls better than the standard one.",
        paper_figure="better on three MQAR settings (curves)",
        source="Fig. on qLSTM, section 5",
        relation='accuracy["mqar-64-4-d128-qlstm-reversed-n1"] > accuracy["mqar-64-4-d128-qlstm-n1"] and '
        'accuracy["mqar-128-8-d128-qlstm-reversed-n1"] > accuracy["mqar-128-8-d128-qlstm-n1"]',
        scales=("paper",),
        note="Both are trained on reduced MQAR at laptop scale and shown in the plot.",
    ),
)

_PLOTS = (
    Plot("taylor", "lines", y="error", x="order", title="Softmax as the limit of finite systems",
         xlabel="order of the Taylor polynomial", ylabel="relative error of the output", log="y"),
    Plot("recall", "lines", y="accuracy", x="state_dim", title="One-layer recall of 16 pairs (medians)",
         xlabel="state expansion n", ylabel="accuracy", log="x", cells=tuple(f"recall-{name}" for name in VARIANTS)),
    Plot("recall_16", "bars", y="accuracy_16", title="One-layer recall at n = 16 (medians)", ylabel="accuracy"),
    Plot("mqar", "lines", y="accuracy_curve", x="step", title="MQAR: accuracy while training", xlabel="training step",
         ylabel="accuracy", reference={"guess among the 4 values (laptop)": 0.25}),
)  # fmt: skip

PAPER = Paper(
    slug="dynamical-systems-framework",
    title="Understanding the Differences in Foundation Models: Attention, State Space Models, and Recurrent Neural "
    "Networks",
    arxiv="2405.15731",
    date="2024-05",
    venue="NeurIPS 2024",
    summary="Softmax and linear attention, state space models and gated recurrent networks are all linear time-varying "
    "systems with a diagonal transition, and differ in the size of the state, in its decay and in the normalisation. "
    "Softmax needs an infinite state, which linear attention approaches as its state grows. A learned function of the "
    "current token in place of linear attention's row sum (normalised attention) closes much of the gap to state space "
    "models. Their decay is a power of a reversed sigmoid, which a qLSTM can use as well.",
    claims=_CLAIMS,
    scales={"smoke": _SMOKE, "laptop": _LAPTOP, "paper": _PAPER},
    measure=measure_recall,
    plots=_PLOTS,
    methods=tuple(
        f"attention.{name}"
        for name in (
            "linear_attention",
            "normalized_attention",
            "diagonal_scan",
            "selective_scan",
            "ssd_scan",
            "qlstm_scan",
            "rglru_scan",
        )
    ),
    code="IntelligentControlSystems/dsf-mqar; jsie7/ssm-benchmark",
    notes=(
        "The paper reports curves, not numbers, for these experiments; the thresholds are those of this project's "
        "pilot runs, fixed before the runs shown.",
        "One-layer recall gives a key and its value in one token, so that a single layer can solve it: it measures the "
        "state of one mixer. MQAR needs a second layer that joins each key with the value after it.",
        "MQAR models here have pre-norm RMSNorm and, beside qLSTM too, a feed-forward layer (the paper's code has "
        "LayerNorm, and no feed-forward layer beside qLSTM); the learning rate falls in every step, not every epoch.",
        "Not measured at any scale here: LRA and WikiText-103 (70M parameters).",
        "Accuracy 1/m on MQAR means that the model guesses one of the m values it has seen, not progress in recall.",
    ),
)
