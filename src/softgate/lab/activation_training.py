"""Activations judged by the entropy of their output, and by small vision transformers that use them."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate.activations import CRReLU, crrelu, eafo_correction, replace_activations, worst_activation
from softgate.diagnostics import activation_entropy
from softgate.errors import check_choice
from softgate.lab import seeds
from softgate.lab.cell import CellRun
from softgate.lab.image_training import train_classifier
from softgate.lab.tasks.image_patches import ImageClassification
from softgate.lab.tasks.noisy_labels import digits
from softgate.lab.training import TrainConfig, fit
from softgate.models import ViT, ViTConfig
from softgate.swapping.api import swap

__all__ = ["ACTIVATIONS", "measure_digits", "measure_entropy", "measure_images", "measure_preference"]

#: What the paper compares, with the settings it uses; its CELU with alpha = 1 is ELU.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "crrelu": CRReLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "prelu": nn.PReLU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
}


def measure_entropy(run: CellRun) -> dict[str, Any]:
    """The entropies that the paper argues with, for a normal input; nothing is random.

    The configuration holds ``eps`` (of CRReLU) and ``step`` (of the correction of the identity).

    Returns:
        ``worst``, ``tanh``, ``sigmoid`` and ``hardtanh``: entropies of outputs stretched to [0, 1] (hardtanh's given
        that the input is within its bounds: the whole one is minus infinity); ``rise_plus`` and ``rise_minus``: what
        CRReLU with ``eps`` and ``-eps`` adds to the entropy of ReLU's positive outputs; ``change`` of the entropy by
        the correction of the identity; ``misfit``, how far that is from ``-step C x exp(-x²/2)`` at most, over
        ``step``; and curves over ``x``: ``curve_relu``, ``curve_plus``, ``curve_minus``.
    """
    eps, step = run.config["eps"], run.config["step"]

    def corrected(value: float) -> Callable[[Tensor], Tensor]:
        return lambda x: crrelu(x, torch.tensor(value, dtype=x.dtype))

    def rise(value: float) -> float:
        plain = activation_entropy(torch.relu, "half_normal").whole
        return activation_entropy(corrected(value), "half_normal").whole - plain

    better = eafo_correction(lambda x: x, step=step)
    x = torch.linspace(-4.0, 4.0, 81, dtype=torch.float64)
    first_order = -x * torch.exp(-0.5 * x.square()) / math.sqrt(2.0 * math.pi)
    shown = x.float()
    return {
        "worst": activation_entropy(worst_activation()).whole,
        "tanh": activation_entropy(lambda x: 0.5 + 0.5 * torch.tanh(x)).whole,
        "sigmoid": activation_entropy(torch.sigmoid).whole,
        "hardtanh": activation_entropy(lambda x: 0.5 + 0.5 * F.hardtanh(x)).increasing,
        "rise_plus": rise(eps),
        "rise_minus": rise(-eps),
        "change": activation_entropy(better).whole - activation_entropy(lambda x: x).whole,
        "misfit": float(((better(x) - x) / step - first_order).abs().max()),
        "x": shown.tolist(),
        "curve_relu": torch.relu(shown).tolist(),
        "curve_plus": corrected(0.5)(shown).tolist(),
        "curve_minus": corrected(-0.5)(shown).tolist(),
    }


def _vit(config: ViTConfig, activation: str) -> ViT:
    """A vision transformer with ``activation`` in every feed-forward block; its weights start alike for all."""
    check_choice("activation", activation, tuple(ACTIVATIONS))
    model = ViT(config)
    replace_activations(model, nn.GELU, ACTIVATIONS[activation])
    return model


def _eps_figures(model: nn.Module) -> dict[str, float]:
    """The learned eps of all layers, ``eps_0`` the first, and the smallest and largest; nothing without CRReLU."""
    eps = [float(m.eps.detach()) for m in model.modules() if isinstance(m, CRReLU)]
    if not eps:
        return {}
    return {**{f"eps_{i}": value for i, value in enumerate(eps)}, "largest_eps": max(eps), "smallest_eps": min(eps)}


def measure_digits(run: CellRun) -> dict[str, Any]:
    """Train a small vision transformer on the 8×8 digits with ``run.config["activation"]``.

    The configuration holds moreover ``epochs``, ``batch``, ``lr`` and ``weight_decay``. Patches of 2×2, width 48, four
    blocks of four heads; 1,000 images to train on, 797 to test; AdamW, warm-up over a tenth of the steps, then cosine.

    Returns:
        ``accuracy`` and ``test_loss`` at the end, ``curve_accuracy`` over ``epoch``, and what eps became in CRReLU.
    """
    config = run.config
    split = digits(run.seed, rows=1000)
    (inputs, labels), (tests, test_labels) = (
        (images.reshape(-1, 1, 8, 8) * 2.0 - 1.0, classes) for images, classes in split
    )
    seeds.seed_everything(seeds.derive(run.seed, "model"))
    model = _vit(ViTConfig(image_size=8, patch_size=2, embed_dim=48, depth=4, num_heads=4), config["activation"])
    size = config["batch"]
    per_epoch = len(labels) // size
    steps = per_epoch * config["epochs"]

    def batch(step: int) -> tuple[Tensor, Tensor]:
        epoch, place = divmod(step, per_epoch)
        order = torch.randperm(len(labels), generator=seeds.generator(run.seed, "order", epoch))
        rows = order[place * size : (place + 1) * size]
        return inputs[rows], labels[rows]

    def evaluate(net: nn.Module) -> dict[str, float]:
        device = next(net.parameters()).device
        logits = net(tests.to(device)).cpu()
        return {
            "accuracy": float((logits.argmax(1) == test_labels).float().mean()),
            "test_loss": float(F.cross_entropy(logits, test_labels)),
        }

    curves = fit(
        model,
        lambda net, pair: F.cross_entropy(net(pair[0]), pair[1]),
        TrainConfig(steps=steps, lr=config["lr"], warmup=steps // 10, weight_decay=config["weight_decay"],
                    betas=(0.9, 0.999), clip=None, eval_every=per_epoch),
        batches=batch,
        run=run,
        evaluate=evaluate,
    )  # fmt: skip
    return {
        "accuracy": curves["accuracy"][-1],
        "test_loss": curves["test_loss"][-1],
        "curve_accuracy": curves["accuracy"],
        "epoch": [step / per_epoch for step in curves["eval_step"]],
        **_eps_figures(model),
    }


def measure_images(run: CellRun) -> dict[str, Any]:
    """Train a vision transformer on ``run.config["dataset"]`` with ``run.config["activation"]``.

    The configuration holds moreover ``patch_size``, ``embed_dim``, ``depth`` and ``num_heads``, and what
    :func:`softgate.lab.image_training.train_classifier` reads and returns; what eps became is added.
    """
    config = run.config
    task = ImageClassification(config["dataset"], run.seed, download=run.download)
    seeds.seed_everything(seeds.derive(run.seed, "model"))
    sizes = {name: config[name] for name in ("patch_size", "embed_dim", "depth", "num_heads")}
    model = _vit(
        ViTConfig(image_size=task.size, channels=task.channels, num_classes=task.classes, **sizes), config["activation"]
    )
    return {**train_classifier(run, model, task), **_eps_figures(model)}


def measure_preference(run: CellRun) -> dict[str, Any]:
    """Tune ``run.config["model"]`` on preferences by DPO, with ``activation`` ``"gelu"`` (its own) or ``"crrelu"``.

    The configuration holds moreover ``data`` (a data set of the hub, or a JSON Lines file, with ``prompt``, ``chosen``
    and ``rejected``, or with whole texts ``chosen`` and ``rejected``), ``beta``, ``lr``, ``batch``, ``steps``,
    ``tested`` (pairs held out) and ``tokens`` (length of a pair).

    Returns:
        ``margin`` of rewards and ``preference_accuracy`` on the held-out pairs, and what eps became.
    """
    config = run.config
    check_choice("activation", config["activation"], ("gelu", "crrelu"))
    # before trl is imported: it says which extra is missing, and mends torchvision where that stops transformers
    importlib.import_module("softgate.integrations.trl")
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    file = config["data"].endswith(".jsonl")
    load_dataset: Any = importlib.import_module("datasets").load_dataset
    rows = load_dataset(*(("json",) if file else (config["data"],)), split="train",
                             **({"data_files": config["data"]} if file else {}))  # fmt: skip
    parts = rows.train_test_split(test_size=config["tested"], seed=run.seed)
    seeds.seed_everything(seeds.derive(run.seed, "model"))
    models = [AutoModelForCausalLM.from_pretrained(config["model"]) for _ in range(2)]
    if config["activation"] == "crrelu":  # in the tuned model and in the one it is compared with
        for model in models:
            swap(model, activation="crrelu")
    tokenizer = AutoTokenizer.from_pretrained(config["model"])
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    arguments = DPOConfig(
        output_dir=str(run.folder / "trainer"), per_device_train_batch_size=config["batch"],
        per_device_eval_batch_size=config["batch"], max_steps=config["steps"], learning_rate=config["lr"],
        beta=config["beta"], max_length=config["tokens"], lr_scheduler_type="cosine", logging_steps=10,
        save_strategy="no", report_to="none", seed=run.seed, use_cpu=run.device == "cpu", bf16=run.device != "cpu",
        disable_tqdm=True,
    )  # fmt: skip
    trainer: Any = DPOTrainer(
        model=models[0], ref_model=models[1], args=arguments, train_dataset=parts["train"],
        eval_dataset=parts["test"], processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    found = trainer.evaluate()
    return {
        "margin": float(found["eval_rewards/margins"]),
        "preference_accuracy": float(found["eval_rewards/accuracies"]),
        **_eps_figures(models[0]),
    }
