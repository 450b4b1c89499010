"""Learning prompts in the lab: a tiny CLIP, figures that mean what they are called."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")

from softgate.lab.cell import CellRun
from softgate.lab.data import MissingDataError, StyledDigits
from softgate.lab.data.styled_digits import CLASSES, WORDS
from softgate.lab.prompt_styles import METHODS, TEMPLATES, _StyledShots, measure_styles
from softgate.lab.prompt_training import evaluate_prompts, harmonic
from softgate.lab.tiny_clip import make_tiny_clip, make_word_tokenizer
from softgate.routing import PromptMixture


@pytest.fixture(scope="module")
def shots() -> _StyledShots:
    try:
        return _StyledShots(StyledDigits(0), 4)
    except MissingDataError as error:
        pytest.skip(str(error).splitlines()[0])


def test_the_task(shots) -> None:
    base, new = shots.names("base"), shots.names("new")
    assert len(base) == len(new) == 30 and set(base) | set(new) == set(CLASSES)
    assert shots.images.shape == (120, 3, 14, 14) and shots.labels.bincount().tolist() == [4] * 30
    images, labels, styles = next(shots.test("new"))
    assert len(images) == 120 and labels.bincount().tolist() == [4] * 30 and styles.unique().tolist() == [1, 2, 3, 4]
    for step in (0, 1):
        assert torch.equal(shots.batch(step, 8)[0], shots.batch(step, 8)[0])


def test_figures_of_a_router_that_always_says_one_thing(shots) -> None:
    tokenizer = make_word_tokenizer(WORDS)
    torch.manual_seed(0)
    model = PromptMixture(make_tiny_clip(tokenizer), tokenizer, TEMPLATES, CLASSES, finetune_vision_ln=False)
    with torch.no_grad():
        model.router.weight.zero_()
        model.router.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 9.0, 8.0]))
    found = evaluate_prompts(model, shots)
    assert found["top1"] == 0.25 and found["routed"] == 0.5
    assert found["harmonic"] == harmonic(found["base"], found["new"]) and model.classnames == tuple(shots.names("base"))
    assert harmonic(0.0, 0.0) == 0.0 and harmonic(1.0, 0.5) == pytest.approx(2 / 3)


def test_one_prompt_has_no_routing(shots, tmp_path) -> None:
    config = {"pretraining": 2, "methods": ["coop", "mocoop"], "steps": 2, "batch": 4, "tested": 1}
    found = measure_styles(CellRun("mixture-of-prompts", "smoke", "tiny", config, 0, tmp_path))
    assert {"harmonic_coop", "harmonic_ensemble", "routed_mocoop", "curve_gate_mocoop"} <= set(found)
    assert not {"routed_coop", "curve_gate_coop"} & set(found)
    assert len(found["step"]) == len(found["curve_cls_coop"]) == 2
    assert set(METHODS) == {"coop", "single", "mocoop", "no_gate_loss", "no_text_loss"}
