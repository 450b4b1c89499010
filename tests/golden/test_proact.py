"""Parity with arrays of the authors' toolbox: activations, flipped bits, measured bounds, loss and its gradients."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from softgate._math.number_formats import number_format
from softgate.activations import ClippedReLU, calibrate_bounds, hyrelu, protect
from softgate.activations.progressive_bounds import distillation_loss


def _load(folder, name: str) -> dict[str, Tensor]:
    with np.load(folder / f"{name}.npz") as data:
        return {key: torch.tensor(value) for key, value in data.items()}


@pytest.mark.parametrize("where", ["layer", "neuron"])
def test_activations(golden, where: str) -> None:
    a = _load(golden("proact"), "activations")
    x, bound = a["x"].requires_grad_(), a[f"b_{where}"].requires_grad_()
    zero = ClippedReLU(bound.detach(), "zero")(x)
    torch.testing.assert_close(zero.detach(), a[f"y_zero_{where}"])
    torch.testing.assert_close(torch.autograd.grad((a["w"] * zero).sum(), x)[0], a[f"gx_zero_{where}"])
    for name in ("fitact", "hyrelu"):
        y = hyrelu(x, bound)
        torch.testing.assert_close(y.detach(), a[f"y_{name}_{where}"], rtol=1e-5, atol=2e-6)
        grad_x, grad_bound = torch.autograd.grad((a["w"] * y).sum(), (x, bound))
        torch.testing.assert_close(grad_x, a[f"gx_{name}_{where}"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(grad_bound, a[f"gb_{name}_{where}"], rtol=1e-4, atol=2e-5)


def _flipped(values: Tensor, bit: int, name: str) -> Tensor:
    fmt = number_format(name)
    raw = fmt.encode(values, fmt.unit(values))
    return fmt.decode(fmt.flip(raw, torch.full_like(raw, 1 << bit)), fmt.unit(values))


@pytest.mark.parametrize(("file", "name"), [("32_16", "q15.16"), ("16_8", "q7.8"), ("8_6", "q1.6")])
def test_every_bit_of_fixed_point(golden, file: str, name: str) -> None:
    a = _load(golden("proact"), f"bitflip_fixed_{file}")
    fmt = number_format(name)
    unit = fmt.unit(a["values"])
    stored = fmt.decode(fmt.encode(a["values"], unit), unit)
    torch.testing.assert_close(stored.float(), a["quantized"], rtol=0, atol=0)
    for bit in range(fmt.bits):
        torch.testing.assert_close(_flipped(stored, bit, name), a["flipped"][:, bit], rtol=0, atol=0)


def test_every_bit_of_floats(golden) -> None:
    a = _load(golden("proact"), "bitflip_float")
    for bit in range(32):
        found = _flipped(a["values"], bit, "float32").float()
        torch.testing.assert_close(found, a["ieee754"][:, bit], rtol=0, atol=0, equal_nan=True)


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 4, 3, 2, padding=1)
        self.fc1, self.fc2 = nn.Linear(36, 6), nn.Linear(6, 5)
        self.relu1, self.relu2, self.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu2(self.conv2(self.relu1(self.conv1(x)))).flatten(1)
        return self.fc2(self.relu3(self.fc1(x)))


def test_bounds_logits_and_gradients(golden) -> None:
    a = _load(golden("proact"), "ranger_hybrid")
    net = _Net()
    net.load_state_dict({key.removeprefix("p:"): value for key, value in a.items() if key.startswith("p:")})
    for name, bound in calibrate_bounds(net, a["batches"], "layer").items():
        torch.testing.assert_close(bound, a[f"layer_bound:{name}"], rtol=1e-5, atol=1e-6)
    # The toolbox takes the maximum over the first axis once too often for all batches but the last, which makes the
    # bounds of different channels alike; ours are those of each neuron.
    early, late = (calibrate_bounds(net, part, "neuron") for part in (a["batches"][:-1], a["batches"][-1:]))
    for name in early:
        theirs = torch.maximum(early[name].amax(0, keepdim=True), late[name])
        torch.testing.assert_close(theirs, a[f"neuron_bound:{name}"], rtol=1e-5, atol=1e-6)
    assert {n: b.ndim for n, b in calibrate_bounds(net, a["batches"]).items()} == {"relu1": 0, "relu2": 0, "relu3": 1}
    bounds = {f"relu{i}": a[f"bound:relu{i}.bounds_param"] for i in (1, 2, 3)}
    torch.testing.assert_close(net(a["x"]).detach(), a["logits_relu"], rtol=1e-5, atol=1e-6)
    safe = protect(copy.deepcopy(net), bounds)
    clipped = {name: m.bound.requires_grad_() for name, m in safe.named_modules() if isinstance(m, ClippedReLU)}
    logits = safe(a["x"])
    torch.testing.assert_close(logits.detach(), a["logits_hyrelu"], rtol=1e-5, atol=1e-5)
    loss = distillation_loss(logits, a["labels"], net(a["x"]).softmax(-1).detach())
    torch.testing.assert_close(loss.detach(), a["loss"], rtol=1e-5, atol=1e-5)
    for name, grad in zip(clipped, torch.autograd.grad(loss, list(clipped.values())), strict=True):
        torch.testing.assert_close(grad, a[f"gloss:{name}.bounds_param"], rtol=1e-3, atol=1e-5)
