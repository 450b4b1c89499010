"""The Triton sweeps of the fused linear losses in the interpreter, against whole logits in float64."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
from softgate._triton import interpreting
from softgate.losses import fused_linear_loss

pytestmark = [
    pytest.mark.skipif(not (interpreting() or torch.cuda.is_available()), reason="needs a GPU or TRITON_INTERPRET=1"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # numpy's, in lanes whose value is not taken
]

CASES = {
    "ce": {},
    "ce-all": {"softcap": 2.0, "temperature": 0.7, "label_smoothing": 0.1, "z_penalty": 0.01, "bias": True},
    "weighted": {"label_smoothing": 0.1, "class_weight": True, "loss": "ce", "chunk": 2},
    "gce-rows": {"loss": "comp_sum", "tau": 1.7, "reduction": "none"},
    "stablemax": {"loss": "stablemax"},
    "stablemax-all": {"loss": "stablemax", "softcap": 2.0, "label_smoothing": 0.1, "bias": True},
    "svm": {"loss": "svm", "temperature": 0.7},
    "svm-all": {"loss": "svm", "softcap": 2.0, "bias": True, "class_weight": True},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_losses_and_gradients(case) -> None:
    device, classes = "cpu" if interpreting() else "cuda", 150
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(n, 8, generator=generator).to(device).requires_grad_() for n in (3, classes))
    y = torch.tensor([149, 0, 70], device=device)
    options = dict(case)
    for name in ("bias", "class_weight"):
        if name in options:
            options[name] = torch.rand(classes, generator=generator).to(device) + 0.2
    wide = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    results = []
    for backend, a, b, rest in (("triton", x, w, options), ("reference", x.double(), w.double(), wide)):
        loss, accuracy = fused_linear_loss(a, b, y, backend=backend, return_accuracy=True, **rest)
        upstream = torch.arange(1.0, 4.0, device=device).to(loss.dtype) if loss.ndim else None
        results.append([loss.detach(), accuracy, *torch.autograd.grad(loss, (x, w), upstream)])
    for found, truth in zip(*results, strict=True):
        assert float((found - truth).abs().max()) <= 2e-5 * float(truth.abs().max().clamp(min=1e-3))


def test_masked_classes_in_the_kernels() -> None:
    device = "cpu" if interpreting() else "cuda"
    bias = torch.tensor([0.0, -torch.inf, -torch.inf], device=device)
    w = torch.ones(3, 1, device=device, requires_grad=True)
    loss = fused_linear_loss(torch.ones(1, 1, device=device), w, torch.tensor([0], device=device), bias=bias,
                             backend="triton")  # fmt: skip
    loss.backward()
    assert float(loss.detach()) == 0.0 and not w.grad.any()
