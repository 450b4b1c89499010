"""Train a small MAXIM to remove noise, and restore a photograph of any size with it.

    python examples/restore_image.py
    python examples/restore_image.py --steps 3000 --features 16 --task ghost
    python examples/restore_image.py --checkpoint denoising.npz --variant S-3 --image photo.png --out restored.png

The last form takes the weights that the authors publish for their JAX code and restores a photograph of your own, tile
by tile if it is large.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from softgate.lab.data import sample_photograph
from softgate.lab.image_metrics import psnr
from softgate.lab.tasks.restoration import DEGRADATIONS, SyntheticRestoration
from softgate.losses import MaximLoss
from softgate.models import MAXIM, load_flax_checkpoint, restore


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=list(DEGRADATIONS), default="noise")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--features", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path, help="an .npz of the authors; nothing is trained then")
    parser.add_argument("--variant", default="S-2")
    parser.add_argument("--image", type=Path, help="photograph to restore with --checkpoint")
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--out", type=Path, default=Path("restored.png"))
    return parser.parse_args()


def train(options: argparse.Namespace) -> MAXIM:
    model = MAXIM(
        features=options.features, depth=2, groups=1, bottleneck_blocks=1, num_supervision_scales=2,
        block_size=(8, 8), grid_size=(8, 8), low_block_size=(4, 4),
    )  # fmt: skip
    for head in model.stages[-1].outputs:  # start from the degraded image itself
        torch.nn.init.zeros_(head.weight)
    task, loss_of = SyntheticRestoration(options.task, options.seed), MaximLoss()
    optimizer = torch.optim.AdamW(model.parameters(), options.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, total_steps=options.steps)
    for step in range(options.steps):
        degraded, clean = task.batch(step, 8)
        loss = loss_of(model(degraded, return_all=True), clean)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def restore_file(options: argparse.Namespace) -> None:
    from PIL import Image

    model = MAXIM(options.variant).eval()
    load_flax_checkpoint(model, options.checkpoint)
    with Image.open(options.image) as picture:
        image = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
    restored = restore(model, image, tile=options.tile)
    Image.fromarray(restored.permute(1, 2, 0).numpy()).save(options.out)
    print(f"wrote {options.out}")


def main() -> None:
    options = parse()
    if options.checkpoint is not None:
        restore_file(options)
        return
    torch.manual_seed(options.seed)
    model = train(options)
    clean = sample_photograph("flower")[None, :, 100:201, 200:350].float() / 255.0  # sides that fit no window
    degraded = DEGRADATIONS[options.task](clean, torch.Generator().manual_seed(options.seed))
    restored = restore(model, degraded)
    before, after = (float(psnr(image, clean)) for image in (degraded, restored))
    print(f"{options.task}: {before:.2f} dB before, {after:.2f} dB after {options.steps} steps")


if __name__ == "__main__":
    main()
