"""MAXIM against arrays made by the authors' code: every block and whole networks, outputs and gradients, in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from softgate.models import (
    MAXIM,
    RCAB,
    RDCAB,
    AxisGatedMLP,
    CrossGatingBlock,
    MAXIMConfig,
    MultiAxisGatedMLP,
    SpatialGate,
    SupervisedAttention,
    load_flax_checkpoint,
)
from softgate.models.multi_axis.flax_weights import _from_flax, _leaves
from softgate.models.multi_axis.unet import Bottleneck, Decoder, Encoder, ResizedProjection

SIZES = {"block": (4, 2), "grid": (2, 4)}


def config(**fields: Any) -> MAXIMConfig:
    """Level 0 has block (4, 2); low levels have the grid (2, 4) that the authors' code cannot be given."""
    sizes = {"block_size": (4, 2), "grid_size": (2, 4), "low_block_size": (4, 2), "low_grid_size": (2, 4)}
    options = {"features": 8, "groups": 1, "depth": 2, "num_supervision_scales": 1, "strict_reference": False}
    return MAXIMConfig(**{**options, **sizes, **fields})


class _Encoder(nn.Module):
    """Arguments as in the authors' code: input, skip, encoder and decoder of the stage before."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Encoder(config(), 16, 0, cross=True)

    def forward(self, x: Tensor, skip: Tensor, enc: Tensor, dec: Tensor) -> tuple[Tensor, Tensor]:
        return self.inner(torch.cat((x, skip), 1), enc + dec)


BLOCKS = {
    "grid_gmlp": lambda: AxisGatedMLP(8, (2, 4), "grid"),
    "block_gmlp": lambda: AxisGatedMLP(8, (4, 2), "block"),
    "multi_axis_gmlp": lambda: MultiAxisGatedMLP(8, **SIZES),
    "rcab": lambda: RCAB(8),
    "rdcab": lambda: RDCAB(8),
    "spatial_gating_weights": lambda: SpatialGate(8, **SIZES),
    "cross_gating_same": lambda: CrossGatingBlock(8, 8, 10, **SIZES),
    "cross_gating_up": lambda: CrossGatingBlock(8, 24, 16, **SIZES, upsample=True),
    "sam": lambda: SupervisedAttention(8),
    "bottleneck": lambda: Bottleneck(config(features=8, depth=1, groups=2), 9),
    "encoder_block": _Encoder,
    "decoder_block": lambda: Decoder(config(depth=3), 16, 0),
    "resize_ratio_0.25": lambda: ResizedProjection(8, 4, -2),
    "resize_ratio_0.5": lambda: ResizedProjection(8, 4, -1),
    "resize_ratio_1": lambda: ResizedProjection(8, 4, 0),
    "resize_ratio_2": lambda: ResizedProjection(8, 4, 1),
    "resize_ratio_4": lambda: ResizedProjection(8, 4, 2),
}


def image(array: Any) -> Tensor:
    """(B, H, W, C) -> (B, C, H, W), float64."""
    return torch.from_numpy(np.asarray(array)).double().permute(0, 3, 1, 2)


def close(found: Tensor, expected: Tensor, relative: float) -> None:
    """Errors as parts of the largest entry."""
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= relative * float(expected.abs().max())


@pytest.mark.parametrize("name", BLOCKS)
def test_block(golden, name: str) -> None:
    data = np.load(golden("maxim") / f"{name}.npz")
    module = BLOCKS[name]().double()
    block = getattr(module, "inner", module)
    load_flax_checkpoint(
        block, {k.removeprefix("param.").replace(".", "/"): data[k] for k in data.files if k.startswith("param.")}
    )
    keys = [k.removeprefix("in.") for k in data.files if k.startswith("in.")]
    inputs = [image(data[f"in.{k}"]).requires_grad_() for k in keys]
    found = module(*inputs)
    outputs = found if isinstance(found, tuple) else (found,)
    loss = torch.zeros((), dtype=torch.float64)
    for index, output in enumerate(outputs):
        close(output.detach(), image(data[f"out.{index}"]), 1e-12)
        loss = loss + (output * image(data[f"cotangent.{index}"])).sum()
    loss.backward()
    for key, value in zip(keys, inputs, strict=True):
        close(value.grad, image(data[f"grad_in.{key}"]), 1e-10)
    for path, (layer, parameter) in _leaves(block, ""):
        expected = _from_flax(layer, path, data["grad_param." + path.replace("/", ".")]).double()
        close(parameter.grad, expected, 1e-5)


NETWORKS: dict[str, dict[str, Any]] = {
    "maxim_tiny_2stage": {
        "depth": 2, "stages": 2, "num_supervision_scales": 2, "high_res_levels": 1, "block_size": (4, 4),
        "grid_size": (2, 4),
    },
    "maxim_tiny_1stage_deep": {
        "depth": 3, "stages": 1, "num_supervision_scales": 3, "high_res_levels": 2, "block_size": (4, 2),
        "grid_size": (2, 2),
    },
    "maxim_tiny_no_mab": {
        "depth": 2, "stages": 2, "num_supervision_scales": 1, "high_res_levels": 1, "block_size": (4, 2),
        "grid_size": (2, 2), "global_mlp": False,
    },
}  # fmt: skip


def flat_parameters(data: Any) -> dict[str, Any]:
    arrays, place = {}, 0
    for name, shape, ndim in zip(data["param_names"], data["param_shapes"], data["param_ndim"], strict=True):
        axes = tuple(int(n) for n in shape[:ndim])
        arrays[str(name).replace(".", "/")] = data["param_flat"][place : place + math.prod(axes)].reshape(axes)
        place += math.prod(axes)
    assert place == len(data["param_flat"])
    return arrays


@pytest.mark.parametrize("name", NETWORKS)
def test_network(golden, name: str, tmp_path) -> None:
    data = np.load(golden("maxim") / f"{name}.npz")
    model = MAXIM(
        MAXIMConfig(features=4, groups=1, bottleneck_blocks=1, low_block_size=(2, 2), **NETWORKS[name])
    ).double()
    published = {f"opt/target/{path}": array for path, array in flat_parameters(data).items()}
    np.savez(tmp_path / "checkpoint.npz", **published, **{"opt/state/step": np.zeros(1)})
    load_flax_checkpoint(model, tmp_path / "checkpoint.npz")
    x = image(data["in.x"]).requires_grad_()
    outputs = [output for stage in model(x, return_all=True) for output in stage]
    loss = torch.zeros((), dtype=torch.float64)
    for index, output in enumerate(outputs):
        close(output.detach(), image(data[f"out.{index}"]), 1e-12)
        loss = loss + (output * image(data[f"cotangent.{index}"])).sum()
    assert f"out.{len(outputs)}" not in data.files
    (gradient,) = torch.autograd.grad(loss, x)
    close(gradient, image(data["grad_in.x"]), 1e-10)
    assert torch.equal(model(x), outputs[-1])


def test_images_are_scaled_as_in_the_authors_code(golden) -> None:
    data = np.load(golden("maxim") / "nearest_pyramid.npz")
    for times in (2, 4):
        found = nn.functional.interpolate(image(data["x"]), scale_factor=1 / times, mode="nearest-exact")
        assert torch.equal(found, image(data[f"nearest_down_{times}"]))
