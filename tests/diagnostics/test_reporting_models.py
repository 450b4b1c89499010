"""report on models of transformers and timm: what is seen of them, and suggested swaps that run."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import softgate
from softgate.diagnostics import attention_sink, outliers, report

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "swapping"))

NAMES = ["llama", "qwen3_moe", "gpt2", "bert", "vit", "t5"]


def tiny(name: str) -> tuple[Any, Any]:
    """A tiny model and one batch for it, without labels."""
    pytest.importorskip("transformers")
    models: Any = importlib.import_module("tiny_models")
    if name == "timm":
        pytest.importorskip("timm")
        return models.timm_vit().eval(), torch.randn(2, 3, 16, 16)
    batch = {key: value for key, value in models.inputs(name).items() if key != "labels"}
    if name == "t5":
        batch["decoder_input_ids"] = batch["input_ids"]
    return models.build(name), batch


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_sinks_of_transformers_models_are_those_of_their_own_weights(name: str) -> None:
    model, batch = tiny(name)
    given = report(model, [batch])
    assert given.notes == [] and given.logits is not None and given.passes == 1
    if name != "t5":
        expected = attention_sink(model, batch)["per_layer"]
        shares = [sum(layer.sink_share) / len(layer.sink_share) for layer in given.attention]
        assert shares == pytest.approx(expected, rel=1e-4)
    else:
        assert [layer.name.rpartition(".")[2] for layer in given.attention].count("EncDecAttention") == 2
    wanted = outliers(model, [batch])["modules"] if name != "t5" else {}
    for entry in given.activations if wanted else ():
        assert entry.kurtosis == pytest.approx(wanted[entry.name]["kurtosis"], rel=1e-5)
        assert entry.inf_norm == pytest.approx(wanted[entry.name]["inf_norm"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES, "timm"])
def test_every_suggested_swap_runs(name: str) -> None:
    model, batch = tiny(name)
    given = report(model, [batch])
    lines = {topic.line for topic in given.topics.values() if topic.swap}
    assert len(lines) >= 3, "attention can be swapped in all of these"
    for line in sorted(lines):
        scope = {"softgate": softgate, "model": model}
        exec(line, scope)
        output = model(**batch) if isinstance(batch, dict) else model(batch)
        assert (output if isinstance(output, Tensor) else output.logits).isfinite().all()
        softgate.unswap(model)
    if name == "qwen3_moe":
        assert given.topics["routing"].line == 'softgate.swap(model, router="sigmoid")'
    if name in ("llama", "gpt2", "vit"):
        assert given.topics["collapse"].line == 'softgate.swap(model, loss="stablemax")'
    else:
        assert given.topics["collapse"].swap == ({"loss": "stablemax"} if name == "qwen3_moe" else {})


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["gated", "sigmoid", "clipped_softmax"])
def test_a_swapped_model_can_be_looked_at_again(attention: str) -> None:
    model, batch = tiny("llama")
    softgate.swap(model, attention=attention)
    implementation = model.config._attn_implementation
    given = report(model, [batch])
    expected = attention_sink(model, batch)["per_layer"]
    assert [sum(a.sink_share) / 4 for a in given.attention] == pytest.approx(expected, rel=1e-4)
    assert model.config._attn_implementation == implementation
    assert given.topics["sink"].swap == {} and "swapped into attention already" in given.topics["sink"].remedy


@pytest.mark.slow
def test_routers_of_transformers_models_count_no_padding() -> None:
    model, batch = tiny("qwen3_moe")
    loads = [sum(router.load) for router in report(model, [batch, batch]).routers]
    assert loads == [2 * 2 * int(batch["attention_mask"].sum())] * 2
