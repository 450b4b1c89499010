"""Sampling from a model trained on noisy targets, before and after its utilities become probabilities again."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate.lab import data, seeds
from softgate.lab.cell import CellRun
from softgate.lab.tasks.character_lm import CharacterLM
from softgate.lab.tasks.noisy_transduction import NoisyTransduction, Transducer
from softgate.lab.training import TrainConfig, fit
from softgate.losses import UtilityTransform, fit_utility_transform, mbr_decode, ordinal_accuracy
from softgate.models import GPT, GPTConfig

__all__ = ["measure_characters", "measure_transduction"]

_BETAS = (0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 3.0, 5.0)
#: Candidates of minimum Bayes risk decoding.
_CANDIDATES = 16


def measure_transduction(run: CellRun) -> dict[str, Any]:
    """Train on noisy targets, fit ``beta`` on clean held-out pairs, and decode clean test pairs by several rules.

    The configuration holds ``vocabulary``, ``length``, ``noise``, ``width``, ``steps``, ``batch``, ``lr`` and
    ``tested``.

    Returns:
        Share of exactly right outputs: ``greedy`` and ``greedy_power`` (after the transform); ``sample``,
        ``sample_power`` (fitted by expected exact match), ``sample_noise_inverse`` (with the true noise),
        ``sample_nll`` (``beta`` fitted by likelihood on noisy pairs); ``mbr`` and ``mbr_power`` of 16 samples.
        ``gap`` is ``greedy - sample``; ``beta`` and ``beta_nll`` the fits; ``ordinal`` the ordinal accuracy;
        ``sample_curve`` over ``beta_curve``.
    """
    config, seed = run.config, run.seed
    task = NoisyTransduction(seed, config["vocabulary"], config["length"], config["noise"])
    seeds.seed_everything(seeds.derive(seed, "model"))
    model = Transducer(task, config["width"])
    fit(
        model,
        lambda net, pair: F.cross_entropy(net(*pair).flatten(0, 1), pair[1].flatten()),
        TrainConfig(steps=config["steps"], lr=config["lr"], betas=(0.9, 0.999)),
        batches=lambda step: task.batch("train", step, size=config["batch"]),
        run=run,
    )
    model.eval()
    device = next(model.parameters()).device
    with torch.no_grad():
        held, noisy, test = (
            tuple(part.to(device) for part in task.batch(name, size=size, clean=clean))
            for name, size, clean in (("held-out", 500, True), ("noisy", 2000, False), ("test", config["tested"], True))
        )
        power = fit_utility_transform(model(*held), held[1], "exact_match")
        likely = fit_utility_transform(model(*noisy), noisy[1], "nll")
        figures = _rules(model, test, power, likely, config["noise"], seed)
        figures["ordinal"] = float(ordinal_accuracy(model(*test), test[1]))
    return {**figures, "beta": float(power.value), "beta_nll": float(likely.value), "beta_curve": list(_BETAS)}


def _rules(
    model: Transducer,
    test: tuple[Tensor, ...],
    power: UtilityTransform,
    likely: UtilityTransform,
    noise: float,
    seed: int,
) -> dict[str, Any]:
    raw, sharpest = UtilityTransform(), UtilityTransform("power", float("inf"))
    inverse = UtilityTransform("noise_inverse", noise)

    def right(transform: UtilityTransform, name: str) -> float:
        return _exact(_decode(model, test[0], transform, seeds.generator(seed, name)), test[1])

    def after(transform: UtilityTransform) -> float:
        """Greedy decoding of the transformed scores: the sharpest sample of them."""
        return _exact(_decode(model, test[0], lambda z: sharpest(transform.log_probabilities(z)), None), test[1])

    figures: dict[str, Any] = {
        "greedy": after(raw),
        "greedy_power": after(power),
        "greedy_noise_inverse": after(inverse),
        "sample": right(raw, "sample"),
        "sample_power": right(power, "sample"),
        "sample_noise_inverse": right(inverse, "sample"),
        "sample_nll": right(likely, "sample"),
        "mbr": _mbr(model, test, raw, seed),
        "mbr_power": _mbr(model, test, power, seed),
        "sample_curve": [right(UtilityTransform("power", beta), "sample") for beta in _BETAS],
    }
    figures["gap"] = figures["greedy"] - figures["sample"]
    figures["gain"] = figures["sample_power"] - figures["sample"]
    return figures


def _decode(
    model: Transducer, inputs: Tensor, transform: Callable[[Tensor], Tensor], generator: torch.Generator | None
) -> Tensor:
    """Sample outputs (B, T) step by step from ``transform(logits)``."""
    encoded, state = model.encode(inputs), None
    symbol = torch.full_like(inputs[:, :1], model.start)
    chosen = []
    for _ in range(inputs.shape[1]):
        logits, state = model.decode(encoded, symbol, state)
        q = transform(logits[:, -1]).cpu()
        symbol = torch.multinomial(q, 1, generator=generator).to(inputs.device)
        chosen.append(symbol)
    return torch.cat(chosen, 1)


def _exact(outputs: Tensor, targets: Tensor) -> float:
    return float((outputs == targets).all(1).float().mean())


def _mbr(model: Transducer, test: tuple[Tensor, ...], transform: UtilityTransform, seed: int) -> float:
    stream = seeds.generator(seed, "mbr")
    samples = torch.stack([_decode(model, test[0], transform, stream) for _ in range(_CANDIDATES)], 1)
    chosen = torch.stack([mbr_decode(candidates, _matches).candidate for candidates in samples.cpu()])
    return _exact(chosen, test[1].cpu())


def _matches(candidate: tuple[int, ...], reference: tuple[int, ...]) -> float:
    """Symbols at the right place."""
    return sum(a == b for a, b in zip(candidate, reference, strict=True))


def measure_characters(run: CellRun) -> dict[str, Any]:
    """Train a character model on tiny Shakespeare and look at the two optima of ``beta`` on held-out text.

    The configuration holds ``layers``, ``heads``, ``embed``, ``length``, ``steps``, ``batch`` and ``lr``.

    Returns:
        ``beta_nll``, where held-out likelihood is largest; ``nll_curve`` and ``accuracy_curve`` (expected accuracy of
        sampling the next character) over ``beta_curve``; ``smallest_rise``, the smallest step of that accuracy curve;
        ``argmax_accuracy``.
    """
    config = run.config
    corpus = data.load_corpus("tinyshakespeare", download=run.download)
    task = CharacterLM(corpus.text, run.seed, length=config["length"])
    seeds.seed_everything(seeds.derive(run.seed, "model"))
    model: nn.Module = GPT(GPTConfig(vocab_size=task.vocabulary, num_layers=config["layers"],
                                     num_heads=config["heads"], embed_dim=config["embed"]))  # fmt: skip
    fit(
        model,
        lambda net, pair: net(*pair)[1],
        TrainConfig(steps=config["steps"], lr=config["lr"], warmup=config["steps"] // 20),
        batches=lambda step: task.batch("train", step, size=config["batch"]),
        run=run,
    )
    model.eval()
    device = next(model.parameters()).device
    x, y = (part.to(device) for part in task.validation(64))
    with torch.no_grad():
        logits = model(x)
        fitted = fit_utility_transform(logits, y, "nll")
        logs = [
            UtilityTransform("power", beta).log_probabilities(logits).gather(-1, y.unsqueeze(-1)) for beta in _BETAS
        ]
    accuracy = [float(log_q.exp().mean()) for log_q in logs]
    return {
        "beta_nll": float(fitted.value),
        "nll_curve": [-float(log_q.mean()) for log_q in logs],
        "accuracy_curve": accuracy,
        "smallest_rise": min(b - a for a, b in pairwise(accuracy)),
        "argmax_accuracy": float((logits.argmax(-1) == y).float().mean()),
        "beta_curve": list(_BETAS),
    }
