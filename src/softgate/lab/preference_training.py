"""Training policies on corrupted preferences, by pairs and by lists, with fixed and moving anchors."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from softgate.errors import ArgumentValueError
from softgate.lab import seeds
from softgate.lab.cell import CellRun
from softgate.lab.tasks.preference_bandit import SCENARIOS, Contexts, PreferenceBandit
from softgate.lab.training import TrainConfig, fit
from softgate.policy import Anchor, anchored_cross_entropy, preference_target

__all__ = ["METHODS", "Scorers", "measure_bandits"]

#: What q is made of, of how many candidates, and what the policy is compared with.
METHODS: dict[str, dict[str, Any]] = {
    "dpo": {"target": "top1", "pairs": True},
    "hard_pairs_no_anchor": {"target": "top1", "pairs": True, "anchor": "uniform"},
    "soft_pairs": {"target": "raw", "pairs": True},
    "list_raw": {"target": "raw"},
    "list_top1": {"target": "top1"},
    "list_kde": {"target": "kde"},
    "list_kde_ema": {"target": "kde", "anchor": "ema"},
}
#: The listwise variants whose anchor stays where it is.
FIXED = ("list_raw", "list_top1", "list_kde")
_CONTEXTS, _TESTED, _BATCH = 512, 4000, 64


class Scorers(nn.Module):
    """``count`` perceptrons 20-h-h-1 that read the same inputs, one for each scenario: one training does for all.

    Their parameters do not meet anywhere, so with a sum of their losses and an optimizer that treats every number
    apart each trains as it would alone. All start as copies of one network.

    Args:
        start: a network of one scorer to copy, or the three widths to draw one.
        count: number of scorers.
    """

    def __init__(self, start: Scorers | tuple[int, int, int], count: int) -> None:
        super().__init__()
        if isinstance(start, Scorers):
            tensors = [p.detach().expand(count, *p.shape[1:]).clone() for p in start.parameters()]
        else:
            layers = [nn.Linear(start[0], start[1]), nn.Linear(start[1], start[2]), nn.Linear(start[2], 1)]
            tensors = [t.detach()[None] for layer in layers for t in (layer.weight.t(), layer.bias[None])]
        self.tensors = nn.ParameterList(nn.Parameter(t.contiguous()) for t in tensors)

    def forward(self, pairs: Tensor) -> Tensor:
        """Scores (count, N, items) of pairs of context and item (N, items, features)."""
        weights = list(self.tensors)
        hidden = pairs.flatten(0, 1).expand(len(weights[0]), -1, -1)
        for index in (0, 2):
            hidden = torch.relu(torch.baddbmm(weights[index + 1], hidden, weights[index]))
        return torch.baddbmm(weights[5], hidden, weights[4]).reshape(-1, *pairs.shape[:2])


def measure_bandits(run: CellRun) -> dict[str, Any]:
    """Train every method on every scenario and count where each is best.

    The configuration holds ``hidden``, ``methods`` (names of :data:`METHODS`), ``worlds`` (how many seeds: wins are
    counted on the mean over them), ``steps``, ``pretraining``, ``lr`` and ``weight_decay``.

    Returns:
        For every method ``win_mass_NAME`` (a curve over the scenarios: mean probability of the best item),
        ``accuracy_NAME`` (that of the highest score, likewise), their means ``mean_win_mass_NAME`` and
        ``mean_accuracy_NAME``, and ``wins_NAME``; moreover the gain of the best listwise variant over DPO
        (``gain``, a curve), how many scenarios reach 12 % (``gains_of_12``), and the wins that the claims count.
    """
    config = run.config
    unknown = set(config["methods"]) - set(METHODS)
    if unknown:
        raise ArgumentValueError(f"methods must be among {', '.join(METHODS)}, got {sorted(unknown)}")
    totals: dict[str, Tensor] = {}
    for world in range(config["worlds"]):
        for name, figures in _one_world(run, seeds.derive(run.seed, "world", world), world).items():
            totals[name] = totals.get(name, torch.zeros_like(figures)) + figures / config["worlds"]
    return _report(totals, tuple(config["methods"]))


def _one_world(run: CellRun, seed: int, world: int) -> dict[str, Tensor]:
    """WinMass and accuracy (2, scenarios) of every method in one world."""
    config, bandit = run.config, PreferenceBandit(seed)
    seeds.seed_everything(seeds.derive(seed, "scorer"))
    reference = Scorers((20, config["hidden"], config["hidden"]), 1)
    optimizer = partial(torch.optim.AdamW, lr=config["lr"], weight_decay=config["weight_decay"])
    fit_all = partial(fit, run=run, optimizer=optimizer)
    fit_all(
        reference,
        _clean_loss,
        _constant_rate(config, config["pretraining"]),
        batches=lambda step: tuple(bandit.draw(_BATCH, "pretraining", step)),
        name=f"reference-{world}",
    )
    contexts, tested = bandit.draw(_CONTEXTS, "train"), bandit.draw(_TESTED, "test")
    ratings = torch.stack([bandit.ratings(contexts, scenario) for scenario in SCENARIOS])
    found = {}
    for name in config["methods"]:
        model = Scorers(reference, len(SCENARIOS))
        objective = _Objective(reference, contexts, ratings, METHODS[name])
        fit_all(
            model, objective, _constant_rate(config, config["steps"]),
            batches=partial(objective.batch, seed), name=f"{name}-{world}", state=objective.state(),
        )  # fmt: skip
        found[name] = _evaluate(model, tested)
    return found


def _constant_rate(config: Any, steps: int) -> TrainConfig:
    return TrainConfig(steps=steps, lr=config["lr"], schedule="constant", clip=None, log_every=steps)


def _clean_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    pairs, utility = batch
    scores = model(pairs)[0]
    return anchored_cross_entropy(scores, torch.zeros_like(scores), preference_target(utility))


class _Objective:
    """The loss of one method: all scenarios at once, tau = 1, targets at beta = 1."""

    def __init__(self, reference: Scorers, contexts: Contexts, ratings: Tensor, method: dict[str, Any]) -> None:
        self.contexts, self.ratings, self.method = contexts, ratings, method
        self.pairs = bool(method.get("pairs"))
        self.kind = method.get("anchor", "fixed")
        with torch.no_grad():
            # the same for every scenario, computed once: a fixed anchor does not change
            self.fixed = reference(contexts.pairs).expand_as(ratings)
        self.anchor = Anchor(Scorers(reference, len(ratings)), "ema") if self.kind == "ema" else None
        if not self.pairs:  # the smoothed CDF is that of the scores of one scenario
            self.targets = torch.stack([preference_target(r, method["target"]) for r in ratings])

    def state(self) -> dict[str, Any]:
        """What must survive a kill beside the model."""
        return {} if self.anchor is None else {"anchor": self.anchor}

    def batch(self, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """Contexts of a step and, for each, two of its items: all that is random in a step."""
        stream = seeds.generator(seed, "bandit-batch", step)
        count, items = self.ratings.shape[1:]
        rows = torch.randperm(count, generator=stream)[:_BATCH]
        return rows, torch.rand(_BATCH, items, generator=stream).argsort(1)[:, :2]

    def __call__(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The sum over the scenarios of the mean loss over contexts."""
        rows, chosen = batch
        pairs = self.contexts.pairs[rows]
        logp = model(pairs)
        reference = self._reference(model, pairs, rows, logp)
        if self.pairs:
            chosen = chosen.expand(len(logp), -1, -1)
            logp, reference = logp.gather(2, chosen), reference.gather(2, chosen)
            target = preference_target(self.ratings[:, rows].gather(2, chosen), self.method["target"])
        else:
            target = self.targets[:, rows]
        return anchored_cross_entropy(logp, reference, target, reduction="none").mean(1).sum()

    def _reference(self, model: nn.Module, pairs: Tensor, rows: Tensor, logp: Tensor) -> Tensor:
        if self.kind == "uniform":
            return torch.zeros_like(logp)
        if self.anchor is None:
            return self.fixed[:, rows]
        self.anchor.update(model)  # with the weights after the last step; before the first they are equal
        reference: Tensor = self.anchor(pairs)
        return reference


