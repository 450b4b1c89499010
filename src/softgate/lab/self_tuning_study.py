"""Self-tuning networks on problems small enough to know the answer, on digits and on text."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate.lab import data, seeds
from softgate.lab.cell import CellRun
from softgate.lab.tasks.character_lm import CharacterLM
from softgate.optim import (
    BestResponseLinear,
    BestResponseLSTM,
    HyperDropout,
    HyperParam,
    HyperSpace,
    SelfTuner,
    hyper,
)

__all__ = ["measure_characters", "measure_digits", "measure_ridge_response", "measure_ridge_tuning"]

_INF = float("inf")
#: Evaluations of a run.
_LOOKS = 24


class _Ridge(NamedTuple):
    """A regression problem, ``min |X w - t|² + e^λ |w|²``."""

    X: Tensor
    t: Tensor

    def solution(self, lam: float) -> Tensor:
        eye = torch.eye(self.X.shape[1], dtype=self.X.dtype)
        return torch.linalg.solve(self.X.T @ self.X + math.exp(lam) * eye, self.X.T @ self.t)


def _problem(run: CellRun, rows: int, name: str, noise: float) -> _Ridge:
    generator = seeds.generator(run.seed, name)
    X = torch.randn(rows, 5, dtype=torch.float64, generator=generator)
    w = torch.randn(5, dtype=torch.float64, generator=seeds.generator(run.seed, "weights"))
    return _Ridge(X, X @ w + noise * torch.randn(rows, dtype=torch.float64, generator=generator))


def measure_ridge_response(run: CellRun) -> dict[str, Any]:
    """A linear network with sigmoid gates and the response of ridge regression to its penalty.

    The configuration holds ``rows``, ``steps``, ``lr`` and ``spread`` (standard deviation of λ while learning).

    Returns:
        ``exact_error``: largest difference between the network with gates ``σ(2 log d - λ)`` on principal components
        and the solution; ``learned_error``: largest relative error over λ from -2 to 2 of the same network, learned;
        and the norms of both, ``norm_learned`` and ``norm_exact``, over ``lam``.
    """
    config, problem = run.config, _problem(run, run.config["rows"], "rows", 1.0)
    _, d, Vt = torch.linalg.svd(problem.X, full_matrices=False)
    ideal = BestResponseLinear(5, 5, 1, bias=False, gate="sigmoid").double()
    assert ideal.gate_bias is not None
    with torch.no_grad():
        ideal.weights.copy_(Vt)
        ideal.gates.fill_(-1.0)
        ideal.gate_bias.copy_(2.0 * d.log().repeat(2))
    grid = torch.linspace(-2.0, 2.0, 21, dtype=torch.float64)
    solutions = torch.stack([problem.solution(float(lam)) for lam in grid])
    least_squares = torch.linalg.lstsq(problem.X, problem.t[:, None]).solution[:, 0]
    exact = _weights(ideal, Vt @ least_squares, grid).detach()
    seeds.seed_everything(seeds.derive(run.seed, "model"))
    layer = BestResponseLinear(5, 5, 1, bias=False, gate="sigmoid").double()
    head = nn.Parameter(torch.randn(5, dtype=torch.float64))
    optimizer = torch.optim.Adam([*layer.parameters(), head], lr=config["lr"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config["steps"])
    generator = seeds.generator(run.seed, "lambda")
    for _ in range(config["steps"]):
        lam = config["spread"] * torch.randn(64, dtype=torch.float64, generator=generator)
        w = _weights(layer, head, lam)
        loss = (w @ problem.X.T - problem.t).square().sum(1) + lam.exp() * w.square().sum(1)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        schedule.step()
    learned = _weights(layer, head, grid).detach()
    return {
        "exact_error": float((exact - solutions).abs().max()),
        "learned_error": float(((learned - solutions).norm(dim=1) / solutions.norm(dim=1)).max()),
        "lam": grid.tolist(), "norm_learned": learned.norm(dim=1).tolist(),
        "norm_exact": solutions.norm(dim=1).tolist(),
    }  # fmt: skip


def _weights(layer: BestResponseLinear, head: Tensor, lam: Tensor) -> Tensor:
    """What the two-layer network multiplies its input with, for every λ."""
    inputs = torch.eye(layer.in_features, dtype=lam.dtype).expand(len(lam), -1, -1)
    w: Tensor = layer(inputs, lam[:, None]) @ head
    return w


def measure_ridge_tuning(run: CellRun) -> dict[str, Any]:
    """Tune the penalty of a ridge regression by a linear response, and compare with a search over a grid.

    The configuration holds ``rows``, ``valid_rows``, ``noise`` of the targets, ``start`` of λ, ``steps``, ``warmup``,
    ``lr``, ``hyper_lr`` and ``scale``.

    Returns:
        ``found`` λ and ``best`` λ of the grid, ``distance`` between them; ``valid_loss`` of the exact solution at the
        found one over that at the best, ``loss_ratio``; and ``curve`` of λ over ``step``.
    """
    config = run.config
    train, valid = (_problem(run, config[n], n, config["noise"]) for n in ("rows", "valid_rows"))

    def risk(w: Tensor) -> float:
        return float((valid.X @ w - valid.t).square().mean())

    grid = torch.linspace(-6.0, 6.0, 601).tolist()
    best = min(grid, key=lambda lam: risk(train.solution(lam)))
    seeds.seed_everything(seeds.derive(run.seed, "model"))
    model = BestResponseLinear(5, 1, 1, bias=False).double()
    space = HyperSpace([HyperParam("lam", config["start"], -_INF, _INF, scale=config["scale"])]).double()

    def train_loss(net: nn.Module, X: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        assert isinstance(net, BestResponseLinear)
        w = net(torch.eye(5, dtype=torch.float64).expand(len(X), -1, -1))[..., 0]
        penalised = (w @ train.X.T - train.t).square().sum(1) + values["lam"].exp() * w.square().sum(1)
        return penalised.mean()

    def valid_loss(net: nn.Module, batch: Tensor) -> Tensor:
        return (net(batch)[0, :, 0] - valid.t).square().mean()

    tuner = SelfTuner(
        model, space, train_loss, valid_loss, torch.optim.SGD(model.parameters(), config["lr"], momentum=0.9),
        torch.optim.Adam([space.raw], config["hyper_lr"]), warmup=config["warmup"],
        generator=seeds.generator(run.seed, "noise"),
    )  # fmt: skip
    rows = torch.zeros(32, 1)  # 32 draws of λ, each with all the data
    for _ in range(config["steps"]):
        tuner.step(rows, valid.X[None])
    curve = tuner.schedule[:: max(len(tuner.schedule) // 200, 1)]
    found = space.current()["lam"]
    return {
        "found": found, "best": best, "distance": abs(found - best),
        "loss_ratio": risk(train.solution(found)) / risk(train.solution(best)),
        "step": [float(step) for step, _ in curve], "curve": [values["lam"] for _, values in curve],
    }  # fmt: skip


class _Digits(NamedTuple):
    """Images as rows, and labels."""

    x: Tensor
    y: Tensor

    def some(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(self.y), (size,), generator=generator)
        return self.x[rows], self.y[rows]


def _digit_network(fixed: float | None, names: tuple[str, ...]) -> nn.Sequential:
    """784-128-128-10 with dropout before every layer."""
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(((784, 128), (128, 128), (128, 10))):
        layers.append(HyperDropout(names[i]) if fixed is None else nn.Dropout(fixed))
        layers.append(BestResponseLinear(inputs, outputs, 3) if fixed is None else nn.Linear(inputs, outputs))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers[:-1])


def measure_digits(run: CellRun) -> dict[str, Any]:
    """Dropout rates of a network on a thousand images of MNIST: tuned from a start, or fixed.

    The configuration holds ``start`` or ``fixed`` (a rate for all three), ``steps``, ``warmup``, ``batch``, ``lr``,
    ``hyper_lr``, ``scale``, ``entropy_weight``, ``rows``, ``valid_rows`` and ``tested``.

    Returns:
        ``valid_loss``, the smallest one seen, ``test_loss`` and ``accuracy`` on the evaluation images at that step,
        and ``last_test_loss``; curves ``curve_valid_loss`` over ``step``. Of tuned rates moreover ``rate_input``,
        ``rate_hidden1``, ``rate_hidden2`` and ``mean_rate`` at the end, and their curves.
    """
    config = run.config
    train, valid, test = _digits(run)
    names = ("input", "hidden1", "hidden2")
    fixed = config.get("fixed")
    seeds.seed_everything(seeds.derive(run.seed, "model"))
    model = _digit_network(fixed, names)
    optimizer = torch.optim.SGD(model.parameters(), config["lr"], momentum=0.9)
    space = HyperSpace([HyperParam(n, config.get("start", 0.5), 0.0, 0.9, config["scale"]) for n in names])

    def loss(net: nn.Module, batch: tuple[Tensor, Tensor], values: object = None) -> Tensor:
        return F.cross_entropy(net(batch[0]), batch[1])

    tuner = SelfTuner(
        model, space, loss, loss, optimizer, torch.optim.Adam([space.raw], config["hyper_lr"]),
        torch.optim.Adam([space.rho], config["hyper_lr"]), warmup=config["warmup"],
        entropy_weight=config["entropy_weight"], generator=seeds.generator(run.seed, "noise"),
    )  # fmt: skip
    batches, checks = seeds.generator(run.seed, "train"), seeds.generator(run.seed, "valid")

    def step() -> None:
        batch = train.some(config["batch"], batches)
        if fixed is None:
            tuner.step(batch, lambda: valid.some(config["batch"], checks))
        else:
            model.train()
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()

    def look() -> dict[str, float]:
        lam = space.raw.detach() if fixed is None else None
        figures = {"valid_loss": _evaluate(model, valid, lam)[0]}
        figures["test_loss"], figures["accuracy"] = _evaluate(model, test, lam)
        return figures | ({f"rate_{n}": v for n, v in space.current().items()} if fixed is None else {})

    return _summary(_follow(run, config["steps"], step, look), names if fixed is None else ())


def _digits(run: CellRun) -> tuple[_Digits, _Digits, _Digits]:
    train, test = (data.mnist(split, download=run.download) for split in ("train", "test"))
    rows, valid_rows = run.config["rows"], run.config["valid_rows"]
    order = torch.randperm(len(train.labels), generator=seeds.generator(run.seed, "rows"))
    parts = [
        (train, order[:rows]),
        (train, order[rows : rows + valid_rows]),
        (test, torch.arange(run.config["tested"])),
    ]
    return tuple(_Digits(s.images[r].flatten(1).float() / 255.0, s.labels[r]) for s, r in parts)  # type: ignore[return-value]


@torch.no_grad()
def _evaluate(model: nn.Module, part: _Digits, lam: Tensor | None) -> tuple[float, float]:
    model.eval()
    with hyper(lam):
        logits = model(part.x)
    return float(F.cross_entropy(logits, part.y)), float((logits.argmax(1) == part.y).float().mean())


def _follow(
    run: CellRun, steps: int, step: Callable[[], None], look: Callable[[], dict[str, float]]
) -> dict[str, list[float]]:
    """Curves of what ``look`` says, at equal distances."""
    curves: dict[str, list[float]] = {"step": []}
    every = max(steps // _LOOKS, 1)
    for index in range(steps):
        step()
        if (index + 1) % every == 0 or index + 1 == steps:
            curves["step"].append(float(index + 1))
            for name, value in (figures := look()).items():
                curves.setdefault(name, []).append(value)
            run.log(index + 1, steps, **figures)
    return curves


def _summary(curves: dict[str, list[float]], names: tuple[str, ...]) -> dict[str, Any]:
    best = min(range(len(curves["step"])), key=lambda i: curves["valid_loss"][i])
    figures: dict[str, Any] = {
        "valid_loss": curves["valid_loss"][best], "test_loss": curves["test_loss"][best],
        "accuracy": curves["accuracy"][best], "last_test_loss": curves["test_loss"][-1], "step": curves["step"],
        "curve_valid_loss": curves["valid_loss"],
    }  # fmt: skip
    if names:
        figures |= {f"rate_{name}": curves[f"rate_{name}"][-1] for name in names}
        figures |= {f"curve_rate_{name}": curves[f"rate_{name}"] for name in names}
        figures["mean_rate"] = sum(figures[f"rate_{name}"] for name in names) / len(names)
    return figures


class _CharacterNet(nn.Module):
    """Embedding, an LSTM with a response, dropout of its outputs, and a decoder with a response."""

    def __init__(self, vocabulary: int, units: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, units)
        self.lstm = BestResponseLSTM(units, units, 1, 1)
        self.dropout = HyperDropout("output")
        self.decoder = BestResponseLinear(units, vocabulary, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        outputs, _ = self.lstm(self.embedding(tokens).transpose(0, 1))
        logits: Tensor = self.decoder(self.dropout(outputs.transpose(0, 1)))
        return logits


def measure_characters(run: CellRun) -> dict[str, Any]:
    """The rate of dropout on an LSTM's outputs, on text, tuned from a start.

    The configuration holds ``start``, ``steps``, ``warmup``, ``batch``, ``lr``, ``hyper_lr``, ``scale``, ``units``,
    ``length`` of a sequence and ``characters`` of the text.

    Returns:
        ``rate`` at the end, its ``curve_rate`` over ``step``, ``valid_loss`` at the end, nats per character, and its
        curve.
    """
    config = run.config
    corpus = data.load_corpus("tinyshakespeare", download=run.download, characters=config["characters"])
    task = CharacterLM(corpus.text, run.seed, config["length"])
    seeds.seed_everything(seeds.derive(run.seed, "model"))
    model = _CharacterNet(task.vocabulary, config["units"])
    space = HyperSpace([HyperParam("output", config["start"], 0.0, 0.9, config["scale"])])
    held = task.validation(256)
    halves = [tuple(part[:128] for part in held), tuple(part[128:] for part in held)]
    tuner = SelfTuner(
        model, space, _character_loss, _character_loss, torch.optim.Adam(model.parameters(), config["lr"]),
        torch.optim.Adam([space.raw], config["hyper_lr"]), warmup=config["warmup"],
        generator=seeds.generator(run.seed, "noise"),
    )  # fmt: skip

    def step() -> None:
        number = tuner.steps
        rows = torch.randint(128, (config["batch"],), generator=seeds.generator(run.seed, "valid", number))
        tuner.step(task.batch(number, size=config["batch"]), tuple(part[rows] for part in halves[0]))

    @torch.no_grad()
    def look() -> dict[str, float]:
        model.eval()
        with hyper(space.raw.detach()):
            held_out = float(_character_loss(model, halves[1]))
        return {"rate": space.current()["output"], "valid_loss": held_out}

    curves = _follow(run, config["steps"], step, look)
    return {
        "rate": curves["rate"][-1], "valid_loss": curves["valid_loss"][-1], "step": curves["step"],
        "curve_rate": curves["rate"], "curve_valid_loss": curves["valid_loss"],
    }  # fmt: skip


def _character_loss(net: nn.Module, batch: tuple[Tensor, ...], values: object = None) -> Tensor:
    return F.cross_entropy(net(batch[0]).flatten(0, 1), batch[1].flatten())
