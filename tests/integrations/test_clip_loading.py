"""Loading a CLIP: what was saved comes back, and errors that say what to do."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
sys.path.append(str(Path(__file__).resolve().parents[1] / "routing"))

from clip_cases import NAMES, TEMPLATES, make_clip, make_tokenizer

from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError
from softgate.integrations.clip_loading import load_clip
from softgate.routing import PromptMixture


def test_a_saved_clip_comes_back(tmp_path) -> None:
    clip, tokenizer = make_clip(), make_tokenizer()
    clip.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_clip(tmp_path)
    torch.manual_seed(0)
    images = torch.randn(2, 3, 16, 16)
    found = []
    for model, words in ((clip, tokenizer), loaded):
        torch.manual_seed(1)
        found.append(PromptMixture(model, words, TEMPLATES, NAMES)(images, torch.tensor([0, 2])))
    assert torch.equal(found[0].logits, found[1].logits) and torch.equal(found[0].loss, found[1].loss)
    assert load_clip(str(tmp_path), dtype=torch.bfloat16)[0].dtype is torch.bfloat16


def test_errors_that_say_what_to_do(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(StateError, match=r"nowhere.*folder with config\.json"):
        load_clip(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    with pytest.raises(ArgumentValueError, match="'siglip'"):
        load_clip(tmp_path)
    with pytest.raises(ArgumentTypeError, match="source"):
        load_clip(3)
