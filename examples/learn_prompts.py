"""Learn a mixture of prompts for a CLIP from a few images of each class, and keep it in a file of some kilobytes.

    python examples/learn_prompts.py
    python examples/learn_prompts.py --clip openai/clip-vit-base-patch16 --images photos --lr 0.032

``--images`` is a folder with one folder of images per class. Without it the images are coloured squares, some of them
in the dark; without ``--clip`` the CLIP is tiny and has random weights: it shows how things go, not what they give.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from softgate.integrations.clip_loading import load_clip
from softgate.lab import seeds
from softgate.lab.prompt_benchmarks import read_image
from softgate.lab.tiny_clip import make_tiny_clip, make_word_tokenizer
from softgate.routing import PromptMixture

#: Groups of templates. A soft prompt starts from the first of each, the gating loss compares images with all of them.
TEMPLATES = [
    ["a photo of a {}", "a good photo of a {}"],
    ["a dark photo of a {}", "a photo of a {} at night"],
    ["a drawing of a {}", "a sketch of a {}"],
]
COLOURS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "yellow": (1, 1, 0)}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", help="folder or name on the hub of a CLIP (default: tiny, random weights)")
    parser.add_argument("--images", type=Path, help="folder with one folder of images per class")
    parser.add_argument("--new-names", nargs="*", default=["purple square"], help="classes to name without images")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "softgate-prompts")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def load_images(folder: Path | None, size: int) -> tuple[list[str], torch.Tensor, torch.Tensor]:
    """Names of the classes, images and labels."""
    if folder is None:
        names = [f"{colour} square" for colour in COLOURS]
        labels = torch.arange(len(names)).repeat(8)
        light = torch.tensor([1.0, 0.2]).repeat_interleave(16)  # half of them in the dark
        images = torch.tensor(list(COLOURS.values()))[labels, :, None, None] * light[:, None, None, None]
        return names, images + 0.05 * torch.randn(len(labels), 3, size, size), labels
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    files = [(file, label) for label, name in enumerate(names) for file in sorted((folder / name).iterdir())]
    return (
        names,
        torch.stack([read_image(file, size) for file, _ in files]),
        torch.tensor([label for _, label in files]),
    )


def main() -> None:
    options = parse()
    seeds.seed_everything(0)
    if options.clip:
        clip, tokenizer = load_clip(options.clip)
    else:
        words = [
            "a",
            "photo",
            "of",
            "good",
            "dark",
            "at",
            "night",
            "drawing",
            "sketch",
            ".",
            "square",
            "purple",
            *COLOURS,
        ]
        tokenizer = make_word_tokenizer(words)
        clip = make_tiny_clip(tokenizer)
    clip.to(options.device)
    names, images, labels = load_images(options.images, clip.config.vision_config.image_size)
    images, labels = images.to(options.device), labels.to(options.device)
    blocks = bool(options.clip)  # the tiny one has a convolutional image encoder
    everything = [*names, *options.new_names]
    model = PromptMixture(clip, tokenizer, TEMPLATES, names, everything, finetune_vision_ln=blocks)
    optimizer = torch.optim.SGD(model.trainable_parameters(options.lr), momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    losses = []
    for step in range(options.steps):
        rows = torch.randint(len(labels), (options.batch,), generator=seeds.generator(0, "rows", step)).to(
            labels.device
        )
        out = model(images[rows], labels[rows])
        optimizer.zero_grad()
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(out.loss.detach()))
    report(model.eval(), tokenizer, images, labels, losses, options)


@torch.no_grad()
def report(
    model: PromptMixture,
    tokenizer: object,
    images: torch.Tensor,
    labels: torch.Tensor,
    losses: list[float],
    options: argparse.Namespace,
) -> None:
    out = model(images)
    right = float((out.logits.argmax(-1) == labels).double().mean())
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}, {right:.0%} of the training images right")
    share = out.topk_indices.flatten().bincount(minlength=len(TEMPLATES)) / out.topk_indices.numel()
    for group, part in zip(TEMPLATES, share.tolist(), strict=True):
        print(f"  {part:4.0%} of the choices: {group[0]!r}")
    model.save_pretrained(options.out)
    again = PromptMixture.from_pretrained(options.out, model.clip, tokenizer).eval()
    size = sum(file.stat().st_size for file in options.out.iterdir())
    print(f"saved {size / 1000:.0f} kB in {options.out}; logits of what was saved differ by "
          f"{float((again(images).logits - out.logits).abs().max()):.1g}")  # fmt: skip
    again.set_classes([*again.classnames, *options.new_names])
    print(f"with {', '.join(options.new_names)}: {tuple(again(images).logits.shape)} logits from the same prompts")


if __name__ == "__main__":
    main()
