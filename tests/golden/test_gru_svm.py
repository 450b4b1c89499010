"""Parity with arrays made by the authors' graph: GRU cell, scores, loss and every gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from softgate.models import GRUSVM


@pytest.fixture
def arrays(golden) -> dict[str, torch.Tensor]:
    data = np.load(golden("gru-svm") / "gru_svm_cell8.npz")
    return {name: torch.tensor(data[name]) for name in data.files}


def tf(arrays: dict[str, torch.Tensor], kind: str) -> list[torch.Tensor]:
    names = ("gates.kernel", "gates.bias", "candidate.kernel", "candidate.bias")
    return [arrays[f"{kind}.rnn.gru_cell.{name}"] for name in names]


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_graph_of_the_authors(arrays, monkeypatch, kernels, dtype) -> None:
    monkeypatch.setenv("SOFTGATE_KERNELS", kernels)
    model = GRUSVM(10, 8, C=float(arrays["C"]), dropout=0.0).to(dtype)
    model.cell.load_tensorflow(*(a.to(dtype) for a in tf(arrays, "param")))
    with torch.no_grad():
        model.head.weight.copy_(arrays["param.weights"].T)
        model.head.bias.copy_(arrays["param.biases"])
    close = {"rtol": 1e-5, "atol": 2e-6, "check_dtype": False}
    state = model.encode(arrays["x"], arrays["h0"].to(dtype))
    torch.testing.assert_close(state, arrays["final_state"], **close)
    scores = model.head(state)
    torch.testing.assert_close(scores, arrays["logits"], **close)
    labels = arrays["labels"].long()
    loss = model.loss(scores, labels)
    torch.testing.assert_close(loss, arrays["loss"], **close)
    assert float((model.decide(scores, "sign_argmax") == labels).double().mean()) == float(arrays["accuracy_sign"])

    loss.backward()
    gates, gates_bias, candidate, candidate_bias = tf(arrays, "grad")
    cell = model.cell
    torch.testing.assert_close(cell.weight_ih.grad, torch.cat((gates[:10], candidate[:10]), 1).T, **close)
    torch.testing.assert_close(cell.weight_hh.grad, torch.cat((gates[10:], candidate[10:]), 1).T, **close)
    torch.testing.assert_close(cell.bias.grad, torch.cat((gates_bias, candidate_bias)), **close)
    torch.testing.assert_close(model.head.weight.grad, arrays["grad.weights"].T, **close)
    torch.testing.assert_close(model.head.bias.grad, arrays["grad.biases"], **close)


def test_the_cell_of_torch_is_another_function(arrays) -> None:
    """nn.GRU resets after the recurrent product: the same weights give another state."""
    model = GRUSVM(10, 8, cell="torch", dropout=0.0)
    twin = GRUSVM(10, 8, dropout=0.0)
    twin.cell.load_tensorflow(*tf(arrays, "param"))
    with torch.no_grad():
        model.cell.weight_ih_l0.copy_(twin.cell.weight_ih)
        model.cell.weight_hh_l0.copy_(twin.cell.weight_hh)
        model.cell.bias_ih_l0.copy_(twin.cell.bias)
        model.cell.bias_hh_l0.zero_()
    with torch.no_grad():
        off = (model.encode(arrays["x"], arrays["h0"]) - arrays["final_state"]).abs().max()
    assert float(off) > 1e-3
