"""DiagnosticsCallback under the Trainer of transformers."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from softgate.diagnostics import DiagnosisWarning
from softgate.errors import SoftgateError

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "swapping"))
models: Any = importlib.import_module("tiny_models")


def _trainer(folder: Path, callback: Any, **options: Any) -> Any:
    rows = [{"input_ids": row, "labels": row} for row in models.tokens(16, 8)]
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=5, per_device_train_batch_size=4, save_steps=5, report_to=[], use_cpu=True,
        logging_steps=1, disable_tqdm=True, dataloader_pin_memory=False, **options,
    )  # fmt: skip
    return transformers.Trainer(model=models.build("llama"), args=arguments, train_dataset=rows, callbacks=[callback])


@pytest.mark.filterwarnings("ignore")  # what the Trainer warns about is not ours
@pytest.mark.parametrize("sent", [False, True])
def test_figures_are_logged_every_few_steps(sent: bool, tmp_path: Path) -> None:
    from softgate.integrations.trainer_callback import DiagnosticsCallback

    callback = DiagnosticsCallback(every=2, warn=None)
    trainer = _trainer(tmp_path, callback, gradient_accumulation_steps=2)
    if sent:
        callback.send_to(trainer)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "softgate/sink_share" in entry]
    assert [entry["step"] for entry in entries] == [1, 3, 5]  # the steps 0, 2 and 4 end there
    assert 0.0 < entries[0]["softgate/sink_share"] < 1.0 and "softgate/softmax_collapse" in entries[0]
    saved = json.loads((tmp_path / "checkpoint-5" / "trainer_state.json").read_text())
    assert sum("softgate/kurtosis" in entry for entry in saved["log_history"]) == 3
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in trainer.model.modules())


@pytest.mark.filterwarnings("ignore")
def test_a_finding_warns(tmp_path: Path) -> None:
    from softgate.integrations.trainer_callback import DiagnosticsCallback

    trainer = _trainer(tmp_path, DiagnosticsCallback())
    trainer.model.lm_head.weight.data *= 1e3
    with pytest.warns(DiagnosisWarning, match='softmax collapse of the loss at step 0.*loss="stablemax"'):
        trainer.train()


def test_wrong_options_fail_at_once() -> None:
    from softgate.integrations.trainer_callback import DiagnosticsCallback

    with pytest.raises(SoftgateError, match="every"):
        DiagnosticsCallback(every=0)
    with pytest.raises(SoftgateError, match="trainer"):
        DiagnosticsCallback().send_to(3)
