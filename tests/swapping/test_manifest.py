"""Saving and loading swapped models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from attentions import squared
from tiny_models import MODELS, build, inputs, timm_vit, tokens
from torch import nn

import softgate
from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError
from softgate.swapping.api import swaps

transformers = pytest.importorskip("transformers")


def _shake(model: nn.Module) -> nn.Module:
    """Give what the swap added values that only loading can bring back."""
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "softgate" in key:
                parameter.normal_()
    return model


@pytest.mark.parametrize("name", MODELS)
def test_a_swapped_model_comes_back(name: str, tmp_path: Path) -> None:
    loss = {"loss": "stablemax"} if name not in ("bert", "t5") else {}
    model = _shake(softgate.swap(build(name), attention="gated", attention_options={"granularity": "headwise"}, **loss))
    expected = model(**inputs(name))
    softgate.save_pretrained(model, tmp_path)
    again = softgate.from_pretrained(tmp_path)
    got = again(**inputs(name))
    assert torch.equal(got.logits, expected.logits) and torch.equal(got.loss, expected.loss)
    assert swaps(again) == swaps(model) and not again.training
    manifest = json.loads((tmp_path / "softgate.json").read_text())
    assert manifest["class"] == type(model).__name__ and manifest["swaps"]["attention"]["name"] == "gated"
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    softgate.unswap(again)
    assert torch.equal(again(**inputs(name)).logits, softgate.unswap(model)(**inputs(name)).logits)


def test_the_models_own_save_writes_the_manifest_too(tmp_path: Path) -> None:
    model = _shake(softgate.swap(build("llama"), attention="gated"))
    model.save_pretrained(tmp_path)
    assert torch.equal(softgate.from_pretrained(tmp_path)(tokens()).logits, model(tokens()).logits)
    softgate.unswap(model)
    model.save_pretrained(tmp_path / "plain")
    assert not (tmp_path / "plain" / "softgate.json").exists() and "save_pretrained" not in vars(model)


def test_shards_and_dtypes(tmp_path: Path) -> None:
    model = _shake(softgate.swap(build("llama").to(torch.bfloat16), attention="gated"))
    softgate.save_pretrained(model, tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again, saved = softgate.from_pretrained(tmp_path, dtype=torch.bfloat16).state_dict(), model.state_dict()
    assert again.keys() == saved.keys()
    assert all(tensor.dtype is torch.bfloat16 and torch.equal(tensor, saved[key]) for key, tensor in again.items())


@pytest.mark.parametrize("kind", ["torch", "timm"])
def test_other_modules_come_back_into_a_fresh_one(kind: str, tmp_path: Path) -> None:
    if kind == "timm":
        pytest.importorskip("timm")
        build_one, x = timm_vit, torch.randn(1, 3, 16, 16)
    else:
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        build_one, x = (lambda: nn.TransformerEncoder(layer, 2)), torch.randn(1, 5, 16)
    model = _shake(softgate.swap(build_one().eval(), attention="gated"))
    softgate.save_pretrained(model, tmp_path)
    again = softgate.from_pretrained(tmp_path, model=build_one().eval())
    assert torch.equal(again(x), model(x))
    with pytest.raises(ArgumentTypeError, match="model="):
        softgate.from_pretrained(tmp_path)
    with pytest.raises(ArgumentTypeError, match="dtype"):
        softgate.from_pretrained(tmp_path, model=build_one(), dtype=torch.float64)
    with pytest.raises(StateError, match="do not fit"):
        softgate.from_pretrained(tmp_path, model=nn.TransformerDecoderLayer(16, 2))


def test_what_has_no_name_cannot_be_saved(tmp_path: Path) -> None:
    model = softgate.swap(build("llama"), attention=squared)
    with pytest.raises(StateError, match="object of your own"):
        softgate.save_pretrained(model, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    with pytest.warns(UserWarning, match=r"no softgate\.json was written"):
        model.save_pretrained(tmp_path / "b")
    softgate.unswap(model)
    softgate.swap(model, loss="stablemax", loss_options={"weight": torch.ones(60)})
    with pytest.raises(StateError, match="loss_options are not plain JSON"):
        softgate.save_pretrained(model, tmp_path / "c")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    softgate.save_pretrained(softgate.swap(build("llama"), attention="gated"), folder)
    return folder


def _with(saved: Path, folder: Path, **changes: Any) -> Path:
    """A copy of the saved folder whose manifest has some entries changed."""
    for path in saved.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((folder / "softgate.json").read_text())
    (folder / "softgate.json").write_text(json.dumps({**manifest, **changes}))
    return folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 2}, "format 2.*reads format 1"),
        ({"library": "pickle"}, "library 'pickle'"),
        ({"class": "../../evil"}, "is not a name"),
        ({"class": "os"}, "no model class of transformers"),
        ({"class": "LlamaConfig"}, "no model class of transformers"),
        ({"class": 3}, "is not a name"),
        ({"swaps": []}, "swaps must be an object"),
        ({"swaps": {"optimizer": {"name": "x", "options": {}}}}, "swaps must be an object"),
        ({"swaps": {"attention": "gated"}}, "must have name and options"),
        ({"swaps": {"attention": {"name": 1, "options": {}}}}, "string as name"),
        ({"swaps": {"attention": {"name": "../../x", "options": {}}}}, "attention must be one of"),
        ({"swaps": {"attention": {"name": "gated", "options": {"code": "x"}}}}, "attention_options"),
        ({"swaps": {"attention": {"name": "gated", "options": {"granularity": "headwise"}}}}, "does not hold what"),
    ],
)
def test_damaged_manifests_say_what_is_wrong(saved: Path, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises((StateError, ArgumentValueError), match=words):
        softgate.from_pretrained(_with(saved, tmp_path, **changes))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"softgate"', "\x00\xff", " " * (1 << 20) + "{}"])
def test_what_is_no_manifest(saved: Path, tmp_path: Path, text: str) -> None:
    (_with(saved, tmp_path) / "softgate.json").write_text(text, encoding="latin-1")
    with pytest.raises(StateError, match="damaged"):
        softgate.from_pretrained(tmp_path)


def test_missing_manifests_folders_and_weights(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentValueError, match="local folder"):
        softgate.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(StateError, match=r"has no softgate\.json"):
        softgate.from_pretrained(tmp_path)
    with pytest.raises(ArgumentTypeError, match="its own configuration"):
        softgate.from_pretrained(saved, model=nn.Linear(1, 1))
    model = build("llama")
    model.save_pretrained(tmp_path)
    (tmp_path / "softgate.json").write_bytes((saved / "softgate.json").read_bytes())
    with pytest.raises(StateError, match=r"softgate_gate\.weight"):
        softgate.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "model.bin", 3, ".."])
def test_an_index_cannot_lead_out_of_the_folder(saved: Path, tmp_path: Path, name: Any) -> None:
    folder = _with(saved, tmp_path)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {"x": name}}))
    with pytest.raises(StateError, match="no safetensors file of this folder"):
        softgate.from_pretrained(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}'])
def test_a_damaged_index(saved: Path, tmp_path: Path, text: str) -> None:
    (_with(saved, tmp_path) / "model.safetensors.index.json").write_text(text)
    with pytest.raises(StateError, match="damaged"):
        softgate.from_pretrained(tmp_path)
