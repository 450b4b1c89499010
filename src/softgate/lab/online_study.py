"""Measurements of online learners: regret, growth with time, games, corruption, and many streams at once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from softgate.lab import seeds
from softgate.lab.cell import CellRun
from softgate.lab.online_rounds import OnlineLearnerLike, Restarting, checkpoints, play, regrets
from softgate.lab.tasks import online_streams as streams
from softgate.optim import Ball, OptimisticOMD, SwordPP, play_game

__all__ = [
    "measure_corruption",
    "measure_game",
    "measure_grid",
    "measure_regret",
    "measure_scaling",
]

Figures = dict[str, Any]
BALL = Ball(1.0)
#: Diameter of the unit ball, where all of these streams are played.
D = 2.0


def _quadratic(run: CellRun, config: Mapping[str, Any]) -> streams.OnlineStream:
    rounds, dim = config["rounds"], config["dim"]
    noise = torch.randn(rounds, dim, generator=seeds.generator(run.seed, "targets", dim), dtype=torch.float64)
    center = torch.full((dim,), 0.3 / math.sqrt(dim), dtype=torch.float64)
    targets = BALL.project(center + config["sigma"] / math.sqrt(dim) * noise)
    return streams.QuadraticStream(targets, config["lam"])


STREAMS: dict[str, Callable[[CellRun, Mapping[str, Any]], streams.OnlineStream]] = {
    "noise": lambda run, c: streams.LinearStream(
        streams.switching_costs(c["rounds"], c["dim"], c["sigma"], 0, run.seed, size=1.0)
    ),
    "rotating": lambda run, c: streams.LinearStream(streams.rotating_costs(c["rounds"], c["dim"], c["angle"])),
    "quadratic": _quadratic,
    "switching": lambda run, c: streams.switching_regression(c["rounds"], c["dim"], c["stages"], run.seed),
    "regression": lambda run, c: streams.stationary_regression(c["rounds"], c["dim"], run.seed),
    "digits": lambda run, c: streams.digits_stream(run.seed),
    "kdd": lambda run, c: streams.kdd_stream(run.seed, c.get("rounds"), download=run.download),
}


def make_learner(name: str, stream: streams.OnlineStream, config: Mapping[str, Any]) -> OnlineLearnerLike:
    """A learner for ``stream`` by name; G is what the stream's kind allows, or the largest gradient of linear costs."""
    T, dim = stream.rounds, stream.dim
    G = float(stream.costs.norm(dim=-1).max()) if isinstance(stream, streams.LinearStream) else config.get("G", 2.0)
    L = config.get("L", 1.0)

    def decreasing() -> OptimisticOMD:
        return OptimisticOMD(dim, BALL, eta=lambda t: D / (G * math.sqrt(t)), hint="zero")

    made: dict[str, Callable[[], OnlineLearnerLike]] = {
        "optimistic": lambda: OptimisticOMD(dim, BALL, G=G),
        "adaptive": lambda: OptimisticOMD(dim, BALL, G=G, hint="zero"),
        "ogd": lambda: OptimisticOMD(dim, BALL, eta=D / (G * math.sqrt(T)), hint="zero"),
        "decreasing": decreasing,
        "strong": lambda: OptimisticOMD(dim, BALL, "strongly_convex", lam=config["lam"]),
        "newton": lambda: OptimisticOMD(dim, BALL, "exp_concave", G=G, alpha=0.25, beta=config.get("beta")),
        "sword": lambda: SwordPP(BALL, T, G, L, dim=dim),
        "restart": lambda: Restarting(decreasing, config["period"]),
    }
    return made[name]()


def measure_regret(run: CellRun) -> Figures:
    """Play one learner on one stream: its loss, its regret and how that grows."""
    config = run.config
    stream = STREAMS[config["stream"]](run, config)
    points = play(run, make_learner(config["learner"], stream, config), stream)
    at = checkpoints(stream.rounds, config.get("points", 5))
    curve = regrets(stream, points, at)
    figures: Figures = {
        "rounds": [float(t) for t in at],
        "regret_curve": curve.tolist(),
        "regret": float(curve[-1]),
        "loss": float(stream.losses(points).sum()),
        "mean_loss": float(stream.losses(points).mean()),
        "growth": float(curve[-1] / curve[0].clamp(min=1e-12)),
    }
    if "sigma" in config:
        figures["per_sigma"] = figures["regret"] / config["sigma"]
        figures["of_bound"] = figures["regret"] / (5.0 * D * config["sigma"] * math.sqrt(stream.rounds))
    if config["stream"] == "digits":
        figures["of_bound"] = figures["regret"] / (5.0 * D * math.sqrt(_variance(stream, points) * stream.rounds))
    return figures


