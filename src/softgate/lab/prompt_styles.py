"""Does a router find the prompts of an image's style? Measured on styled digits with a CLIP trained on the spot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from softgate.lab import seeds
from softgate.lab.cell import CellRun
from softgate.lab.data.styled_digits import CLASSES, STYLES, StyledDigits
from softgate.lab.prompt_training import TestBatch, harmonic, learn_prompts
from softgate.lab.tiny_clip import pretrain
from softgate.lab.training import TrainConfig
from softgate.routing import PromptMixture

__all__ = ["METHODS", "measure_styles"]

#: Two templates per style; the group of a style has the number of the style.
TEMPLATES = [[f"a {style} photo of a {{}}", f"a {style} image of the {{}}"] for style in STYLES]
_PLAIN = [["a photo of a {}"]]
#: Name -> templates and options of the mixture.
METHODS: dict[str, dict[str, Any]] = {
    "coop": {"templates": _PLAIN, "top_k": 1, "text_weight": 0.0},
    "single": {"templates": _PLAIN, "top_k": 1},
    "mocoop": {"templates": TEMPLATES},
    "no_gate_loss": {"templates": TEMPLATES, "gate_weight": 0.0},
    "no_text_loss": {"templates": TEMPLATES, "text_weight": 0.0},
}
_HARD = torch.arange(1, len(STYLES))


class _StyledShots:
    """30 base classes with one shot in every style but the clear one, 30 new classes; tests in the same styles."""

    def __init__(self, world: StyledDigits, tested: int) -> None:
        order = torch.randperm(len(CLASSES), generator=seeds.generator(world.seed, "classes"))
        self.parts = {"base": order[: len(order) // 2], "new": order[len(order) // 2 :]}
        self.world, self.tested = world, tested
        base = self.parts["base"]
        self.labels = torch.arange(len(base)).repeat_interleave(len(_HARD))
        self.images = world.images("train", base[self.labels], _HARD.repeat(len(base)), "shots")

    def names(self, part: str) -> list[str]:
        return [CLASSES[c] for c in self.parts[part].tolist()]

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(self.labels), (size,), generator=seeds.generator(self.world.seed, "shot", step))
        return self.images[rows], self.labels[rows]

    def test(self, part: str) -> Iterator[TestBatch]:
        classes = self.parts[part]
        labels = torch.arange(len(classes)).repeat_interleave(self.tested)
        styles = _HARD[torch.arange(len(labels)) % len(_HARD)]
        yield self.world.images("test", classes[labels], styles, part), labels, styles


@torch.no_grad()
def _hard_prompts(clip: nn.Module, tokenizer: Any, shots: _StyledShots) -> dict[str, float]:
    """Accuracies without learning: with all templates together, and with those of the true style."""
    model = PromptMixture(clip, tokenizer, TEMPLATES, CLASSES, finetune_vision_ln=False)
    found: dict[str, list[float]] = {"ensemble": [], "oracle": []}
    for part in ("base", "new"):
        prototypes = model.bank.prototypes[:, model.bank.indices(shots.names(part))]
        for images, labels, styles in shots.test(part):
            image = model.image_features(images.to(prototypes.device))
            cosine = torch.einsum("bd,gcd->bgc", image, prototypes).cpu()
            assert styles is not None
            choices = {"ensemble": cosine.mean(1), "oracle": cosine[torch.arange(len(labels)), styles]}
            for name, logits in choices.items():
                found[name].append(float((logits.argmax(-1) == labels).double().mean()))
    return {
        f"{figure}_{name}": value
        for name, (base, new) in found.items()
        for figure, value in (("base", base), ("new", new), ("harmonic", harmonic(base, new)))
    }


def measure_styles(run: CellRun) -> dict[str, float | Sequence[float]]:
    """Train a tiny CLIP on styled digits and learn prompts for it by every method of the configuration.

    The configuration holds ``pretraining`` (updates of the CLIP), ``methods`` (of :data:`METHODS`), ``steps`` and
    ``batch`` of the prompts, and ``tested``, test images per class.

    Returns:
        What :func:`softgate.lab.prompt_training.learn_prompts` returns, with ``_`` and the method behind each name;
        and without learning ``base_…``, ``new_…`` and ``harmonic_…`` for the ``ensemble`` of all hard templates and
        for the ``oracle`` that knows the style.
    """
    config = run.config
    world = StyledDigits(run.seed, download=run.download)
    clip, tokenizer = pretrain(run, world, config["pretraining"])
    shots = _StyledShots(world, config["tested"])
    figures: dict[str, Any] = _hard_prompts(clip, tokenizer, shots)
    training = TrainConfig(steps=config["steps"], lr=0.05, min_lr_ratio=0.0, clip=1.0)
    for method in config["methods"]:
        seeds.seed_everything(seeds.derive(run.seed, "prompts"))
        options = {"finetune_vision_ln": False, **METHODS[method]}
        found = learn_prompts(
            run, clip, tokenizer, shots, options, training, batch=config["batch"], name=method.replace("_", "-")
        )
        figures["step"] = found.pop("step")
        figures |= {f"{figure}_{method}": value for figure, value in found.items()}
    return figures
