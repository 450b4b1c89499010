"""Train a policy on corrupted ratings of four candidates: hard pairs (DPO) beside listwise anchored losses.

    python examples/preference_noise.py
    python examples/preference_noise.py --scenario cauchy-1 --steps 600 --width 64

The ratings come from a bandit whose true utilities are known, so that the policy can be judged by them. `kde` looks at
the place of a rating among all ratings, not at its size; `--ema` lets the anchor follow the policy.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from softgate.lab.tasks.preference_bandit import SCENARIOS, Contexts, PreferenceBandit
from softgate.models import MLP
from softgate.policy import Anchor, anchored_cross_entropy, dpo_loss, preference_target


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", choices=SCENARIOS, default="heavy-2")
    parser.add_argument("--losses", nargs="+", default=["dpo", "raw", "kde"], help="dpo, raw, zscore, kde or top1")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--tau", type=float, default=1.0)
    parser.add_argument("--ema", type=float, default=0.0, help="share of the way the anchor follows at every step")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def scores(model: torch.nn.Module, pairs: Tensor) -> Tensor:
    return model(pairs).squeeze(-1)


def step_loss(name: str, logp: Tensor, anchor_logp: Tensor, ratings: Tensor, tau: float) -> Tensor:
    if name != "dpo":
        return anchored_cross_entropy(logp, anchor_logp, preference_target(ratings, name), tau=tau)
    pair = torch.rand(ratings.shape).argsort(1)[:, :2]  # two of the candidates, the better rated one first
    order = ratings.gather(1, pair).argsort(1, descending=True)
    chosen, rejected = pair.gather(1, order).split(1, 1)
    logps = (x.gather(1, index) for x in (logp, anchor_logp) for index in (chosen, rejected))
    return dpo_loss(*logps, beta=1 / tau)


def train(name: str, data: Contexts, ratings: Tensor, options: argparse.Namespace) -> torch.nn.Module:
    torch.manual_seed(options.seed)
    model = MLP((20, options.width, options.width, 1))
    anchor = Anchor(model, "ema", rate=options.ema)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(options.steps):
        rows = torch.randperm(len(ratings))[:64]
        pairs = data.pairs[rows]
        loss = step_loss(name, scores(model, pairs), scores(anchor, pairs), ratings[rows], options.tau)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        anchor.update(model)
    return model


def main() -> None:
    options = parse()
    bandit = PreferenceBandit(options.seed)
    data, clean = bandit.draw(512, "train"), bandit.draw(2000, "test")
    ratings = bandit.ratings(data, options.scenario)
    best = clean.utility.argmax(1)
    agree = float((ratings.argmax(1) == data.utility.argmax(1)).float().mean())
    print(f"{options.scenario}: {agree:.0%} of the best rated candidates are the best ones")
    for name in options.losses:
        model = train(name, data, ratings, options)
        with torch.no_grad():
            logits = scores(model, clean.pairs)
        mass = float(logits.softmax(1).gather(1, best[:, None]).mean())
        hits = float((logits.argmax(1) == best).float().mean())
        print(f"{name}: picks the best candidate in {hits:.3f} of contexts, gives it probability {mass:.3f}")


if __name__ == "__main__":
    main()