def _variance(stream: streams.OnlineStream, points: Tensor) -> float:
    """Largest variance of the gradients over the rounds, at the points played at a few times and at the best point."""
    places = [*points[:: max(1, len(points) // 5)], stream.best(stream.rounds)]
    worst = 0.0
    for x in places:
        gradients = torch.stack([stream.grad(t, x) for t in range(stream.rounds)])
        worst = max(worst, float((gradients - gradients.mean(0)).square().sum(-1).mean()))
    return worst


def measure_grid(run: CellRun) -> Figures:
    """Between the ends: noise of one size, means that turn away 0 to many times, all as one batch of streams."""
    config = run.config
    sigma, switches, T = config["sigma"], config["switches"], config["rounds"]
    costs = torch.stack([streams.switching_costs(T, config["dim"], sigma, k, run.seed, 0.3) for k in switches], 1)
    stream, G = streams.LinearStream(costs), float(costs.norm(dim=-1).max())
    figures: Figures = {"switches": [float(k) for k in switches]}
    drift = torch.tensor([0.3**2 * (1.0 + 2.0 * k) for k in switches], dtype=torch.float64)
    bound = D * (math.sqrt(sigma**2 * T) + drift.sqrt() + math.sqrt(1.0 + 4.0 * G**2))
    for name, hint in (("optimistic", "last"), ("adaptive", "zero")):
        learner = OptimisticOMD(config["dim"], BALL, G=G, hint=hint, batch_shape=(len(switches),))
        regret = regrets(stream, play(run, learner, stream), [T])[0]
        figures[f"{name}_regret"] = regret.tolist()
        figures[f"{name}_of_bound"] = float((regret / (5.0 * bound)).max())
    return figures


def measure_game(run: CellRun) -> Figures:
    """Two learners play a random matrix game: the duality gap of their average strategies, and its slope."""
    config = run.config
    n, steps = config["n"], config["steps"]
    A = 2.0 * torch.rand(n, n, generator=seeds.generator(run.seed, "game", n), dtype=torch.float64) - 1.0
    gaps = play_game(A, steps, config["eta"], config["hint"])
    at = checkpoints(steps, 8)
    run.log(steps, steps, gap=float(gaps[-1]))
    curve = [max(float(gaps[t - 1]), 1e-16) for t in at]
    return {"rounds": [float(t) for t in at], "gap_curve": curve, "gap": curve[-1], "slope": _slope(at, curve)}


def _slope(x: list[int], y: list[float]) -> float:
    """Slope of the straight line through ``(log x, log y)``."""
    log_x, log_y = (torch.tensor(v, dtype=torch.float64).log() for v in (x, y))
    centred = log_x - log_x.mean()
    return float((centred * log_y).sum() / centred.square().sum())


def measure_corruption(run: CellRun) -> Figures:
    """An i.i.d. stream of linear losses, some rounds of which an adversary turns around: how much that costs."""
    config = run.config
    T, dim, counts = config["rounds"], config["dim"], [0, *config["corrupted"]]
    costs = streams.switching_costs(T, dim, config["sigma"], 0, run.seed, size=1.0)
    order = torch.randperm(T, generator=seeds.generator(run.seed, "corrupted"))
    turned = costs.unsqueeze(1).repeat(1, len(counts), 1)
    for stream_number, count in enumerate(counts):
        turned[order[:count], stream_number] *= -1.0
    stream = streams.LinearStream(turned)
    learner = OptimisticOMD(dim, BALL, G=float(turned.norm(dim=-1).max()), batch_shape=(len(counts),))
    regret = regrets(stream, play(run, learner, stream), [T])[0]
    excess = (regret - regret[0])[1:]
    allowed = torch.tensor(counts[1:], dtype=torch.float64).sqrt()
    return {
        "corrupted": [float(c) for c in counts[1:]],
        "excess": excess.tolist(),
        "of_root": float((excess / (5.0 * D * allowed)).max()),
    }


def measure_scaling(run: CellRun) -> Figures:
    """Many independent streams as one batch, made round by round on the device: the mean regret's slope over time."""
    config = run.config
    T, dim, count, kind = config["rounds"], config["dim"], config["streams"], config["kind"]
    generator = seeds.generator(run.seed, "scaling", kind, device=run.device)
    options: dict[str, Any] = {"batch_shape": (count,), "device": run.device}
    lam = 0.5
    learner = (
        OptimisticOMD(dim, BALL, "strongly_convex", lam=lam, **options)
        if kind == "quadratic"
        else OptimisticOMD(dim, BALL, G="running", **options)
    )
    total = torch.zeros(count, dim, dtype=torch.float64, device=run.device)
    squares = torch.zeros(count, dtype=torch.float64, device=run.device)
    loss, curve, at = torch.zeros_like(squares), [], checkpoints(T, 6)
    for t in range(1, T + 1):
        z = torch.randn(count, dim, generator=generator, dtype=torch.float64, device=run.device) / math.sqrt(dim)
        x = learner.predict()
        if kind == "quadratic":
            z = BALL.project(0.3 * z)
            learner.update(lam * (x - z))
            loss += 0.5 * lam * (x - z).square().sum(-1)
        else:
            learner.update(z)
            loss += (x * z).sum(-1)
        total += z
        squares += z.square().sum(-1)
        if t in at:
            # Σ ‖x - z‖² over t rounds is smallest at the mean; the best point against linear costs is on the sphere
            best = 0.5 * lam * (squares - total.square().sum(-1) / t) if kind == "quadratic" else -total.norm(dim=-1)
            curve.append(float((loss - best).mean()))
            run.log(t, T, regret=curve[-1])
    per_log = [(b - a) / math.log(2.0) for a, b in itertools.pairwise(curve)]
    return {
        "rounds": [float(t) for t in at],
        "mean_regret": curve,
        "slope": _slope(at, curve),
        "log_rate_ratio": per_log[-1] / per_log[0],
    }
