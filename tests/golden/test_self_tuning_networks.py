"""Parity with arrays of the authors' code: layers with gradients, transforms, and a validation step."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate.optim import (
    BestResponseConv2d,
    BestResponseEmbedding,
    BestResponseLinear,
    BestResponseLSTM,
    HyperParam,
    HyperSpace,
)

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def _load(folder, name: str) -> dict[str, Tensor]:
    with np.load(folder / f"{name}.npz") as data:
        return {key: torch.tensor(value) for key, value in data.items()}


@torch.no_grad()
def _fill(layer: nn.Module, a: dict[str, Tensor], prefix: str = "") -> None:
    layer.weights.copy_(torch.cat((a[f"{prefix}elem_weight"], a[f"{prefix}hnet_weight"])))
    layer.biases.copy_(torch.cat((a[f"{prefix}elem_bias"], a[f"{prefix}hnet_bias"])))
    layer.gates.copy_(a[f"{prefix}scalars_weight"])
    if layer.elem_scale is not None:
        layer.elem_scale.copy_(a[f"{prefix}elem_scalar"])


def _same_gradients(layer: nn.Module, a: dict[str, Tensor]) -> None:
    x, lam = a["x"].requires_grad_(), a["htensor"].requires_grad_()
    y = layer(x, lam)
    torch.testing.assert_close(y.detach(), a["output"], **CLOSE)
    (y * a["grad_output"]).sum().backward()
    theirs = {
        "weights": torch.cat((a["grad_elem_weight"], a["grad_hnet_weight"])),
        "biases": torch.cat((a["grad_elem_bias"], a["grad_hnet_bias"])),
        "gates": a["grad_scalars_weight"],
    }
    for name, expected in theirs.items():
        torch.testing.assert_close(getattr(layer, name).grad, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x.grad, a["grad_x"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lam.grad, a["grad_htensor"], rtol=1e-4, atol=1e-4)


def test_linear(golden) -> None:
    a = _load(golden("self-tuning-networks"), "hyper_linear")
    layer = BestResponseLinear(7, 6, 3, elem_scale=True)
    _fill(layer, a)
    torch.testing.assert_close(layer(a["x"]).detach(), a["output_no_hyper"], **CLOSE)
    _same_gradients(layer, a)
    torch.testing.assert_close(layer.elem_scale.grad, a["grad_elem_scalar"], rtol=1e-4, atol=1e-4)


def test_convolution(golden) -> None:
    a = _load(golden("self-tuning-networks"), "hyper_conv2d")
    layer = BestResponseConv2d(3, 6, 3, 3, int(a["stride"]), int(a["padding"]), elem_scale=True)
    _fill(layer, a)
    _same_gradients(layer, a)


def test_embedding(golden) -> None:
    a = _load(golden("self-tuning-networks"), "hyper_embedding")
    layer = BestResponseEmbedding(13, 6, 3, batch_first=False)
    with torch.no_grad():
        layer.elem_weight.copy_(a["elem_weight"])
        layer.response_weight.copy_(a["hnet_weight"])
        layer.gates.copy_(a["scalars_weight"])
    torch.testing.assert_close(layer(a["indices"].long(), a["htensor"]).detach(), a["output"], **CLOSE)


def test_lstm(golden) -> None:
    a = _load(golden("self-tuning-networks"), "hyper_lstm_cell")
    net = BestResponseLSTM(7, 6, 1, 3)
    _fill(net.i2h[0], a, "i2h_")
    _fill(net.h2h[0], a, "h2h_")
    outputs, (hidden, cells) = net(a["x"], ([a["h0"]], [a["c0"]]), a["htensor"])
    for found, expected in ((outputs, "output"), (hidden[0], "hn"), (cells[0], "cn")):
        torch.testing.assert_close(found.detach(), a[expected], **CLOSE)


def test_transforms(golden) -> None:
    a = _load(golden("self-tuning-networks"), "transforms")
    inf = math.inf
    ranges = {"0_1": (0, 1, 0.5), "0_0p9": (0, 0.9, 0.5), "0_25": (0, 25, 1), "low0": (0, inf, 1),
              "up0": (-inf, 0, -1), "free": (-inf, inf, 0)}  # fmt: skip
    for name, (low, high, init) in ranges.items():
        param = HyperParam("h", float(init), float(low), float(high))
        torch.testing.assert_close(param.value(a["z"]), a[f"project_{name}"], **CLOSE)
    for name, high in (("logit", 1.0), ("s_logit_0_0p9", 0.9), ("inv_softplus", inf)):
        torch.testing.assert_close(HyperParam("h", 0.5, 0.0, high).raw(a["u"]), a[name], **CLOSE)
    space = HyperSpace([HyperParam(f"h{i}", 0.5) for i in range(3)])
    with torch.no_grad():
        space.rho.copy_(a["entropy_in"])
    torch.testing.assert_close(space.entropy().detach(), a["entropy"], **CLOSE)


def test_values_and_what_the_layers_are_given(golden) -> None:
    a = _load(golden("self-tuning-networks"), "hparam_transform")
    space = HyperSpace([
        HyperParam("rate", 0.5, 0.0, 0.9), HyperParam("length", 4.0, 0.0, 24.0, discrete=True),
        HyperParam("decay", 1.0, 0.0, math.inf, response="value"),
    ])  # fmt: skip
    torch.testing.assert_close(torch.stack(list(space.values(a["htensor"]).values()), 1), a["hparam"], **CLOSE)
    torch.testing.assert_close(space.response(a["htensor"]), a["hnet"], **CLOSE)


def test_a_validation_step(golden) -> None:
    a = _load(golden("self-tuning-networks"), "hyper_step")
    first, second = BestResponseLinear(7, 8, 3), BestResponseLinear(8, 4, 3)
    _fill(first, a, "l1_")
    _fill(second, a, "l2_")
    space = HyperSpace([HyperParam(f"h{i}", 0.5) for i in range(3)])
    with torch.no_grad():
        space.raw.copy_(a["lam"])
        space.rho.copy_(a["scale_raw"])
    lam = space.perturbed(a["eps"])
    logits = second(first(a["x"], lam).relu(), lam)
    loss = F.cross_entropy(logits, a["labels"].long()) - a["entropy_weight"] * space.entropy()
    torch.testing.assert_close(loss.detach().float(), a["loss"].float(), **CLOSE)
    of_raw, of_rho = torch.autograd.grad(loss, (space.raw, space.rho))
    torch.testing.assert_close(of_raw, a["grad_lam"], **CLOSE)
    torch.testing.assert_close(of_rho, a["grad_scale_raw"], **CLOSE)
