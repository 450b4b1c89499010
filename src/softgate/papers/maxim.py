"""MAXIM: images restored by gated MLPs that mix pixels inside windows and across a grid over the whole image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from softgate.lab.cell import CellRun
from softgate.lab.data import MissingDataError
from softgate.lab.data.store import data_folders
from softgate.lab.paper import Cell, Claim, Paper, Plot, Scale
from softgate.lab.restoration import make_restorer, test_figures, train_restorer
from softgate.lab.tasks.restoration import PairedRestoration, SyntheticRestoration
from softgate.models import MAXIM, MAXIM_CONFIGS, load_flax_checkpoint

__all__ = ["PAPER"]

Figures = Mapping[str, float | Sequence[float]]

_TINY: dict[str, Any] = {
    "depth": 2, "groups": 1, "bottleneck_blocks": 1, "num_supervision_scales": 1, "block_size": (8, 8),
    "grid_size": (8, 8), "low_block_size": (4, 4),
}  # fmt: skip
#: Networks of about 0.1 million parameters, as settings of a cell.
NETWORKS: dict[str, dict[str, Any]] = {
    "unet": {"network": "unet", "options": {"base": 19, "depth": 2}},
    "rcab": {"network": "maxim", "options": {**_TINY, "features": 15, "global_mlp": False, "cross_gating": False}},
    "maxim": {"network": "maxim", "options": {**_TINY, "features": 8}},
}


def measure(run: CellRun) -> Figures:
    """Train one network on crops of photographs that were degraded by a known operation."""
    task = SyntheticRestoration(run.config["task"], run.seed, images=run.config["images"])
    return train_restorer(run, make_restorer(run.config), task)


def measure_sizes(run: CellRun) -> Figures:
    """Parameters of the published sizes, and one training step of the smallest at 64 by 64 pixels."""
    counts = {}
    for name in MAXIM_CONFIGS:
        for scales in (1, 3):
            with torch.device("meta"):
                model = MAXIM(name, num_supervision_scales=scales)
            counts[f"parameters_{name.replace('-', '').lower()}_{scales}"] = float(
                sum(p.numel() for p in model.parameters())
            )
    model = MAXIM("S-1")
    loss = sum(x.square().mean() for stage in model(torch.rand(1, 3, 64, 64), return_all=True) for x in stage)
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return {**counts, "finite": float(all(bool(g.isfinite().all()) for g in gradients) and bool(loss.isfinite()))}


def measure_photographs(run: CellRun) -> Figures:
    """Restore a published test set with published weights, or train on its training set where there are none.

    What is not on this machine gives no figures, so that claims about it come out as not measured.
    """
    config = run.config
    try:
        task = PairedRestoration(config["folder"], run.seed)
        weights = [folder / config["weights"] for folder in data_folders() if (folder / config["weights"]).is_file()]
        model = MAXIM(config["variant"])
        if not weights:
            return {**train_restorer(run, model, task), "published_weights": 0.0}
        load_flax_checkpoint(model, weights[0])
        return {**test_figures(model.to(run.device).eval(), task), "published_weights": 1.0}
    except MissingDataError as error:
        run.log(0, 1, missing=str(error))
        return {"data_was_missing": 1.0}


def _cells(task: str, steps: int, seeds: int | None = None) -> tuple[Cell, ...]:
    settings = {"task": task, "images": "photographs", "steps": steps, "batch": 8, "lr": 2e-3}
    return tuple(Cell(f"{task}_{name}", {**settings, **network}, measure, seeds) for name, network in NETWORKS.items())


_SIZES = Cell("sizes", {}, measure_sizes, seeds=1)
_SMOKE = Scale(
    cells=(_SIZES, _cells("noise", 300)[-1]),
    minutes=0.5,
    note="The published sizes are counted, and a MAXIM of 107,000 parameters takes 300 steps of denoising.",
)
_LAPTOP = Scale(
    cells=(_SIZES, *_cells("ghost", 1000), *_cells("noise", 4000, seeds=1)),
    seeds=3,
    minutes=14.0,
    note="Networks of about 0.1 million parameters on crops of 32×32 pixels of two photographs, in place of 22 million "
    "on 256×256 pixels of thousands: 1000 steps for ghosts, three seeds, and 4000 for noise, one seed.",
)
_PAPER_CELLS = (
    ("sidd", "S-3", "sidd", "maxim/denoising_sidd.npz"),
    ("gopro", "S-3", "gopro", "maxim/deblurring_gopro.npz"),
    ("rain13k", "S-2", "rain13k", "maxim/deraining_rain13k.npz"),
)
_PAPER = Scale(
    cells=tuple(
        Cell(
            name,
            {"variant": variant, "folder": folder, "weights": weights, "steps": 600_000, "batch": 64, "lr": 2e-4},
            measure_photographs,
        )
        for name, variant, folder, weights in _PAPER_CELLS
    ),
    minutes=20_000.0,
    hardware="8 GPUs to train, 1 to test; pairs of photographs in $SOFTGATE_DATA/{sidd,gopro,rain13k}/{train,test}/"
    "{input,target}, and the authors' weights, where they are to be tested, in $SOFTGATE_DATA/maxim",
    note="With the authors' weights only the test set is restored. Training follows the paper as far as it says: no "
    "training code is published, and MixUp, which the authors use, is left out.",
)

_CLAIMS = (
    Claim(
        id="parameters",
        statement="The networks have exactly the published numbers of parameters.",
        paper_figure="6,108,515 (S-1) to 62,317,001 (M-3); 22,212,795 (S-3 with three scales; 22.2 M in the paper)",
        source="comments and README of the authors' code",
        relation='parameters_s1_1["sizes"] == 6108515 and parameters_s2_3["sizes"] == 14176178 and '
        'parameters_s3_1["sizes"] == 20599145 and parameters_s3_3["sizes"] == 22212795 and '
        'parameters_m1_1["sizes"] == 19361219 and parameters_m3_1["sizes"] == 62317001 and finite["sizes"] == 1',
        scales=("smoke", "laptop"),
    ),
    Claim(
        id="it-learns",
        statement="A small MAXIM learns to remove noise: its loss falls, and its result is far better than its input.",
        paper_figure="none",
        source="none: what must hold before other figures mean anything",
        relation='psnr["noise_maxim"] > input_psnr["noise_maxim"] + 6 and '
        'last_loss["noise_maxim"] < first_loss["noise_maxim"]',
        scales=("smoke", "laptop"),
        per_scale={
            "smoke": 'psnr["noise_maxim"] > input_psnr["noise_maxim"] + 4 and '
            'last_loss["noise_maxim"] < first_loss["noise_maxim"]'
        },
        note="4 dB after the 300 steps of the smoke scale, where 5 to 6.5 dB were seen.",
    ),
    Claim(
        id="far-away-over-unet",
        statement="Where the answer lies far away, a MAXIM restores better than a plain U-Net with as many parameters.",
        paper_figure="ablations not seen; the reason that the paper gives for global mixing",
        source="sections 1 and 3.2",
        relation='psnr["ghost_maxim"] >= psnr["ghost_unet"] + 1.5',
        direction='psnr["ghost_maxim"] > psnr["ghost_unet"]',
        scales=("laptop",),
        note="A ghost shifted by half the image must be undone. Equal parameters is not equal compute: a step of MAXIM "
        "takes about three times that of the U-Net.",
    ),
    Claim(
        id="far-away-over-ablation",
        statement="The gated MLPs and the cross-gating are what does it: the same network without them restores worse.",
        paper_figure="ablations not seen",
        source="the reason that the paper gives for its blocks",
        relation='psnr["ghost_maxim"] >= psnr["ghost_rcab"] + 0.3',
        direction='psnr["ghost_maxim"] > psnr["ghost_rcab"]',
        scales=("laptop",),
        note="Mean over seeds; the ablation is wider, so that it has as many parameters.",
    ),
    Claim(
        id="noise-over-unet",
        statement="A MAXIM removes noise better than a plain U-Net with as many parameters.",
        paper_figure="39.96 dB on SIDD, the best of its time",
        source="README of the authors' code",
        relation='psnr["noise_maxim"] >= psnr["noise_unet"] + 0.3',
        direction='psnr["noise_maxim"] > psnr["noise_unet"]',
        scales=("laptop",),
        note="One seed. Noise is a local task: the advantage needs thousands of steps to show.",
    ),
    Claim(
        id="noise-over-ablation",
        statement="It also removes noise better than the same network without gated MLPs and cross-gating.",
        paper_figure="ablations not seen",
        source="the reason that the paper gives for its blocks",
        relation='psnr["noise_maxim"] > psnr["noise_rcab"]',
        scales=("laptop",),
        note="One seed, and a difference that one seed cannot settle.",
    ),
    Claim(
        id="benchmarks",
        statement="State of the art of its time on denoising, deblurring and deraining.",
        paper_figure="SIDD 39.96 dB, GoPro 32.86 dB (S-3), Rain13k 33.24 dB (S-2)",
        source="README of the authors' code",
        relation='psnr["sidd"] >= 39.66 and psnr["gopro"] >= 32.56 and psnr["rain13k"] >= 32.94',
        scales=("paper",),
        note="Restormer and NAFNet have since passed it on GoPro and SIDD.",
    ),
)

_PLOTS = (
    Plot("ghosts", "bars", "psnr", "Removing a ghost shifted by half the image", ylabel="PSNR, dB (bars: seeds)",
         cells=("ghost_unet", "ghost_rcab", "ghost_maxim")),
    Plot("noise", "bars", "psnr", "Removing noise of 50 grey levels", ylabel="PSNR, dB",
         cells=("noise_unet", "noise_rcab", "noise_maxim")),
    Plot("curves", "lines", "curve_psnr", "While training", x="step", xlabel="update", ylabel="PSNR, dB"),
    Plot("cost", "bars", "mflops", "Operations of one image of 32×32 pixels", ylabel="million operations",
         cells=("ghost_unet", "ghost_rcab", "ghost_maxim")),
)  # fmt: skip

PAPER = Paper(
    slug="maxim",
    title="MAXIM: Multi-Axis MLP for Image Processing",
    arxiv="2201.02973",
    date="2022-01",
    venue="CVPR 2022",
    summary="Gated MLPs mix the pixels of an image along two axes at once, inside windows and across a dilated grid, "
    "and blocks on the skip connections gate two maps by each other. Every layer sees the whole image at a cost that "
    "is linear in its size, and images of any size can be restored.",
    claims=_CLAIMS,
    scales={"smoke": _SMOKE, "laptop": _LAPTOP, "paper": _PAPER},
    measure=measure,
    plots=_PLOTS,
    methods=("models.axis_mix",),
    code="google-research/maxim",
    notes=(
        "Two photographs to train on (a temple, a portrait) and one to test on (a flower, 160 fixed crops) come with "
        "scikit-learn and matplotlib. No data set of degraded photographs may be bundled.",
        "All three networks add their input to their result and are trained alike: Charbonnier loss plus 0.1 times the "
        "spectral loss, AdamW, a rate that rises for three tenths of the steps and then falls to 0. Nothing was tuned.",
        "The bottleneck of the ablation keeps its gated MLP, as in the authors' code without global MLPs.",
        "Three quirks of the authors' code are kept by default; strict_reference=False leaves them.",
    ),
)