@torch.no_grad()
def _evaluate(model: nn.Module, tested: Contexts) -> Tensor:
    """WinMass and top-1 accuracy (2, scenarios) on clean contexts."""
    best = tested.utility.argmax(-1)
    scores = torch.cat([model(part) for part in tested.pairs.split(500)], 1)
    mass = scores.softmax(-1).gather(2, best.expand(len(scores), -1)[..., None]).mean((1, 2))
    return torch.stack((mass, (scores.argmax(-1) == best).float().mean(1))).double()


def _report(totals: dict[str, Tensor], names: tuple[str, ...]) -> dict[str, Any]:
    mass = torch.stack([totals[name][0] for name in names])
    winners = [names[int(index)] for index in mass.argmax(0)]
    listwise = [index for index, name in enumerate(names) if name.startswith("list_")]
    gain = mass[listwise].amax(0) / totals["dpo"][0] - 1
    figures: dict[str, Any] = {"scenario": [float(i) for i in range(len(SCENARIOS))], "gain": gain.tolist()}
    for name in names:
        for figure, values in zip(("win_mass", "accuracy"), totals[name], strict=True):
            figures[f"{figure}_{name}"] = values.tolist()
            figures[f"mean_{figure}_{name}"] = float(values.mean())
        figures[f"wins_{name}"] = winners.count(name)
    return {
        **figures,
        "best_listwise": max(figures[f"mean_win_mass_{names[index]}"] for index in listwise),
        "wins_listwise": sum(winner.startswith("list_") for winner in winners),
        "gains_of_12": int((gain >= 0.12).sum()),
        "wins_moving_outside_shift": _wins(winners, ("list_kde_ema",), shift=False),
        "wins_fixed_under_shift": _wins(winners, FIXED, shift=True),
    }


def _wins(winners: list[str], names: tuple[str, ...], *, shift: bool) -> int:
    """How often one of ``names`` wins, under a shift or in the other scenarios."""
    pairs = zip(winners, SCENARIOS, strict=True)
    return sum(winner in names for winner, scenario in pairs if scenario.startswith("shift") == shift)
