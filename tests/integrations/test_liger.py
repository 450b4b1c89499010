"""Liger's signatures: the same arguments in the same order, eager results, and Liger's own models on this loss."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from softgate.errors import ArgumentValueError
from softgate.integrations import liger
from softgate.integrations.liger import (
    LigerFusedLinearCrossEntropyLoss,
    liger_fused_linear_cross_entropy,
    use_in_liger,
)
from softgate.losses import fused_linear_loss


def draw(rows: int = 11, classes: int = 13, features: int = 6) -> tuple[torch.Tensor, ...]:
    x = torch.randn(rows, features, dtype=torch.float64, requires_grad=True)
    w = torch.randn(classes, features, dtype=torch.float64, requires_grad=True)
    y = torch.randint(classes, (rows,))
    y[3] = -100
    return x, w, y


def eager(x: torch.Tensor, w: torch.Tensor, y: torch.Tensor, bias: Any, softcap: Any, **options: Any) -> torch.Tensor:
    z = F.linear(x, w, bias)
    return F.cross_entropy(z if softcap is None else softcap * torch.tanh(z / softcap), y, **options)


def test_results_are_those_of_eager_cross_entropy() -> None:
    x, w, y = draw()
    bias, weight = torch.randn(13, dtype=torch.float64), torch.rand(13, dtype=torch.float64) + 0.2
    for b, c, cap, eps, reduction in itertools.product(
        (None, bias), (None, weight), (None, 2.0), (0.0, 0.1), ("mean", "sum", "none")
    ):
        module = LigerFusedLinearCrossEntropyLoss(c, softcap=cap, label_smoothing=eps, reduction=reduction)
        found = module(w, x, y, b)
        want = eager(x, w, y, b, cap, weight=c, label_smoothing=eps, reduction=reduction)
        torch.testing.assert_close(found, want)
        got, expected = (torch.autograd.grad(loss.square().sum(), (x, w)) for loss in (found, want))
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_extra_results(reduction) -> None:
    x, w, y = draw()
    found = liger_fused_linear_cross_entropy(
        x, w, y, lse_square_scale=0.02, reduction=reduction, return_z_loss=True, return_token_accuracy=True,
        return_predicted_tokens=True,
    )  # fmt: skip
    logits, keep = (x @ w.t()).detach(), y != -100
    z_rows = torch.where(keep, 0.02 * torch.logsumexp(logits, 1).square(), 0.0)
    hits = (logits.argmax(1) == y).double()
    reduce = {"mean": lambda v: v.sum() / keep.sum(), "sum": torch.sum, "none": lambda v: v}[reduction]
    torch.testing.assert_close(found.z_loss, reduce(z_rows))
    torch.testing.assert_close(found.loss, F.cross_entropy(x @ w.t(), y, reduction=reduction) + reduce(z_rows))
    want = hits if reduction == "none" else hits.sum() / keep.sum()
    torch.testing.assert_close(found.token_accuracy.double(), want, rtol=1e-6, atol=0)
    assert found.predicted_tokens.tolist() == torch.where(keep, logits.argmax(1), -1).tolist()


def test_token_scaling_weighs_rows_by_a_constant() -> None:
    x, w, y = draw()
    found = liger_fused_linear_cross_entropy(x, w, y, use_token_scaling=True)
    rows = F.cross_entropy(x @ w.t(), y, reduction="none")
    want = (rows * (-rows).exp().detach() * (y != -100)).sum() / (y != -100).sum()
    torch.testing.assert_close(found, want)
    torch.testing.assert_close(torch.autograd.grad(found, (x, w)), torch.autograd.grad(want, (x, w)))


def test_further_options_choose_another_loss_and_chunks() -> None:
    x, w, y = draw()
    found = LigerFusedLinearCrossEntropyLoss(loss="comp_sum", tau=1.7)(w, x, y)
    torch.testing.assert_close(found, fused_linear_loss(x, w, y, loss="comp_sum", tau=1.7))
    seen: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(liger, "fused_linear_loss", lambda *a, **k: seen.update(k) or torch.zeros(()))
        liger_fused_linear_cross_entropy(x, w, y, chunk_mem_const=3, accum_dtype=torch.bfloat16)
    assert seen["chunk"] == 3 * 11 * 6 // 13 and seen["accum_dtype"] is None


@pytest.mark.parametrize(
    "options",
    [
        {"ce_weight": torch.ones(13, dtype=torch.float64), "lse_square_scale": 0.1},
        {"use_token_scaling": True, "label_smoothing": 0.1},
        {"use_token_scaling": True, "loss": "focal"},
    ],
    ids=["weighted-penalty", "smoothed-scaling", "scaled-focal"],
)
def test_what_has_another_meaning_there_is_refused(options) -> None:
    x, w, y = draw()
    with pytest.raises(ArgumentValueError):
        liger_fused_linear_cross_entropy(x, w, y, **options)


def test_arguments_are_those_of_liger() -> None:
    transformers = pytest.importorskip("liger_kernel.transformers")
    functional = pytest.importorskip("liger_kernel.transformers.functional")
    pairs = (
        (transformers.LigerFusedLinearCrossEntropyLoss.__init__, LigerFusedLinearCrossEntropyLoss.__init__),
        (transformers.LigerFusedLinearCrossEntropyLoss.forward, LigerFusedLinearCrossEntropyLoss.forward),
        (functional.liger_fused_linear_cross_entropy, liger_fused_linear_cross_entropy),
    )
    for theirs, ours in pairs:
        want = {name: p.default for name, p in inspect.signature(theirs).parameters.items()}
        found = {name: p.default for name, p in inspect.signature(ours).parameters.items() if p.kind != p.VAR_KEYWORD}
        assert list(found.items()) == list(want.items())


@pytest.mark.filterwarnings("ignore")  # Liger's own, on machines without a GPU
def test_models_that_liger_patched_train_on_this_loss() -> None:
    transformers = pytest.importorskip("transformers")
    patched = pytest.importorskip("liger_kernel.transformers")
    functional = pytest.importorskip("liger_kernel.transformers.functional")
    own = functional.liger_fused_linear_cross_entropy
    config = transformers.LlamaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                      num_key_value_heads=2, intermediate_size=24)  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).train()
    tokens = torch.randint(40, (2, 9))
    plain = model(input_ids=tokens, labels=tokens).loss
    expected = torch.autograd.grad(plain, list(model.parameters()))
    patched.apply_liger_kernel_to_llama(model=model, rope=False, rms_norm=False, swiglu=False, cross_entropy=False)
    handle = use_in_liger()
    try:
        output = model(input_ids=tokens, labels=tokens)
        assert output.logits is None
        torch.testing.assert_close(output.loss, plain)
        found = torch.autograd.grad(output.loss, list(model.parameters()))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        handle.rollback()
        handle = use_in_liger(loss="comp_sum", tau=1.7)
        assert float(model(input_ids=tokens, labels=tokens).loss) < 1.0 / 0.7 < float(plain)
        assert isinstance(patched.LigerFusedLinearCrossEntropyLoss(), LigerFusedLinearCrossEntropyLoss)
    finally:
        handle.rollback()
    assert functional.liger_fused_linear_cross_entropy is own
