"""Spiking neurons as filters, what token mixers leave of high frequencies, and small spiking networks on images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate.activations import lif
from softgate.diagnostics import energy_report, high_frequency_ratio, lif_transfer
from softgate.errors import check_choice
from softgate.lab import seeds
from softgate.lab.cell import CellRun
from softgate.lab.tasks.exit_images import ExitImages, exit_images
from softgate.lab.tasks.image_patches import accuracy
from softgate.lab.training import TrainConfig, fit
from softgate.models import EmbedOrig, MaxFormer, MaxResNet, PoolMixer

__all__ = ["measure_images", "measure_mixers", "measure_neurons"]

_NETWORKS = {"max_former": MaxFormer, "max_resnet": MaxResNet}
#: Samples per second of the sines, and their frequencies in hertz.
_RATE, _SINES = 4000, (100, 200, 300)


def measure_neurons(run: CellRun) -> dict[str, Any]:
    """Neurons as filters in time; nothing is random.

    The configuration holds ``tau`` and ``layers`` (of the impulse response), ``beta``, ``threshold`` and ``kernel`` (of
    the sines: what a step keeps, and how many samples the exponential is long that smooths the output), ``amplitudes``
    (of each of three sines of 100, 200 and 300 Hz at 4 kHz) and ``amplitude``, the one of the single figures.

    Returns:
        ``impulse_error``, the largest difference of the membranes' response to an impulse, layer after layer, from the
        transfer function; ``spikes_300`` and ``relu_300``, the amplitude at 300 Hz over that at 100 Hz in the smoothed
        spikes and after ReLU; ``excess``, the largest of spikes less ReLU over all ``amplitudes``, and curves of both
        over ``strength``; gains ``gain_1`` … over ``w`` in cycles per step.
    """
    config = run.config
    pairs = {a: _ratios(config, a) for a in {config["amplitude"], *config["amplitudes"]}}
    strengths = sorted(config["amplitudes"])
    w = torch.linspace(0.0, math.pi, 65, dtype=torch.float64)
    beta = 1.0 - 1.0 / config["tau"]
    gains = {f"gain_{n}": lif_transfer(beta, w, n).abs().tolist() for n in (1, 2, 4)}
    return {
        "impulse_error": _impulse_error(config["tau"], config["layers"]),
        "spikes_300": pairs[config["amplitude"]][0],
        "relu_300": pairs[config["amplitude"]][1],
        "excess": max(pairs[a][0] - pairs[a][1] for a in strengths),
        "strength": strengths,
        "curve_spikes": [pairs[a][0] for a in strengths],
        "curve_relu": [pairs[a][1] for a in strengths],
        "w": (w / (2.0 * math.pi)).tolist(),
        **gains,
    }


def _impulse_error(tau: float, layers: int, steps: int = 512) -> float:
    signal = torch.zeros(steps, 1, dtype=torch.float64)
    signal[0] = 1.0
    w = 2.0 * math.pi * torch.arange(steps, dtype=torch.float64) / steps
    worst = 0.0
    for layer in range(1, layers + 1):
        state, membranes = torch.zeros(1, dtype=torch.float64), []
        for current in signal.split(1):
            _, state = lif(current, tau, 1e9, state=state, return_state=True)
            membranes.append(state)
        signal = torch.stack(membranes)
        error = torch.fft.fft(signal[:, 0]) - lif_transfer(1.0 - 1.0 / tau, w, layer)
        worst = max(worst, float(error.abs().max()))
    return worst


def _ratios(config: Mapping[str, Any], amplitude: float) -> tuple[float, float]:
    """Amplitude at 300 Hz over that at 100 Hz, of spikes and of ReLU, both smoothed alike."""
    time = torch.arange(_RATE, dtype=torch.float64) / _RATE
    signal = amplitude * torch.stack([torch.sin(2.0 * math.pi * f * time) for f in _SINES]).sum(0)
    tau = 1.0 / (1.0 - config["beta"])
    spikes = lif(signal.unsqueeze(1), tau, config["threshold"], reset="soft")
    length = config["kernel"]
    kernel = torch.exp(-torch.arange(length, dtype=torch.float64) / length).flip(0)

    def ratio(output: Tensor) -> float:
        smooth = F.conv1d(output[None, None], kernel[None, None], padding=length - 1)[0, 0, :_RATE]
        spectrum = torch.fft.rfft(smooth).abs()
        return float(spectrum[_SINES[-1]] / spectrum[_SINES[0]])

    return ratio(spikes.squeeze(1)), ratio(torch.relu(signal))  # type: ignore[union-attr]


@torch.no_grad()
def measure_mixers(run: CellRun) -> dict[str, Any]:
    """High frequencies of spike maps behind token mixers, and of features behind random layers with LIF or ReLU.

    The configuration holds ``dataset``, ``side`` and ``images`` (how many), ``dim`` (channels of the embedding),
    ``steps`` and ``layers`` (random convolutions).

    Returns:
        ``identity``, ``max`` and ``avg``: share of power beyond 0.25 cycles per pixel in spikes that a mixer changed;
        ``rates`` and ``relu``: the same of features behind the last random layer, mean spikes over the steps or ReLU,
        and curves of both over ``layer``.
    """
    config = run.config
    sizes = {"train": config["images"], "validation": 1, "calibration": 1, "test": 1}
    task = exit_images(config["dataset"], run.seed, sizes, side=config["side"], download=run.download)
    images = task.parts["train"][0]
    seeds.seed_everything(seeds.derive(run.seed, "layers"))
    x = images.expand(config["steps"], *images.shape)
    spikes: Tensor = lif(EmbedOrig(task.channels, config["dim"])(x))  # type: ignore[assignment]
    mixers = {"identity": nn.Identity(), "max": PoolMixer("max"), "avg": PoolMixer("avg")}
    shares = {name: float(high_frequency_ratio(mixer(spikes))) for name, mixer in mixers.items()}
    behind = _random_layers(images, config["layers"], config["dim"], config["steps"])
    return {
        **shares,
        "rates": behind["rates"][-1],
        "relu": behind["relu"][-1],
        "layer": list(range(1, config["layers"] + 1)),
        "curve_rates": behind["rates"],
        "curve_relu": behind["relu"],
    }


def _random_layers(images: Tensor, layers: int, dim: int, steps: int) -> dict[str, list[float]]:
    """Shares of high frequencies behind each of ``layers`` convolutions with batch norm, the same for both."""
    spikes, smooth = images.expand(steps, *images.shape), images
    found: dict[str, list[float]] = {"rates": [], "relu": []}
    for _ in range(layers):
        conv = nn.Conv2d(smooth.shape[1], dim, 3, padding=1, bias=False)
        norm = nn.BatchNorm2d(dim)
        currents = norm(conv(spikes.flatten(0, 1))).unflatten(0, spikes.shape[:2])
        spikes = lif(2.0 * currents)  # type: ignore[assignment] # a step takes half of its input
        smooth = torch.relu(norm(conv(smooth)))
        found["rates"].append(float(high_frequency_ratio(spikes.mean(0))))
        found["relu"].append(float(high_frequency_ratio(smooth)))
    return found


def measure_images(run: CellRun) -> dict[str, Any]:
    """Train a spiking network on small images.

    The configuration holds ``dataset``, ``side`` and ``sizes`` of :func:`softgate.lab.tasks.exit_images`; ``network``
    (``"max_former"`` or ``"max_resnet"``) and ``options`` of its configuration; ``epochs``, ``batch``, ``lr``,
    ``weight_decay``, and optionally ``smoothing`` of labels and ``precision``.

    Returns:
        ``accuracy`` on test images at the end, ``best_accuracy`` of all epochs, ``curve_accuracy`` over ``epoch``,
        ``first_loss`` and ``last_loss`` in training, ``parameters``, and ``microjoules`` for one test image.
    """
    config = run.config
    task = exit_images(config["dataset"], run.seed, config["sizes"], side=config["side"], download=run.download)
    seeds.seed_everything(seeds.derive(run.seed, "model"))
    model = _network(config, task)
    per_epoch = max(1, config["sizes"]["train"] // config["batch"])
    steps = per_epoch * config["epochs"]
    images, labels = task.parts["test"]

    def evaluate(net: nn.Module) -> dict[str, float]:
        device = next(net.parameters()).device
        return {"accuracy": accuracy(net, images.to(device), labels.to(device), chunk=250)}

    curves = fit(
        model,
        lambda net, pair: F.cross_entropy(net(pair[0]), pair[1], label_smoothing=config.get("smoothing", 0.0)),
        TrainConfig(steps=steps, lr=config["lr"], warmup=steps // 10, min_lr_ratio=0.0, betas=(0.9, 0.999), clip=None,
                    weight_decay=config["weight_decay"], eval_every=per_epoch,
                    precision=config.get("precision", "fp32")),
        batches=lambda step: task.batch(step, config["batch"]),
        run=run,
        evaluate=evaluate,
    )  # fmt: skip
    last = curves["loss"][-max(1, per_epoch // 4) :]
    return {
        "accuracy": curves["accuracy"][-1],
        "best_accuracy": max(curves["accuracy"]),
        "curve_accuracy": curves["accuracy"],
        "epoch": [step / per_epoch for step in curves["eval_step"]],
        "first_loss": curves["loss"][0],
        "last_loss": sum(last) / len(last),
        "parameters": float(sum(p.numel() for p in model.parameters())),
        "microjoules": 1e3 * energy_report(model.cpu(), images[:100]).millijoules,
    }


def _network(config: Mapping[str, Any], task: ExitImages) -> nn.Module:
    check_choice("network", config["network"], tuple(_NETWORKS))
    options = {key: tuple(v) if isinstance(v, list) else v for key, v in config["options"].items()}
    return _NETWORKS[config["network"]](channels=task.channels, num_classes=task.classes, **options)
