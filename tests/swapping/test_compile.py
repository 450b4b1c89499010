"""Swapped models compile without graph breaks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny_models import build, inputs
from torch import nn

import softgate

pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore")  # torch and transformers warn while tracing
@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("llama", {"attention": "gated", "loss": "stablemax", "activation": torch.relu}),
        ("gpt2", {"attention": "sigmoid"}),
        ("vit", {"normalizer": "stablemax"}),
    ],
    ids=["llama", "gpt2", "vit"],
)
def test_models_of_transformers(name: str, places: dict[str, Any]) -> None:
    model, batch = softgate.swap(build(name), **places), inputs(name)
    if "loss" not in places:  # without one, transformers itself breaks the graph with a warning
        del batch["labels"]
    expected = model(**batch)
    got = torch.compile(model, fullgraph=True, backend="eager")(**batch)
    torch.testing.assert_close(got.logits, expected.logits, rtol=1e-4, atol=1e-4)
    got.logits.square().mean().backward()
    assert all(p.grad.isfinite().all() for key, p in model.named_parameters() if "softgate_gate" in key)


@pytest.mark.filterwarnings("ignore")
def test_transformer_layers_of_torch() -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True), 1)
    softgate.swap(encoder, attention="gated")
    x, mask = torch.randn(2, 6, 16), nn.Transformer.generate_square_subsequent_mask(6)
    compiled = torch.compile(encoder, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, mask=mask, is_causal=True), encoder(x, mask=mask, is_causal=True))
