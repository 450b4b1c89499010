"""Best-response layers: what they are at one λ, at many, without; exact ridge responses; conversion; bad input."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from softgate.optim import (
    BestResponseConv2d,
    BestResponseEmbedding,
    BestResponseLinear,
    BestResponseLSTM,
    convert_best_response,
    hyper,
    materialize_responses,
)


def _layers() -> list[tuple[str, nn.Module, Tensor]]:
    x = torch.randn(5, 4)
    images = torch.randn(5, 4, 6, 6)
    return [
        ("linear", BestResponseLinear(4, 3, 2), x),
        ("no bias", BestResponseLinear(4, 3, 2, bias=False), x),
        ("middle dimensions", BestResponseLinear(4, 3, 2, elem_scale=True), torch.randn(5, 2, 3, 4)),
        ("sigmoid", BestResponseLinear(4, 3, 2, gate="sigmoid"), x),
        ("convolution", BestResponseConv2d(4, 6, 3, 2, stride=2, padding=1, elem_scale=True), images),
        ("groups", BestResponseConv2d(4, 6, (1, 3), 2, groups=2, dilation=2, bias=False), images),
        ("embedding", BestResponseEmbedding(7, 3, 2, padding_idx=0), torch.randint(7, (5, 4))),
    ]


@pytest.fixture(params=[name for name, _, _ in _layers()])
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    layer, x = next((layer, x) for name, layer, x in _layers() if name == request.param)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn(p.shape))
    return layer.double(), x.double() if x.is_floating_point() else x


def test_one_example_after_the_other(case: tuple[nn.Module, Tensor]) -> None:
    layer, x = case
    lam = torch.randn(5, 2, dtype=torch.float64)
    y = layer(x, lam)
    for row in range(5):
        single = layer(x[row : row + 1], lam[row])
        torch.testing.assert_close(y[row : row + 1], single, rtol=1e-12, atol=1e-12)
        plain = layer.materialize(lam[row])
        torch.testing.assert_close(plain(x[row : row + 1]), single, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(layer(x, lam[:1]), layer(x, lam[0]))
    with hyper(lam):
        torch.testing.assert_close(layer(x), y)
    assert not torch.equal(layer(x), y)


def test_off_at_zero_and_linear_in_between(case: tuple[nn.Module, Tensor]) -> None:
    layer, x = case
    if getattr(layer, "gate", "linear") == "sigmoid":
        pytest.skip("this gate is a half where the linear one is zero")
    lam = torch.randn(5, 2, dtype=torch.float64)
    zero = torch.zeros(2, dtype=torch.float64)
    torch.testing.assert_close(layer(x, zero), layer(x))
    torch.testing.assert_close(layer(x, 3 * lam) - layer(x), 3 * (layer(x, lam) - layer(x)))
    with torch.no_grad():
        layer.gates.zero_()
    torch.testing.assert_close(layer(x, lam), layer(x))


def test_order_of_the_hyper_parameters(case: tuple[nn.Module, Tensor]) -> None:
    layer, x = case
    lam = torch.randn(5, 2, dtype=torch.float64)
    before = layer(x, lam)
    with torch.no_grad():
        layer.gates.copy_(layer.gates[:, [1, 0]])
    torch.testing.assert_close(layer(x, lam[:, [1, 0]]), before)


def test_gradients(case: tuple[nn.Module, Tensor]) -> None:
    layer, x = case
    lam = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda value: layer(x, value), lam)


def test_a_convolution_is_a_linear_layer_of_patches() -> None:
    conv, linear = BestResponseConv2d(2, 3, 2, 4), BestResponseLinear(8, 3, 4)
    with torch.no_grad():
        linear.weights.copy_(conv.weights.flatten(1))
        linear.biases.copy_(conv.biases)
        linear.gates.copy_(conv.gates)
    x, lam = torch.randn(5, 2, 4, 4), torch.randn(5, 4)
    patches = nn.functional.unfold(x, 2).transpose(1, 2)
    torch.testing.assert_close(conv(x, lam).flatten(2).transpose(1, 2), linear(patches, lam))


def test_the_response_of_ridge_regression_is_exact() -> None:
    generator = torch.Generator().manual_seed(3)
    X = torch.randn(40, 5, dtype=torch.float64, generator=generator)
    t = torch.randn(40, dtype=torch.float64, generator=generator)
    U, d, Vt = torch.linalg.svd(X, full_matrices=False)
    hidden = BestResponseLinear(5, 5, 1, bias=False, gate="sigmoid").double()
    with torch.no_grad():
        hidden.weights.copy_(Vt)
        hidden.gates.fill_(-1.0)
        hidden.gate_bias.copy_(2 * d.log().repeat(2))
    s = (U.T @ t) / d  # Vᵀ of the least-squares solution
    for lam in (-3.0, 0.0, 2.5):
        ridge = torch.linalg.solve(X.T @ X + torch.eye(5).double() * torch.tensor(lam).double().exp(), X.T @ t)
        found = hidden(X, torch.tensor([lam]).double()) @ s
        torch.testing.assert_close(found, X @ ridge, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layers", [1, 2])
def test_lstm_at_one_setting_is_that_of_torch(layers: int) -> None:
    net, x, lam = BestResponseLSTM(3, 5, layers, 2).double(), torch.randn(7, 4, 3).double(), torch.randn(2).double()
    outputs, (hidden, cells) = net(x, lam=lam)
    expected, (h, c) = net.materialize(lam)(x)
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(torch.cat(hidden), h)
    torch.testing.assert_close(torch.cat(cells), c)
    first, state = net(x[:3], lam=lam)
    torch.testing.assert_close(torch.cat((first, net(x[3:], state, lam)[0])), outputs)
    many = torch.stack((lam, 2 * lam, -lam, 0 * lam))
    rows = net(x, lam=many)[0]
    torch.testing.assert_close(rows[:, :1], outputs[:, :1])
    torch.testing.assert_close(rows[:, 3:], net(x[:, 3:])[0])


def test_lstm_drops_the_same_weights_of_both() -> None:
    net = BestResponseLSTM(3, 5, 2, 2, proj_tied=True)
    x = torch.randn(6, 2, 3)
    assert net(x)[0].shape == (6, 2, 3)
    with pytest.raises(RuntimeError, match="size"):
        net.materialize(torch.zeros(2))
    layer = net.h2h[0]
    with torch.no_grad():
        layer.weights[20:].copy_(-layer.weights[:20])  # V = -W: with gates of one nothing is left, whatever the mask
        layer.gates.zero_()[:20, 0] = 1.0
        layer.biases.zero_()
    mixed = net._recurrence(layer, torch.tensor([1.0, 0.0]), 2, 0.5)
    assert 0.2 < float((mixed.weights == 0).float().mean()) < 0.8
    assert torch.equal(mixed.weights[20:], -mixed.weights[:20])
    net.eval()
    assert torch.equal(net(x, drop_connect=0.5)[0], net(x)[0])


def test_conversion_keeps_the_function() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, groups=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5, bias=False), nn.Linear(5, 2)
    ).eval()  # fmt: skip
    x = torch.randn(2, 3, 4, 4)
    before = model(x)
    assert convert_best_response(model, 3, (nn.Linear, nn.Conv2d)) == ["0", "3", "4"]
    torch.testing.assert_close(model(x), before)
    lam = torch.randn(3)
    with hyper(lam):
        moved = model(x)
    assert not torch.allclose(moved, before, atol=1e-5)
    assert materialize_responses(model, lam) == ["0", "3", "4"] and not model[0].training
    torch.testing.assert_close(model(x), moved)


def test_tied_weights_stay_tied() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.decoder, self.free = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False), nn.Linear(3, 3)
            self.decoder.weight = self.embedding.weight

    net = Net()
    assert convert_best_response(net, 2) == ["free"] and net.decoder.weight is net.embedding.weight


def test_half_precision_keeps_the_gates() -> None:
    layer = BestResponseLinear(4, 3, 2)
    x, lam = torch.randn(5, 4), torch.randn(5, 2)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x, lam)
    assert y.dtype is torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x, lam), rtol=0.05, atol=0.05)


def test_bad_input() -> None:
    layer, x = BestResponseLinear(4, 3, 2), torch.randn(5, 4)
    for lam in (torch.randn(5, 3), torch.randn(4, 2), torch.randn(5, 2, 1)):
        with pytest.raises(ValueError, match="lam"):
            layer(x, lam)
    assert layer(x[:0], torch.randn(0, 2)).shape == (0, 3)
    with pytest.raises(ValueError, match="gate"):
        BestResponseLinear(4, 3, 2, gate="tanh")
    with pytest.raises(ValueError, match="n_hyper"):
        BestResponseConv2d(4, 3, 3, 0)
    with pytest.raises(ValueError, match="x must"):
        BestResponseLSTM(3, 4, 1, 2)(torch.randn(2, 3))
    with pytest.raises(TypeError, match="types"):
        convert_best_response(nn.Sequential(nn.Linear(2, 2)), 2, (nn.Bilinear,))
    with pytest.raises(TypeError, match="single"):
        convert_best_response(nn.Linear(2, 2), 2)
    for odd in (nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), nn.Embedding(3, 2, max_norm=1.0)):
        with pytest.raises(TypeError):
            convert_best_response(nn.Sequential(odd), 2)
