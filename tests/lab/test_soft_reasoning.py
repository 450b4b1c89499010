"""The full-size cell of SofT-GRPO, run on a random model and a made-up data set."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from softgate.lab.cell import CellRun
from softgate.lab.soft_reasoning import boxed_answer, measure_reasoning

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integrations"))


def test_the_last_box_counts() -> None:
    assert boxed_answer(r"so \boxed{1} or rather \boxed{ \frac{1}{2} }.") == r"\frac{1}{2}"
    assert boxed_answer("nothing") is None
    assert boxed_answer(r"\boxed{1") is None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("thoughts", ["ordinary", "soft"])
def test_training_and_evaluation_run_through(thoughts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    from softgate.lab import tiny_grpo

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    tokenizer = tiny_grpo.tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }} e"
    tokenizer.save_pretrained(tmp_path / "model")
    tiny_grpo.model().save_pretrained(tmp_path / "model")
    (tmp_path / "data").mkdir()
    rows = [{"problem": f"a {word}", "answer": "1"} for word in "bcde"]
    (tmp_path / "data" / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = {
        "model": str(tmp_path / "model"), "data": str(tmp_path / "data"), "test": str(tmp_path / "data"),
        "end_think": "h", "lr": 1e-3, "prompts": 2, "group": 2, "minibatches": 2, "max_prompt": 20, "max_response": 16,
        "max_test_response": 16, "epochs": 1, "beta": 0.001, "samples": 2, "precision": "fp32", "thoughts": thoughts,
    }  # fmt: skip
    figures = measure_reasoning(CellRun("soft-grpo", "paper", "soft", config, 0, tmp_path / "cell"))
    assert figures["k"] == [1.0, 2.0] and figures["pass_curve"] == [0.0, 0.0]  # no word is a box
    assert len(figures["reward"]) == len(figures["round"]) > 1
