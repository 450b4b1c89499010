"""Against the authors' code on random features: scores, both kinds of targets, whole layers with their gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from softgate.dynamic import (
    DynamicConv2d,
    MaskPredictor,
    filter_scores,
    mask_prediction_loss,
    topk_mass_mask,
    uniform_mask,
)
from softgate.dynamic.filter_costs import layer_multiply_adds

LAYERS = ("decoupled_mass", "decoupled_nosoftmax_uniform", "depthwise")


def _load(path) -> dict[str, Tensor]:
    with np.load(path) as arrays:
        return {name: torch.from_numpy(np.asarray(arrays[name])) for name in arrays.files}


@pytest.mark.parametrize("name", ["a", "b"])
def test_scores_and_masks(golden, name) -> None:
    g = _load(golden("fire-together-wire-together") / f"masks_{name}.npz")
    scores = filter_scores(g["x"])
    torch.testing.assert_close(scores, g["crit"], rtol=0.0, atol=0.0)
    tried = 0
    for key, expected in g.items():
        kind, _, r = key.partition("_r")
        if kind not in ("mass", "uniform") or float(r) < 0:  # a negative share keeps all there, and is refused here
            continue
        found = topk_mass_mask(scores, float(r), min_keep=0) if kind == "mass" else uniform_mask(scores, float(r))
        assert torch.equal(found, expected.bool()), key
        tried += 1
    assert tried == 8


def _layer(g: dict[str, Tensor]) -> DynamicConv2d:
    filters, width, size = g["conv_w"].shape[:3]
    groups = int(g["groups"])
    conv = nn.Conv2d(width * groups, filters, size, padding=size // 2, groups=groups, bias=False)
    bn = nn.BatchNorm2d(filters)
    predictor = MaskPredictor(width * groups, filters, "avg", "softmax" if int(g["softmax"]) else "none")
    with torch.no_grad():
        for own, name in (
            (conv.weight, "conv_w"), (bn.weight, "bn_w"), (bn.bias, "bn_b"), (bn.running_mean, "bn_mean"),
            (bn.running_var, "bn_var"), (predictor.linear.weight, "head_w"), (predictor.linear.bias, "head_b"),
        ):  # fmt: skip
            own.copy_(g[name])
    r = float(g["r"])
    kind = "uniform" if r == 0.5 else "mass"
    return DynamicConv2d(conv, bn, nn.ReLU(), predictor, r=round(r, 6), target=kind, min_keep=0).eval()


@pytest.mark.parametrize("name", LAYERS)
def test_layers(golden, name) -> None:
    g = _load(golden("fire-together-wire-together") / f"layer_{name}.npz")
    layer = _layer(g)
    x = g["x"].clone().requires_grad_()
    out = layer(x)
    last = layer.last
    torch.testing.assert_close(last.logits, g["mask_logit"], rtol=1e-5, atol=1e-6)
    assert torch.equal(last.target, g["gt_mask"].bool())
    torch.testing.assert_close(out, g["out"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer.infer(g["x"]), g["out"], rtol=1e-4, atol=1e-5)
    active = last.mask.sum(1).float()
    assert torch.equal(active, g["active"])
    macs = layer_multiply_adds(layer.conv, out.shape[-1] ** 2, active, g["prev"], compat_floor_groups=True)
    assert torch.equal(macs.float(), g["flops"])
    loss = mask_prediction_loss(last.logits, last.target)
    torch.testing.assert_close(loss, g["mask_loss"], rtol=1e-5, atol=1e-6)
    accuracy = 100.0 * (last.mask == last.target).float().mean()
    torch.testing.assert_close(accuracy, g["mask_acc"].to(accuracy.dtype), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(out.square().mean(), g["task_loss"], rtol=1e-5, atol=1e-7)
    (out.square().mean() + loss).backward()
    for own, key in (
        (x.grad, "g_x"), (layer.conv.weight.grad, "g_conv"),
        (layer.predictor.linear.weight.grad, "g_head_w"), (layer.predictor.linear.bias.grad, "g_head_b"),
    ):  # fmt: skip
        torch.testing.assert_close(own, g[key], rtol=1e-4, atol=1e-6)
