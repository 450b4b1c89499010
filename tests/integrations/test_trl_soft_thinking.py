"""SofT-GRPO inside TRL's trainer, on a random model of a thousand weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl")

from softgate.errors import ArgumentTypeError, ArgumentValueError
from softgate.integrations.trl.soft_thinking import SoftThinkingGRPOTrainer
from softgate.lab import tiny_grpo
from softgate.policy import SoftSampling, SoftToken

pytestmark = pytest.mark.filterwarnings("ignore")  # what the trainers warn about is not ours

END_THINK = tiny_grpo.WORDS.index("h")
THINK: dict[str, Any] = {"end_think_id": END_THINK, "max_think": 3}


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A trainer after its run."""
    config = tiny_grpo.config(tmp_path_factory.mktemp("run"), max_steps=4, max_completion_length=7)
    return tiny_grpo.train(SoftThinkingGRPOTrainer, config, **THINK)


def test_rows_keep_their_soft_tokens_when_they_are_shuffled(trainer: Any) -> None:
    """What was computed before TRL shuffled the rows is what the loss finds at the first update: all ratios are 1."""
    logged = [entry for entry in trainer.state.log_history if "softgate/ratio_max" in entry]
    assert logged[0]["softgate/ratio_max"] == pytest.approx(1.0, abs=1e-4)
    assert logged[0]["softgate/ess"] == pytest.approx(1.0, abs=1e-4)
    assert logged[1]["softgate/ratio_max"] > 1.01
    batch = trainer._buffered_inputs[0]
    token = SoftToken(*(batch[f"soft_{name}"] for name in SoftToken._fields))
    assert torch.equal(token.ids[..., 0], batch["completion_ids"])
    assert bool(token.is_soft.any()) and not bool(token.is_soft.all())
    assert bool((batch["completion_mask"][token.is_soft] == 1).all())
    forced = (batch["completion_mask"] == 1) & (batch["tool_mask"] == 0)
    assert bool((batch["completion_ids"][forced] == END_THINK).all())
    assert int(token.is_soft.sum(-1).max()) <= 3


def test_it_trains_on_the_rewards(trainer: Any) -> None:
    losses = tiny_grpo.losses(trainer)
    assert len(losses) == 4 and any(loss != 0 for loss in losses)
    logged = [entry["softgate/thoughts"] for entry in trainer.state.log_history if "softgate/thoughts" in entry]
    assert logged and all(0 <= value <= 3 for value in logged)
    start = tiny_grpo.model()
    moved = [
        float((a - b).abs().max().detach())
        for a, b in zip(trainer.model.parameters(), start.parameters(), strict=True)
    ]  # fmt: skip
    assert max(moved) > 1e-3


@pytest.mark.parametrize(
    ("settings", "options", "word"),
    [
        ({}, {"max_think": 6}, "max_think"),
        ({}, {"min_think": 4}, "min_think"),
        ({}, {"sampling": SoftSampling(temperature=0.5)}, "sampling"),
        ({"pad_to_multiple_of": 4}, {}, "pad_to_multiple_of"),
        ({"top_entropy_quantile": 0.5}, {}, "top_entropy_quantile"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_settings_that_do_not_go_together(
    settings: dict[str, Any], options: dict[str, Any], word: str, tmp_path: Path
) -> None:
    config = tiny_grpo.config(tmp_path, max_completion_length=7, **settings)
    with pytest.raises(ArgumentValueError, match=word):
        tiny_grpo.train(SoftThinkingGRPOTrainer, config, **{**THINK, **options})


def test_a_wrong_type_of_sampling(tmp_path: Path) -> None:
    with pytest.raises(ArgumentTypeError, match="sampling"):
        tiny_grpo.train(SoftThinkingGRPOTrainer, tiny_grpo.config(tmp_path), **THINK, sampling={"k": 3})
