"""The cells of CRReLU's reproduction at the smallest sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from softgate.lab.activation_training import ACTIVATIONS, measure_digits, measure_images, measure_preference
from softgate.lab.cell import CellRun


def _run(folder: Path, config: dict[str, object]) -> CellRun:
    return CellRun("crrelu", "smoke", "cell", config, 0, folder)


def test_digits_start_alike_and_have_their_activation(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    config = {"epochs": 1, "batch": 500, "lr": 0.0, "weight_decay": 0.0}
    losses = {}
    for name in ("crrelu", "relu", "elu"):
        figures = measure_digits(_run(tmp_path / name, {**config, "activation": name}))
        losses[name] = figures["test_loss"]
        assert figures["epoch"] == [1.0] and ("eps_3" in figures) == (name == "crrelu")
    assert losses["crrelu"] == pytest.approx(losses["relu"], abs=0.02) != losses["elu"]
    with pytest.raises(ValueError, match="activation"):
        measure_digits(_run(tmp_path, {**config, "activation": "selu"}))
    # what the paper file says of CELU
    x = torch.randn(50)
    assert torch.equal(ACTIVATIONS["elu"]()(x), torch.nn.CELU()(x))


def test_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from softgate.lab import activation_training

    class Task:
        size, channels, classes = 8, 3, 4

        def __init__(self, dataset: str, seed: int, download: bool) -> None:
            self.noise = torch.Generator().manual_seed(seed)

        def batch(self, *stream: object, size: int) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.randn(size, 3, 8, 8, generator=self.noise), torch.arange(size) % 4

        def test(self, size: int | None) -> tuple[torch.Tensor, torch.Tensor]:
            return self.batch(size=4)

    monkeypatch.setattr(activation_training, "ImageClassification", Task)
    config = {
        "dataset": "cifar10", "activation": "crrelu", "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2,
        "steps": 2, "batch": 4, "lr": 1e-2, "warmup": 0, "tested": None,
    }  # fmt: skip
    figures = measure_images(_run(tmp_path, config))
    assert 0.0 <= figures["accuracy"] <= 1.0 and figures["eps_0"] != 0.01


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("activation", ["gelu", "crrelu"])
def test_preferences(activation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    from softgate.lab import tiny_grpo

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = tiny_grpo.tokenizer()
    tokenizer.save_pretrained(tmp_path / "model")
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 32, "bos_token_id": 1, "eos_token_id": 1}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "model")
    rows = [{"prompt": f"a {word} ", "chosen": "b c d", "rejected": "e e e"} for word in "abcdefgh"]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = {
        "model": str(tmp_path / "model"), "data": str(tmp_path / "pairs.jsonl"), "activation": activation, "beta": 0.3,
        "lr": 1e-2, "batch": 2, "steps": 3, "tested": 2, "tokens": 16,
    }  # fmt: skip
    figures = measure_preference(_run(tmp_path / "cell", config))
    assert figures["margin"] > 0.0 and figures["preference_accuracy"] == 1.0
    assert ("eps_0" in figures) == (activation == "crrelu")
