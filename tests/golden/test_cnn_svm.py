"""Parity with arrays made by the authors' graph: scores, loss with its means, and gradients of the head."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from softgate.losses import SVMHead, l2_svm_loss


@pytest.fixture
def arrays(golden) -> dict[str, torch.Tensor]:
    data = np.load(golden("cnn-svm") / "svm_head_C1.npz")
    return {name: torch.tensor(data[name]) for name in data.files}


def official_head(arrays: dict[str, torch.Tensor], dtype: torch.dtype) -> SVMHead:
    head = SVMHead(1024, 10, C=float(arrays["C"]), reg="mean", over_classes="mean", dtype=dtype)
    with torch.no_grad():
        head.weight.copy_(arrays["weight"].T)
        head.bias.copy_(arrays["bias"])
    return head


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_graph_of_the_authors(arrays, dtype) -> None:
    head = official_head(arrays, dtype)
    # sums of 1024 products, each rounded in TensorFlow's order
    close = {"rtol": 1e-5, "atol": 1e-5, "check_dtype": False}
    scores = head(arrays["hidden"].to(dtype))
    torch.testing.assert_close(scores, arrays["logits"], **close)
    scores.retain_grad()
    loss = head.loss(scores, arrays["labels"])
    torch.testing.assert_close(loss, arrays["loss"], **close)
    loss.backward()
    torch.testing.assert_close(scores.grad, arrays["grad_logits"], **close)
    torch.testing.assert_close(head.weight.grad.T, arrays["grad_weight"], **close)
    torch.testing.assert_close(head.bias.grad, arrays["grad_bias"], **close)


def test_loss_from_scores_alone(arrays) -> None:
    loss = l2_svm_loss(
        arrays["logits"], arrays["labels"], over_classes="mean", head_weight=arrays["weight"], reg="mean"
    )
    torch.testing.assert_close(loss, arrays["loss"], rtol=1e-6, atol=0)


def test_sign_rule(arrays) -> None:
    """Signs tie in every row here, and TensorFlow leaves open which of several largest values its argmax returns."""
    labels, signs = arrays["labels"], arrays["logits"].sign()
    rows = torch.arange(len(labels))
    among = signs[rows, labels] == signs.amax(1)
    alone = among & ((signs == signs.amax(1, keepdim=True)).sum(1) == 1)
    measured = float(arrays["accuracy_sign"])
    assert float(alone.double().mean()) <= measured <= float(among.double().mean())
    head = official_head(arrays, torch.float32)
    first = head.decide(arrays["logits"], "sign_argmax")
    last = 9 - head.decide(arrays["logits"].flip(1), "sign_argmax")
    assert first.tolist() == [0, 0, 0, 0, 0, 0, 0, 1]
    assert float((last == labels).double().mean()) == measured != float((first == labels).double().mean())
