"""The Z-loss (de Brébisson, Vincent 2016): a loss whose exact SGD step does not depend on the number of classes."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from softgate.lab import seeds
from softgate.lab.cell import CellRun
from softgate.lab.data.billion_words import billion_words
from softgate.lab.data.text import load_corpus
from softgate.lab.output_layers import NgramNetwork, head_step, network_step, output_layer
from softgate.lab.paper import Cell, Claim, Figures, Paper, Plot, Scale
from softgate.lab.tasks.word_ngrams import WordNgrams
from softgate.lab.timing import step_seconds
from softgate.lab.training import TrainConfig, fit
from softgate.lab.word_model import WordModel, ranks
from softgate.losses import FactoredSphericalLinear, z_loss, z_loss_from_stats

__all__ = ["PAPER"]

#: Classes of the One Billion Word benchmark.
BILLION = 793_471
RANKS = (1, 5, 10, 20, 100)
LEARNING_RATE = 0.01


def measure_exactness(run: CellRun) -> Figures:
    """Factored steps in both precisions beside the dense step in float64, on the same batches."""
    torch.set_num_threads(1)
    config = run.config
    classes, features, rows = config["classes"], config["features"], config["rows"]
    figures: dict[str, float] = {}
    for dtype in (torch.float32, torch.float64):
        generator = seeds.generator(run.seed, "exactness")
        head = FactoredSphericalLinear(features, classes, lr=0.1, refactor_every=None, dtype=dtype)
        w = head.weight.double()
        for _ in range(config["steps"]):
            h = torch.randn(rows, features, generator=generator)
            target = torch.randint(classes, (rows,), generator=generator)
            a, q, s = head(h, target)
            z_loss_from_stats(a, q, s, classes, reduction="sum", eps=0.0).backward()
            leaf = w.detach().requires_grad_()
            loss = z_loss(h.double() @ leaf.T, target, reduction="sum", eps=0.0)
            w = w - 0.1 * torch.autograd.grad(loss, leaf)[0]
        bits = torch.finfo(dtype).bits
        figures[f"error{bits}"] = float((head.weight - w).norm() / w.norm())
        figures[f"q_drift{bits}"] = head.stats()["q_drift"]
    return figures


def measure_heads(run: CellRun) -> Figures:
    """Seconds of a step of each output layer alone, one thread, one layer in memory at a time."""
    torch.set_num_threads(1)
    config = run.config
    sizes = config["classes"], config["features"], config["rows"]
    figures: dict[str, float] = {}
    for name, turns in config["turns"].items():
        layer = output_layer(name, config["classes"], config["features"], LEARNING_RATE, run.device)
        step = head_step(layer, *sizes, run.device)
        figures[name] = step_seconds(step, turns=turns, warm=min(turns, 5), device=run.device).median
        if isinstance(layer.module, FactoredSphericalLinear):
            figures["refactor"] = step_seconds(layer.module.refactor, turns=1, warm=0, device=run.device).median
        del layer, step
    figures |= _ratios(figures)
    # what re-factoring at the default interval adds to a step
    figures["factored_with_refactoring"] = figures["factored"] + figures["refactor"] / config["refactor_every"]
    return figures


def _ratios(seconds: Mapping[str, float]) -> dict[str, float]:
    return {f"{name}_over_factored": taken / seconds["factored"] for name, taken in seconds.items()}


def measure_network(run: CellRun) -> Figures:
    """Seconds of a step of the whole network with each output layer, and of the body alone, which bounds the ratio."""
    torch.set_num_threads(1)
    config = run.config
    batches, classes = _contexts(run)
    figures: dict[str, float] = {}
    for name, turns in config["turns"].items():
        options = {size: config[size] for size in ("context", "embedding", "hidden")}
        body = NgramNetwork(min(classes, config["vocabulary"]), **options, sparse=True).to(run.device)
        features = config["hidden"][-1] + 1
        layer = None if name == "body" else output_layer(name, classes, features, LEARNING_RATE, run.device)
        step = network_step(body, layer, batches, LEARNING_RATE)
        figures[name] = step_seconds(step, turns=turns, warm=min(turns, 3), device=run.device).median
        del body, layer, step
    figures |= _ratios(figures)
    # with an output layer that cost nothing, this would be the ratio
    return {**figures, "bound": figures["log_softmax"] / figures["body"], "classes": classes}


def _contexts(run: CellRun) -> tuple[list[tuple[Tensor, Tensor]], int]:
    """Batches of (words before, word): random ones, or those of the benchmark where the cell asks for it."""
    config = run.config
    rows, context, count = config["rows"], config["context"], config["batches"]
    generator = seeds.generator(run.seed, "contexts")
    if config["data"] == "random":
        classes = config["classes"]
        words = torch.randint(config["vocabulary"], (count, rows, context), generator=generator)
        targets = torch.randint(classes, (count, rows), generator=generator)
    else:
        ids, classes = billion_words(shards=1)
        starts = torch.randint(len(ids) - context, (count, rows, 1), generator=generator)
        windows = ids.long()[starts + torch.arange(context + 1)]
        words, targets = windows[..., :-1], windows[..., -1]
    return [(x.to(run.device), y.to(run.device)) for x, y in zip(words, targets, strict=True)], classes


def measure_sizes(run: CellRun) -> Figures:
    """Milliseconds of a step by the number of classes: factored, and dense log-softmax where that is bearable."""
    torch.set_num_threads(1)
    config = run.config
    curves: dict[str, list[float]] = {"classes": [], "factored": [], "log_softmax": [], "dense_classes": []}
    for classes in config["classes"]:
        for name in ("factored", "log_softmax"):
            if name == "log_softmax" and classes > config["dense_up_to"]:
                continue
            layer = output_layer(name, classes, config["features"], LEARNING_RATE)
            step = head_step(layer, classes, config["features"], config["rows"])
            turns = config["turns"] if name == "factored" else 2
            curves[name].append(1e3 * step_seconds(step, turns=turns, warm=min(5, turns)).best)
            curves["classes" if name == "factored" else "dense_classes"].append(classes)
            del layer, step
    return {**curves, "growth": max(curves["factored"]) / curves["factored"][0]}


def measure_quality(run: CellRun) -> Figures:
    """Train a word model and rank the true next word of unseen text among all words."""
    config = run.config
    corpus = load_corpus("auto", download=run.download)
    task = WordNgrams(corpus.text, run.seed, context=config["context"], words=config["words"])
    model = WordModel(task.vocabulary, config)
    words, target = task.validation(config["validation"])
    steps = ceil(config["epochs"] * task.training_examples / config["batch"])

    def evaluate(model: nn.Module) -> dict[str, float]:
        assert isinstance(model, WordModel)
        place = ranks(model, words, target)
        errors = {f"err{k}": float((place > k).double().mean()) for k in RANKS}
        return {**errors, "mrr": float((1.0 / place).mean())}

    def step_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        assert isinstance(model, WordModel)
        return model.loss(*batch)

    curves = fit(
        model,
        step_loss,
        TrainConfig(steps=steps, lr=1e-3, schedule="constant", betas=(0.9, 0.999), clip=None),
        run=run,
        batches=lambda step: task.batch("train", step, size=config["batch"]),
        evaluate=evaluate,
    )
    figures: dict[str, Any] = {name: curves[name][-1] for name in (*(f"err{k}" for k in RANKS), "mrr")}
    figures["ranks"], figures["errors"] = list(RANKS), [figures[f"err{k}"] for k in RANKS]
    figures["vocabulary"] = float(task.vocabulary)
    figures["corpus_is_tiny_shakespeare"] = float(corpus.name == "tinyshakespeare")
    return figures


_EXACT = Cell("exactness", {"classes": 2000, "features": 32, "rows": 40, "steps": 50}, measure_exactness, seeds=1)
_OFFICIAL = {"features": 512, "rows": 200, "refactor_every": 2000}
_NETWORK = {"rows": 200, "context": 10, "embedding": 512, "hidden": [2048, 2048, 511], "batches": 16}
_Z_GRID = ((1.0, 0.0), (0.1, 10.0), (0.1, 28.0), (0.1, 50.0))


def _z_name(alpha: float, b: float) -> str:
    return f"z-{alpha:g}-{b:g}"


def _quality_cells(**config: Any) -> tuple[Cell, ...]:
    losses = {_z_name(alpha, b): {"loss": "z", "alpha": alpha, "b": b} for alpha, b in _Z_GRID}
    losses |= {name: {"loss": name} for name in ("log-softmax", "squared", "taylor", "spherical")}
    return tuple(Cell(name, {**config, **own}, measure_quality, seeds=1) for name, own in losses.items())


def _best_z(figure: str) -> str:
    return "min(" + ", ".join(f'{figure}["{_z_name(*pair)}"]' for pair in _Z_GRID) + ")"


def _near_log_softmax(points: float) -> str:
    return " and ".join(f'{_best_z(f"err{k}")} <= err{k}["log-softmax"] + {points / 100:g}' for k in RANKS)


_SCALES = {
    "smoke": Scale(
        cells=(
            _EXACT,
            Cell(
                "heads",
                {"classes": 100_000, "turns": {"factored": 20, "log_softmax": 2, "hierarchical": 5}, **_OFFICIAL},
                measure_heads,
            ),
        ),
        minutes=0.7,
        exclusive=True,
        note="100,000 classes of 512 features, batches of 200; under 1.5 GB of memory.",
    ),
    "laptop": Scale(
        cells=(
            _EXACT,
            Cell(
                "heads",
                {"classes": BILLION, "turns": {"factored": 20, "hierarchical": 10, "log_softmax": 3}, **_OFFICIAL},
                measure_heads,
            ),
            Cell(
                "network",
                {
                    "data": "random", "classes": BILLION, "vocabulary": 100_000,
                    "turns": {"body": 7, "factored": 7, "hierarchical": 5, "log_softmax": 2}, **_NETWORK,
                },
                measure_network,
            ),
            Cell(
                "sizes",
                {
                    "classes": [10_000, 30_000, 100_000, 300_000, 1_000_000], "dense_up_to": 100_000, "turns": 30,
                    **_OFFICIAL,
                },
                measure_sizes,
            ),
            *_quality_cells(
                words=200_000, context=4, embedding=48, hidden=[128, 64], batch=512, epochs=2, validation=8192
            ),
        ),
        minutes=8.0,
        exclusive=True,
        note="The official network and the benchmark's 793,471 classes on random words (its speed does not depend on "
        "which), about 7 GB of memory, input embeddings of 100,000 words. Quality on the first 200,000 words of tiny "
        "Shakespeare (or, where that is absent, of the standard library's source), two epochs of Adam, one seed.",
    ),
    "paper": Scale(
        cells=(
            _EXACT,
            Cell(
                "heads",
                {"classes": BILLION, "turns": {"factored": 100, "hierarchical": 100, "log_softmax": 10}, **_OFFICIAL},
                measure_heads,
            ),
            Cell(
                "network",
                {
                    "data": "billion words", "vocabulary": BILLION,
                    "turns": {"body": 100, "factored": 100, "hierarchical": 100, "log_softmax": 10},
                    **_NETWORK, "batches": 128,
                },
                measure_network,
            ),
        ),
        minutes=60,
        exclusive=True,
        hardware="one GPU of 16 GB and the files of the One Billion Word benchmark",
        note="The paper's network on 10-grams of the benchmark: seconds per step, from which an epoch follows.",
    ),
}  # fmt: skip

_CLAIMS = (
    Claim(
        id="exact",
        statement="The factored update is the SGD step on the dense weights, not an approximation of it.",
        paper_figure="exact",
        source="section on the spherical family; arXiv 1412.7091",
        relation='error32["exactness"] < 1e-5 and error64["exactness"] < 1e-12',
        note="50 steps of the Z-loss, relative error of W against a dense float64 run.",
    ),
    Claim(
        id="faster-than-log-softmax",
        statement="A step of the output layer alone takes a small fraction of a step of the dense log-softmax layer.",
        paper_figure="up to D / (4 d), 387 at D = 793,471 and d = 512",
        source="arXiv 1412.7091, complexity",
        relation='log_softmax["heads"] >= 200 * factored["heads"]',
        direction='log_softmax["heads"] >= 20 * factored["heads"]',
        per_scale={"smoke": 'log_softmax["heads"] >= 30 * factored["heads"]'},
        timing=True,
        note="Median steps in processor time of one thread, without re-factoring, whose cost is in the figures.",
    ),
    Claim(
        id="whole-network",
        statement="With its body of three hidden layers the network trains many times faster than with log-softmax.",
        paper_figure="40x",
        source="abstract",
        relation='log_softmax["network"] >= 25 * factored["network"]',
        direction='log_softmax["network"] >= 10 * factored["network"]',
        per_scale={"paper": 'log_softmax["network"] >= 40 * factored["network"]'},
        scales=("laptop", "paper"),
        timing=True,
        note="The body alone bounds the ratio: it cannot exceed bound, the step with log-softmax over a step of the "
        "body; on one core that is near the paper's 40.",
    ),
    Claim(
        id="faster-than-hierarchical",
        statement="The step of the output layer is faster than that of a two-level hierarchical softmax.",
        paper_figure="more than 4x",
        source="abstract",
        relation='hierarchical["heads"] >= 3 * factored["heads"]',
        direction='hierarchical["heads"] > factored["heads"]',
        per_scale={"paper": 'hierarchical["heads"] >= 4 * factored["heads"]'},
        scales=("laptop", "paper"),
        timing=True,
        note="The paper's figure is of the whole network; here the output layers alone (the network cell has both).",
    ),
    Claim(
        id="independent-of-classes",
        statement="The time of a step does not depend on the number of classes.",
        paper_figure="O(d^2) per example",
        source="arXiv 1412.7091",
        relation='growth["sizes"] <= 1.5',
        direction='growth["sizes"] <= 3',
        scales=("laptop",),
        timing=True,
        note="From 10,000 to 1,000,000 classes: what grows are the cache misses on the selected rows.",
    ),
    Claim(
        id="best-of-the-family",
        statement="The Z-loss ranks better than the other losses of the family: squared error, Taylor softmax and "
        "spherical softmax.",
        paper_figure="lowest errors of the family",
        source="tables on Penn Treebank",
        relation=f'{_best_z("err1")} < min(err1["squared"], err1["taylor"], err1["spherical"])',
        scales=("laptop",),
        note="Share of next words not ranked first, best of four pairs of (a, b).",
    ),
    Claim(
        id="ties-log-softmax",
        statement="With a and b chosen for the measure, the Z-loss comes within half a point of log-softmax for every "
        "k among the errors at rank k.",
        paper_figure="better for some k",
        source="tables on Penn Treebank",
        relation=_near_log_softmax(0.5),
        direction=_near_log_softmax(3.0),
        scales=("laptop",),
    ),
    Claim(
        id="location-tunes-the-rank",
        statement="A larger b favours the first places, a smaller b the top hundred.",
        paper_figure="a and b are tuned for each k",
        source="discussion of the hyper-parameters",
        relation='err1["z-0.1-50"] < err1["z-0.1-10"] and err100["z-0.1-50"] > err100["z-0.1-10"]',
        direction='err100["z-0.1-50"] > err100["z-0.1-10"]',
        scales=("laptop",),
    ),
)

_LAYERS = "factored|hierarchical|log_softmax"


def _lines(name: str, y: str, x: str, xlabel: str, ylabel: str, **options: Any) -> Plot:
    return Plot(name, "lines", y, f"{ylabel} by {xlabel}: {name}", x, xlabel, ylabel, **options)


PAPER = Paper(
    slug="z-loss",
    title="The Z-loss: a shift and scale invariant classification loss belonging to the Spherical Family",
    arxiv="1604.08859",
    date="2016-04",
    summary=(
        "The Z-loss looks at the target's logit only after the logits have been standardised, so neither their offset "
        "nor their scale matters, and training cannot win by growing them. It depends on the D logits through three "
        "numbers, the target's logit, the sum and the sum of squares, and losses of that kind have an exact SGD step "
        "whose cost does not depend on D: the weights are kept as a product of a sparse-to-update and a small matrix."
    ),
    methods=(
        "losses.z_loss",
        "losses.z_loss_from_stats",
        "losses.taylor_softmax_loss",
        "losses.taylor_softmax_loss_from_stats",
        "losses.spherical_softmax_loss",
        "losses.spherical_softmax_loss_from_stats",
        "losses.spherical_linear",
    ),
    measure=measure_quality,
    claims=_CLAIMS,
    scales=_SCALES,
    plots=(
        _lines("sizes", "factored", "classes", "classes", "ms per step", log="xy", cells=("sizes",)),
        _lines("dense_sizes", "log_softmax", "dense_classes", "classes", "ms per step", log="xy", cells=("sizes",)),
        Plot("heads", "bars", _LAYERS, "A step of the output layer alone", ylabel="s", log="y", cells=("heads",)),
        Plot("network", "bars", f"body|{_LAYERS}", "A step of the network", ylabel="s", log="y", cells=("network",)),
        _lines("errors", "errors", "ranks", "k", "share of next words outside the first k", log="x"),
    ),
    code="pascal20100/factored_output_layer",
    notes=(
        "The authors update the inverse of U with the same identity, but one of their shortcuts for it is wrong for "
        "unequal gradients; here every way agrees with the dense step.",
        "The authors pull singular values of U back to 1 one at a time; this library re-factors (V = W, U = I) every "
        "2,000 steps and when U becomes ill-conditioned. The times of a step are without it; 'refactor' is its cost.",
        "The network appends a constant to its last hidden layer of 511 in place of an output bias (the authors' "
        "example appends 0.001 to 512).",
        "The log-softmax baseline is torch.nn.functional.cross_entropy with torch.optim.SGD; quality uses Adam for all "
        "losses, which the factored layer cannot, by way of the Gram matrix of the weights.",
    ),
)  # fmt: skip
