"""softgate diagnose: models from folders, inputs, what it prints and writes, and its error messages."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import softgate
from softgate import cli
from softgate.diagnostics import report
from softgate.errors import ArgumentValueError, MissingExtraError, SoftgateError, StateError
from softgate.integrations.diagnosed_inputs import make_batches
from softgate.integrations.diagnosed_models import load_model
from softgate.integrations.diagnosis import diagnose, try_remedies
from softgate.lab.page.diagnosis import heat_maps

transformers = pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "swapping"))
models: Any = importlib.import_module("tiny_models")
runner = CliRunner()
pytestmark = pytest.mark.filterwarnings("ignore")  # what transformers warns about while saving is not ours

TEXT = "a b c d e f g h i j " * 40


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Saves a tiny model, with a tokenizer of single letters if asked for."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def save(name: str, *, tokenizer: bool = False) -> Path:
        folder = tmp_path / name
        if name == "timm":
            timm = pytest.importorskip("timm")
            sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}
            timm.models.save_for_hf(models.timm_vit(), folder, safe_serialization=True, model_args=sizes)
            return folder
        models.build(name).save_pretrained(folder)
        if tokenizer:
            _tokenizer().save_pretrained(folder)
        return folder

    return save


def _tokenizer() -> Any:
    tokenizers: Any = importlib.import_module("tokenizers")
    words = {"<unk>": 3, **{letter: 10 + i for i, letter in enumerate("abcdefghij")}}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


@pytest.mark.parametrize("name", ["llama", "bert", "t5", "vit", "timm"])
def test_models_from_folders(name: str, saved: Callable[..., Path]) -> None:
    folder = saved(name)
    found = diagnose(str(folder), length=16, batch=2, batches=2)
    assert found.passes == 2 and found.attention and found.activations and found.logits is not None
    made_up = "images are noise" if name in ("vit", "timm") else "tokens are random"
    assert len(found.notes) == 1 and made_up in found.notes[0]


def test_loaded_figures_are_those_of_the_model_itself(saved: Callable[..., Path]) -> None:
    loaded = load_model(str(saved("llama")))
    batches = make_batches(loaded, length=12, batch=2, batches=1)
    (inputs,) = batches
    assert isinstance(inputs, dict) and inputs["input_ids"][:, 0].tolist() == [1, 1]  # bos
    assert not torch.isin(inputs["input_ids"][:, 1:], torch.tensor([0, 1, 2])).any()
    assert report(models.build("llama"), batches).to_json() == report(loaded.model, batches).to_json()


def test_text_is_cut_into_rows_by_the_models_tokenizer(saved: Callable[..., Path], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    loaded = load_model(str(saved("llama", tokenizer=True)))
    batches = make_batches(loaded, text=text, length=20, batch=3, batches=2)
    assert [tuple(b["input_ids"].shape) for b in batches if isinstance(b, dict)] == [(3, 20), (3, 20)]
    assert isinstance(batches[0], dict) and batches[0]["input_ids"][0].tolist() == [10 + i % 10 for i in range(20)]
    assert loaded.notes == []


def test_text_without_a_tokenizer_is_said_and_random(saved: Callable[..., Path], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    loaded = load_model(str(saved("llama")))
    make_batches(loaded, text=text)
    assert "no tokenizer was found" in loaded.notes[0] and "random" in loaded.notes[0]


def test_images_are_scaled_and_normalised(saved: Callable[..., Path], tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "images").mkdir()
    for index, colour in enumerate([(0, 0, 0), (255, 255, 255)]):
        image.new("RGB", (40, 30), colour).save(tmp_path / "images" / f"{index}.png")
    for name in ("timm", "vit"):
        loaded = load_model(str(saved(name)))
        (batch,) = make_batches(loaded, images=tmp_path / "images", batch=4)
        pixels = batch["pixel_values"] if isinstance(batch, dict) else batch
        assert pixels.shape == (2, 3, 16, 16) and loaded.notes == []
        assert pixels[0].unique().tolist() == [-1.0] and pixels[1].unique().tolist() == [1.0]


def test_a_swapped_model_comes_with_its_swaps(saved: Callable[..., Path], tmp_path: Path) -> None:
    softgate.save_pretrained(softgate.swap(models.build("llama"), attention="sigmoid"), tmp_path / "swapped")
    found = diagnose(str(tmp_path / "swapped"), length=12, batch=1, batches=1)
    assert found.attention[0].max_logit is None and not found.topics["sink"].swap


def test_missing_weights_are_said(saved: Callable[..., Path]) -> None:
    folder = saved("llama")
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    state.pop("model.layers.0.mlp.up_proj.weight")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    assert "1 tensors are not in the saved weights" in load_model(str(folder)).notes[0]


def test_refused_remedies_say_why() -> None:
    model = models.build("llama")
    model.lm_head.weight.data *= 1e3
    batches = [{"input_ids": models.tokens()}]
    works = try_remedies(model, report(model, batches))
    assert works.topics["collapse"].refused == ""
    softgate.swap(model, loss="stablemax")  # the place is taken now
    assert "swapped already" in try_remedies(model, works).topics["collapse"].refused


def test_the_command_prints_findings_and_their_lines(saved: Callable[..., Path], tmp_path: Path) -> None:
    folder = saved("llama")
    plain = runner.invoke(cli.app, ["diagnose", str(folder), "--length", "16", "--batches", "1"])
    assert plain.exit_code == 0, plain.output
    assert (
        "self_attn" in plain.output and "within what is normal" in plain.output and "note: the tokens" in plain.output
    )
    model = models.build("llama")
    model.lm_head.weight.data *= 1e3
    model.save_pretrained(folder)
    page = tmp_path / "page"
    bad = runner.invoke(cli.app, ["diagnose", str(folder), "--length", "16", "--batches", "1", "--out", str(page)])
    assert bad.exit_code == 1
    assert "✗ softmax collapse" in bad.output and 'softgate.swap(model, loss="stablemax")' in bad.output
    html = (page / "index.html").read_text(encoding="utf-8")
    assert html.count("<svg") == 1 and "How to read the figures" in html and "stablemax" in html
    assert json.loads((page / "diagnosis.json").read_text())["findings"][0]["topic"] == "collapse"


def test_the_command_prints_json(saved: Callable[..., Path]) -> None:
    arguments = ["diagnose", str(saved("timm")), "--batches", "1", "--batch", "2", "--json"]
    result = runner.invoke(cli.app, arguments)
    value = json.loads(result.stdout)
    assert result.exit_code == 0 and value["model"] == "VisionTransformer"
    assert len(value["attention"]) == 2 and len(value["attention"][0]["sink_share"]) == 4


def test_the_heat_map_has_a_row_per_layer_and_a_column_per_head() -> None:
    (svg,) = heat_maps(report(models.build("t5"), [_pair()])).values()
    assert "weight on the first token" in svg and "head" in svg
    assert svg == next(iter(heat_maps(report(models.build("t5"), [_pair()])).values()))


def _pair() -> dict[str, torch.Tensor]:
    return {"input_ids": models.tokens(), "decoder_input_ids": models.tokens(seed=3)}


def _file(folder: Path) -> str:
    (folder / "weights.bin").write_text("x")
    return str(folder / "weights.bin")


def _damaged(folder: Path) -> str:
    (folder / "config.json").write_text("{")
    return str(folder)


def _neither(folder: Path) -> str:
    (folder / "config.json").write_text("{}")
    return str(folder)


def _without_weights(folder: Path) -> str:
    models.build("llama").config.save_pretrained(folder)
    return str(folder)


def _unknown_type(folder: Path) -> str:
    (folder / "config.json").write_text('{"model_type": "no-such-type"}')
    return str(folder)


def _unknown_architecture(folder: Path) -> str:
    (folder / "config.json").write_text('{"architecture": "no_such_model", "pretrained_cfg": {}}')
    return str(folder)


MISTAKES: list[tuple[Any, type[Exception], str]] = [
    (lambda folder: str(folder / "absent"), ArgumentValueError, "does not exist"),
    (lambda folder: "", ArgumentValueError, "does not exist"),
    (str, ArgumentValueError, "no model folder"),
    (_file, ArgumentValueError, "is a file"),
    (_damaged, StateError, "damaged"),
    (_neither, ArgumentValueError, "model_type"),
    (_without_weights, StateError, "cannot be loaded"),
    (_unknown_type, StateError, "no-such-type"),
    (_unknown_architecture, StateError, "no_such_model"),
]


@pytest.mark.parametrize(("make", "kind", "word"), MISTAKES, ids=range(len(MISTAKES)))
def test_what_is_no_model_is_said(make: Any, kind: type[Exception], word: str, tmp_path: Path) -> None:
    with pytest.raises(kind, match=word):
        load_model(make(tmp_path))


def test_a_hub_id_without_a_network_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    hub: Any = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    with pytest.raises(StateError, match="no folder here, and as a hub id"):
        load_model("softgate-tests/no-such-model")


def test_missing_extras_are_named(saved: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved("timm")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"softgate\[vision\]"):
        load_model(str(folder))
    folder = saved("llama")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"softgate\[hf\]"):
        load_model(str(folder))


def test_unusable_inputs_are_said(saved: Callable[..., Path], tmp_path: Path) -> None:
    words, pictures = load_model(str(saved("llama", tokenizer=True))), load_model(str(saved("vit")))
    (tmp_path / "short.txt").write_text("a b")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\xfa")
    (tmp_path / "empty").mkdir()
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (words, {"text": tmp_path / "absent.txt"}, "no file"),
        (words, {"text": tmp_path / "short.txt"}, r"short\.txt gives 2 tokens, at least 8 .*longer file"),
        (words, {"text": tmp_path / "binary.txt"}, "no UTF-8 text .*give a plain text file"),
        (words, {"images": tmp_path}, "--text"),
        (pictures, {"text": tmp_path / "short.txt"}, "--images"),
        (pictures, {"images": tmp_path / "absent"}, "no folder"),
        (pictures, {"images": tmp_path / "empty"}, "no image"),
    ]
    for loaded, options, word in cases:
        with pytest.raises(SoftgateError, match=word):
            make_batches(loaded, **options)
    pictures.model.main_input_name = "input_features"
    with pytest.raises(StateError, match=r"softgate\.diagnostics\.report"):
        make_batches(pictures)
