"""The reproduction of dynamic filters: a dense network, its estimate, dynamic and static masks for several budgets."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softgate.dynamic import DynamicNetwork, DynamicTrainer, estimate_flops, prune_dynamic
from softgate.dynamic.mask_predictor import ConstantPredictor
from softgate.lab import seeds
from softgate.lab.cell import CellRun
from softgate.lab.filter_networks import filter_network
from softgate.lab.tasks.exit_images import ExitImages, exit_images
from softgate.lab.training import TrainConfig, fit

__all__ = ["measure_filters", "prepared_step", "static_masks"]

#: The head of the authors' code.
OFFICIAL = {"pool": "avg", "embed_norm": "softmax"}
_CHUNK = 500


def measure_filters(run: CellRun) -> dict[str, Any]:
    """Dynamic filters for every share ``r`` in the configuration, beside the dense network and static masks.

    Args:
        run: its ``config`` holds ``dataset``, ``sizes`` and ``side`` of :func:`softgate.lab.tasks.exit_images`, those
            of :func:`softgate.lab.filter_networks.filter_network`, ``dense`` (``steps``, ``batch``, ``lr``), ``rs``,
            ``epochs``, ``warm_up``, ``batch``, ``mode``, and ``official``, the share for the authors' head (or None),
            ``static``, whether static masks of equal cost are trained.

    Returns:
        ``dense_accuracy``, ``tuned_accuracy`` (the dense network trained as long as the dynamic ones); over the shares
        ``r``: ``estimate`` of the reduction before training, ``reduction`` afterwards, ``accuracy``,
        ``mask_accuracy``, ``dynamic_fraction``, ``static_accuracy`` and ``static_reduction``; extremes of these;
        ``official_accuracy`` and so on; ``skipping_differs``, the largest difference of logits that skipping makes.
    """
    config = run.config
    task = exit_images(config["dataset"], run.seed, config["sizes"], side=config["side"], download=run.download)
    seeds.seed_everything(seeds.derive(run.seed, "dense"))
    dense = filter_network(config, task.channels, task.classes)
    _train_dense(run, dense, task, **config["dense"], name="dense")
    tuned = _tuned(run, copy.deepcopy(dense), task, "tuned")
    figures: dict[str, Any] = {"r": list(config["rs"])}
    for r in config["rs"]:
        found = _dynamic(run, dense, task, r, None, f"r{r:g}")
        for name, value in found.items():
            figures.setdefault(name, []).append(value)
    figures |= {"dense_accuracy": _accuracy(dense, task), "tuned_accuracy": _accuracy(tuned, task)}
    if config["official"] is not None:
        official = _dynamic(run, dense, task, config["official"], OFFICIAL, "official", static=False)
        figures |= {f"official_{name}": value for name, value in official.items()}
    return {**figures, **_extremes(figures)}


def _extremes(figures: Mapping[str, Any]) -> dict[str, float]:
    errors = [abs(a - b) for a, b in zip(figures["estimate"], figures["reduction"], strict=True)]
    drops = [figures["tuned_accuracy"] - accuracy for accuracy in figures["accuracy"]]
    found = list(zip(figures["reduction"], drops, strict=True))
    return {
        "largest_estimate_error": max(errors),
        "smallest_mask_accuracy": min(figures["mask_accuracy"]),
        "smallest_dynamic_fraction": min(figures["dynamic_fraction"]),
        "largest_skipping_differs": max(figures["skipping_differs"]),
        # of those that save so much the best; 1 where none does
        "drop_at_quarter": min((drop for saved, drop in found if saved >= 0.25), default=1.0),
        "drop_at_half": min((drop for saved, drop in found if saved >= 0.5), default=1.0),
        "drop_at_three_fifths": min((drop for saved, drop in found if saved >= 0.6), default=1.0),
    }


def _train_dense(
    run: CellRun, net: nn.Module, task: ExitImages, *, steps: int, batch: int, lr: float, name: str
) -> None:
    fit(
        net,
        lambda model, pair: F.cross_entropy(model(pair[0]), pair[1]),
        TrainConfig(steps=steps, lr=lr, min_lr_ratio=0.0, clip=None),
        batches=lambda step: task.batch(step, batch),
        run=run,
        optimizer=lambda p: torch.optim.SGD(p, lr=lr, momentum=0.9, weight_decay=5e-4),
        name=name,
    )
    net.eval()


def _tuned(run: CellRun, net: nn.Module, task: ExitImages, name: str) -> nn.Module:
    """Train on as the dynamic networks are."""
    config = run.config
    steps = config["epochs"] * -(-len(task.parts["train"][1]) // config["batch"])
    _train_dense(run, net, task, steps=steps, batch=config["batch"], lr=config["lr"], name=name)
    return net


def _flipped(images: Tensor, generator: torch.Generator) -> Tensor:
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


def _dynamic(
    run: CellRun, dense: nn.Module, task: ExitImages, r: float, head: Mapping[str, Any] | None, name: str, *,
    static: bool = True,
) -> dict[str, float]:  # fmt: skip
    """Train dynamic filters for one share ``r``; figures on test images."""
    config = run.config
    device = next(dense.parameters()).device
    seeds.seed_everything(seeds.derive(run.seed, "dynamic"))  # the same start for every share
    model = prune_dynamic(dense, r, task.parts["train"][0][:1].to(device), head=head, mode=config["mode"])
    trainer = DynamicTrainer(
        model, epochs=config["epochs"], batch_size=config["batch"], lr=config["lr"], warm_up=config["warm_up"],
        augment=_flipped if task.channels == 3 else None, seed=run.seed,
    )  # fmt: skip
    trainer.prepare(task.parts["train"])
    fit(
        model,
        lambda _, batch: trainer.loss_of(batch),
        TrainConfig(steps=trainer.steps, lr=config["lr"], min_lr_ratio=0.0, clip=None),
        batches=trainer.batch,
        run=run,
        optimizer=trainer.make_optimizer,
        name=name,
    )
    estimate = estimate_flops(dense, task.parts["validation"], r)
    figures = {"estimate": estimate.reduction, **_judged(model, task)}
    images = task.parts["test"][0][:50].to(device)
    with torch.no_grad():
        figures["skipping_differs"] = float((model.infer(images, "both") - model(images)).abs().max())
    if static and config["static"]:
        fixed = _static(run, model, dense, task, f"{name}-static")
        figures |= {f"static_{key}": fixed[key] for key in ("accuracy", "reduction")}
    return figures


def _judged(model: DynamicNetwork, task: ExitImages) -> dict[str, float]:
    accuracy = _accuracy(model, task)
    stats = model.dynamic_stats()
    return {
        "accuracy": accuracy,
        "reduction": stats.reduction,
        "mask_accuracy": stats.mask_accuracy,
        "dynamic_fraction": stats.dynamic_fraction,
    }


@torch.no_grad()
def _accuracy(model: nn.Module, task: ExitImages) -> float:
    images, labels = task.parts["test"]
    device = next(model.parameters()).device
    model.eval()
    right = [
        (model(x.to(device)).argmax(-1).cpu() == y).sum()
        for x, y in zip(images.split(_CHUNK), labels.split(_CHUNK), strict=True)
    ]
    return float(sum(right)) / len(labels)


@torch.no_grad()
def static_masks(model: DynamicNetwork, images: Tensor) -> dict[str, Tensor]:
    """For every layer as many filters as ``model`` runs on average, those that fire most on average."""
    model.eval()
    scores: dict[str, Tensor] = {}
    for batch in images.split(_CHUNK):
        model(batch.to(next(model.parameters()).device))
        for name, layer in model.layers.items():
            assert layer.last is not None
            total = layer.last.scores.sum(0)
            scores[name] = scores[name] + total if name in scores else total
    active = model.dynamic_stats().active
    masks = {}
    for name, score in scores.items():
        count = max(1, round(active[name] * len(score)))
        masks[name] = torch.zeros_like(score, dtype=torch.bool).index_fill(0, score.topk(count).indices, True)
    return masks


def _static(run: CellRun, model: DynamicNetwork, dense: nn.Module, task: ExitImages, name: str) -> dict[str, float]:
    """The dense network trained as long with the same mean numbers of filters, the same ones for all inputs."""
    masks = static_masks(model, task.parts["validation"][0])
    queue = iter(masks.values())  # heads are asked for in the order of the layers
    example = task.parts["train"][0][:1].to(next(dense.parameters()).device)
    fixed = prune_dynamic(dense, 1.0, example, head=lambda _, __: ConstantPredictor(next(queue)))
    _tuned(run, fixed, task, name)
    return _judged(fixed, task)


def prepared_step(widths: Sequence[int], side: int, batch: int) -> dict[str, Callable[[], object]]:
    """Training steps of one network, ``dense`` and ``dynamic``, on the same random batch, to time."""
    torch.manual_seed(0)
    net = filter_network({"network": "stack", "widths": widths}, 3, 10)
    x, y = torch.randn(batch, 3, side, side), torch.randint(10, (batch,))
    trainer = DynamicTrainer(prune_dynamic(net, 0.9, x[:1]), epochs=2, batch_size=batch, warm_up=0)
    trainer.prepare((x, y))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)

    def dense() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()

    def dynamic() -> None:
        trainer.optimizer.zero_grad()
        trainer.loss_of(("masks", x, y)).backward()
        trainer.optimizer.step()

    return {"dense": dense, "dynamic": dynamic}
