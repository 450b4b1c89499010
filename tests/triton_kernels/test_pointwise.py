"""The Triton kernels of activations in the interpreter, against the formula in float64."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
from softgate import explain
from softgate._triton import interpreting
from softgate.activations import crrelu
from softgate.activations.corrected.reference import crrelu_reference

pytestmark = [
    pytest.mark.skipif(not (interpreting() or torch.cuda.is_available()), reason="needs a GPU or TRITON_INTERPRET=1"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # numpy's, in lanes whose value is not taken
]


@pytest.fixture(autouse=True)
def _triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTGATE_KERNELS", "triton")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_crrelu_and_its_gradients(dtype: torch.dtype) -> None:
    device = "cpu" if interpreting() else "cuda"
    x = (3 * torch.randn(3, 2, 7, 5)).to(device, dtype).contiguous(memory_format=torch.channels_last)
    x[0, 0, 0, 0], x[0, 0, 0, 1] = torch.inf, -torch.inf
    eps = torch.tensor(0.4, device=device)
    seed = torch.randn_like(x)
    for learned in ((True, True), (True, False), (False, True)):
        leaves = [t.detach().clone().requires_grad_(w) for t, w in zip((x, eps), learned, strict=True)]
        assert explain(crrelu, *leaves).chosen == "triton"
        y = crrelu(*leaves)
        wide = [t.detach().double().requires_grad_(w) for t, w in zip((x, eps), learned, strict=True)]
        truth = crrelu_reference(*wide)
        rounding = torch.finfo(dtype).eps
        torch.testing.assert_close(y.detach().double(), truth.detach(), rtol=2 * rounding, atol=1e-6)
        needed = [i for i, w in enumerate(learned) if w]
        found = torch.autograd.grad(y, [leaves[i] for i in needed], seed)
        expected = torch.autograd.grad(truth, [wide[i] for i in needed], seed.double())
        for got, exact in zip(found, expected, strict=True):
            torch.testing.assert_close(got.double(), exact, rtol=max(2 * rounding, 1e-5), atol=1e-5)


def test_several_eps_are_refused() -> None:
    x = torch.randn(2, 3)
    with pytest.raises(RuntimeError, match="one eps"):
        crrelu(x, torch.ones(3))
