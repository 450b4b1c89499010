"""Parity with arrays of the authors' code in float64: neurons, layers, embeddings, blocks and a tiny Max-Former."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from softgate.activations import lif
from softgate.models import (
    DepthwiseMixer,
    Embed1Max,
    EmbedMax,
    EmbedMaxPlus,
    EmbedOrig,
    EmbedOrigLater,
    MaxFormer,
    PoolMixer,
    SpikingMLP,
    SpikingSelfAttention,
    TokenQKAttention,
    rename_released_max_former,
)
from softgate.models.max_resnet import _Block

EXACT = {"rtol": 1e-10, "atol": 1e-11}
#: File -> the layer, for an input with as many channels and weights of such shapes.
LAYERS: dict[str, Callable[[int, Mapping[str, Tensor]], nn.Module]] = {
    "maxmixer": lambda dim, p: PoolMixer("max"),
    "avgmixer": lambda dim, p: PoolMixer("avg"),
    "dwc3": lambda dim, p: DepthwiseMixer(dim, 3),
    "dwc5": lambda dim, p: DepthwiseMixer(dim, 5),
    "embed_orig": lambda dim, p: EmbedOrig(dim, len(p["embed1.embed.conv.weight"])),
    "embed_max": lambda dim, p: EmbedMax(dim, 2 * dim),
    "embed_1max": lambda dim, p: Embed1Max(dim, 2 * dim),
    "embed_orig_later": lambda dim, p: EmbedOrigLater(dim, 2 * dim),
    "embed_max_plus": lambda dim, p: EmbedMaxPlus(dim, len(p["max_embed3.embed.conv.weight"])),
    "s_mlp": lambda dim, p: SpikingMLP(dim, len(p["fc1.conv.weight"])),
    "ssa": lambda dim, p: SpikingSelfAttention(dim, 2),
    "tokenqk": lambda dim, p: TokenQKAttention(dim, 2),
    "msblock": lambda dim, p: _Block(dim, dim),
    "maxblock": lambda dim, p: _Block(dim, 2 * dim, "max"),
}


def arrays(file: Path) -> dict[str, Tensor]:
    with np.load(file) as data:
        return {key: torch.tensor(value) for key, value in data.items()}


def renamed(file: str, part: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of the authors' code -> ours."""
    if not file.endswith("block"):
        return rename_released_max_former(part)
    names = ((r"^conv(\d)\.", r"conv\1.conv."), (r"^bn(\d)\.", r"conv\1.norm."), (r"^downsample\.1", "skip.conv"),
             (r"^downsample\.2", "skip.norm"))  # fmt: skip
    found = {}
    for name, value in part.items():
        for old, new in names:
            name = re.sub(old, new, name)
        found[name] = value
    return found


@pytest.mark.parametrize("detached", [0, 1])
@pytest.mark.parametrize(("name", "threshold"), [("lif", 1.0), ("lif_th05", 0.5)])
def test_neurons(golden, name: str, threshold: float, detached: int) -> None:
    data = arrays(golden("max-former") / f"{name}_detach{detached}.npz")
    x = data["x"].requires_grad_()
    y = lif(x, 2.0, threshold, detach_reset=bool(detached))
    assert torch.equal(y.detach(), data["y"]) and 0 < float(data["y"].mean()) < 1
    (grad,) = torch.autograd.grad((data["w"] * y).sum(), x)
    torch.testing.assert_close(grad, data["gx"], **EXACT)


def compare(file: str, model: nn.Module, data: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    model.double().train(bool(data["train"]))
    missing = model.load_state_dict(dict(weights), strict=False)
    assert not missing.unexpected_keys and all(name.endswith("num_batches_tracked") for name in missing.missing_keys)
    x = data["x"].requires_grad_()
    y = model(x)
    torch.testing.assert_close(y.detach(), data["y"], **EXACT)
    (data["w"] * y).sum().backward()
    torch.testing.assert_close(x.grad, data["gx"], **EXACT)
    found = {name: p.grad for name, p in model.named_parameters()}
    expected = renamed(file, {key[2:]: value for key, value in data.items() if key.startswith("g:")})
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **EXACT)


@pytest.mark.parametrize("file", LAYERS)
def test_layers(golden, file: str) -> None:
    data = arrays(golden("max-former") / f"{file}.npz")
    weights = renamed(file, {key[2:]: value for key, value in data.items() if key.startswith("p:")})
    compare(file, LAYERS[file](data["x"].shape[2], weights), data, weights)


def test_the_whole_network(golden) -> None:
    data = arrays(golden("max-former") / "max_former_tiny.npz")
    weights = renamed("", {key[2:]: value for key, value in data.items() if key.startswith("p:")})
    compare("", MaxFormer(dim=16, mlp_ratio=2, num_classes=5), data, weights)
