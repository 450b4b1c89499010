"""SAPO and its relatives inside TRL's GRPO trainer, on a random model of a thousand weights."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("trl")


from trl import GRPOTrainer

from softgate.integrations.trl import SoftGateGRPOTrainer
from softgate.lab import tiny_grpo
from softgate.policy import CISPOLoss, GRPOLoss, GSPOLoss, SAPOLoss, sapo_loss

pytestmark = pytest.mark.filterwarnings("ignore")  # what the trainers warn about is not ours


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A trainer after its run; its ``_compute_loss`` and that of its base class are compared on one batch."""
    return tiny_grpo.train(SoftGateGRPOTrainer, tiny_grpo.config(tmp_path_factory.mktemp("run"), max_steps=2))


@pytest.fixture
def batch(trainer: Any) -> dict[str, Any]:
    inputs = dict(trainer._buffered_inputs[0])
    noise = torch.Generator().manual_seed(0)
    shape = inputs["completion_ids"].shape
    inputs["old_per_token_logps"] = -torch.rand(shape, generator=noise) * 3
    inputs["ref_per_token_logps"] = -torch.rand(shape, generator=noise) * 3
    inputs["advantages"] = torch.randn(shape[0], generator=noise)
    inputs["completion_mask"] = (torch.arange(shape[1]) < torch.tensor([[shape[1]], [1], [3], [2]])).long()
    return inputs


def _loss_and_gradients(trainer: Any, compute: Callable[..., Tensor], inputs: dict[str, Any]) -> list[Tensor]:
    loss = compute(trainer, trainer.model, inputs)
    return [loss.detach(), *torch.autograd.grad(loss, list(trainer.model.parameters()))]


def _both(
    trainer: Any, monkeypatch: pytest.MonkeyPatch, inputs: dict[str, Any], objective: Any, **settings: Any
) -> Any:
    """TRL's loss and gradients and ours, in its training mode with two accumulation steps."""
    monkeypatch.setattr(trainer, "current_gradient_accumulation_steps", 2, raising=False)
    aggregation = settings.pop("aggregation", None)
    for name, value in settings.items():
        target = trainer if hasattr(trainer, name) else trainer.args
        monkeypatch.setattr(target, name, value)
    trainer.model.train()
    trainer.set_objective(objective, aggregation, keep_groups=False, fused_log_probs=False)
    theirs = _loss_and_gradients(trainer, GRPOTrainer._compute_loss, inputs)
    return theirs, _loss_and_gradients(trainer, SoftGateGRPOTrainer._compute_loss, inputs)


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "sapo": (SAPOLoss(), {"loss_type": "sapo"}),
    "sapo_kl": (SAPOLoss(), {"loss_type": "sapo", "beta": 0.2}),
    "grpo": (GRPOLoss(), {"loss_type": "grpo"}),
    "grpo_delta": (GRPOLoss(delta=1.5), {"loss_type": "grpo", "delta": 1.5}),
    "bnpo": (GRPOLoss(), {"loss_type": "bnpo", "aggregation": "token_mean"}),
    "dr_grpo": (GRPOLoss(), {"loss_type": "dr_grpo", "aggregation": "token_sum_norm"}),
    "dapo": (GRPOLoss(), {"loss_type": "dapo", "aggregation": "token_mean_global", "beta": 0.2}),
    "gspo": (GSPOLoss(0.2, 0.2), {"loss_type": "grpo", "importance_sampling_level": "sequence"}),
    "cispo": (CISPOLoss(1.2), {"loss_type": "cispo", "epsilon_high": 1.2, "aggregation": "token_mean_global"}),
    "off_policy_mask": (SAPOLoss(), {"loss_type": "sapo", "off_policy_mask_threshold": 0.1}),
    "high_entropy": (SAPOLoss(), {"loss_type": "sapo", "top_entropy_quantile": 0.5}),
}


@pytest.mark.parametrize("name", CASES)
def test_same_loss_and_gradients_as_trl(trainer, batch, monkeypatch, name) -> None:
    theirs, ours = _both(trainer, monkeypatch, batch, CASES[name][0], **CASES[name][1])
    for expected, found in zip(theirs, ours, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert theirs[1].abs().max() > 1e-4


def test_corrections_of_the_sampling_engine_and_tools(trainer, batch, monkeypatch) -> None:
    shape = batch["completion_ids"].shape
    batch["importance_sampling_ratio"] = torch.rand(shape) + 0.5
    batch["tool_mask"] = (torch.rand(shape) < 0.7).long()
    settings = {"loss_type": "sapo", "use_vllm": True, "vllm_importance_sampling_correction": True}
    theirs, ours = _both(trainer, monkeypatch, batch, SAPOLoss(), **settings)
    for expected, found in zip(theirs, ours, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_function_of_ones_own(trainer, batch, monkeypatch) -> None:
    def mine(logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        return sapo_loss(logp, old_logp, advantages, mask)

    settings = {"loss_type": "sapo", "beta": 0.2}  # it knows nothing of the KL term, which the trainer adds
    theirs, ours = _both(trainer, monkeypatch, batch, mine, **settings)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    bound = partial(sapo_loss, aggregation="token_mean_global")
    _, ours = _both(trainer, monkeypatch, batch, bound, beta=0.0)
    _, named = _both(trainer, monkeypatch, batch, sapo_loss, aggregation="token_mean_global")
    torch.testing.assert_close(ours, named)


def test_training_gives_the_weights_of_trl(tmp_path: Path) -> None:
    theirs = tiny_grpo.train(GRPOTrainer, tiny_grpo.config(tmp_path, loss_type="sapo"))
    ours = tiny_grpo.train(SoftGateGRPOTrainer, tiny_grpo.config(tmp_path))
    assert tiny_grpo.losses(ours) == pytest.approx(tiny_grpo.losses(theirs), abs=1e-6)
    for expected, found in zip(theirs.model.parameters(), ours.model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    entry = next(entry for entry in ours.state.log_history if "softgate/gate_mean" in entry)
    assert entry["softgate/gate_mean"] <= 1 and entry["softgate/ratio_max"] > 0 and "entropy" in entry
    start, end = (entry["softgate/ess"] for entry in ours.state.log_history[:3:2])
    assert start == pytest.approx(1.0) and end < 1.0  # on policy first, not later


@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_sapo_loss_has_the_bits_of_trl(trainer, batch, monkeypatch, kernels) -> None:
    monkeypatch.setenv("SOFTGATE_KERNELS", kernels)
    theirs, ours = _both(trainer, monkeypatch, batch, sapo_loss, loss_type="sapo")
    assert all(torch.equal(found, expected) for found, expected in zip(ours, theirs, strict=True))


def test_fused_log_probabilities(tmp_path: Path) -> None:
    plain, fused = (
        tiny_grpo.train(SoftGateGRPOTrainer, tiny_grpo.config(tmp_path, max_steps=3), fused_log_probs=flag)
        for flag in (False, True)
    )
    assert tiny_grpo.losses(fused) == pytest.approx(tiny_grpo.losses(plain), abs=1e-5)
    assert all("entropy" not in entry for entry in fused.state.log_history)
    logits = fused.model(torch.tensor([[2, 3]]))  # without fused_lm_head the forward is the model's own
    assert logits.logits.shape == (1, 2, len(tiny_grpo.WORDS))


def test_listwise_objectives_get_whole_groups(tmp_path: Path) -> None:
    seen: list[Tensor] = []

    def listwise(logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, *, group_id: Tensor) -> Tensor:
        seen.append(torch.stack([group_id.double(), advantages.double()]))
        return sapo_loss(logp, old_logp, advantages, mask)

    args = tiny_grpo.config(tmp_path, per_device_train_batch_size=8, steps_per_generation=3, max_steps=6)
    tiny_grpo.train(SoftGateGRPOTrainer, args, policy_loss=listwise)
    assert len(seen) == 6
    orders = set()
    for groups, advantages in seen:
        assert (groups.view(2, 4) == groups.view(2, 4)[:, :1]).all() and groups[0] != groups[4]
        assert advantages.view(2, 4).sum(1).abs().max() < 1e-4  # the z-scores of a whole group add up to 0
        orders.add(tuple(groups[::4].tolist()))
    assert {g for pair in orders for g in pair} == set(range(6))


@pytest.mark.parametrize(
    ("settings", "options", "word"),
    [
        ({"use_liger_kernel": True}, {}, "use_liger_kernel"),
        ({"importance_sampling_level": "sequence"}, {}, "importance_sampling_level"),
        ({"entropy_coef": 0.1}, {}, "entropy_coef"),
        ({"per_device_train_batch_size": 2}, {"keep_groups": True}, "per_device_train_batch_size"),
        ({}, {"policy_loss": "sapo"}, "policy_loss"),
        ({}, {"aggregation": "mean"}, "aggregation"),
        ({}, {"policy_loss": lambda a, b, c, d: a.sum(), "aggregation": "token_mean"}, "aggregation"),
    ],
    ids=["liger", "level", "entropy", "groups", "type", "aggregation", "no_aggregation"],
)
def test_what_is_refused(tmp_path, settings, options, word) -> None:
    args = tiny_grpo.config(tmp_path, **settings)
    with pytest.raises((ValueError, TypeError), match=word):
        SoftGateGRPOTrainer(
            model=tiny_grpo.model(), reward_funcs=tiny_grpo.reward, args=args, train_dataset=tiny_grpo.dataset(),
            processing_class=tiny_grpo.tokenizer(), **options,
        )  # fmt: skip


@pytest.mark.slow
def test_two_processes_of_accelerate_agree_with_trl(tmp_path: Path) -> None:
    script = Path(__file__).with_name("trl_two_processes.py")
    # with --cpu alone the launcher starts one process; port 0 is any free one
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--main_process_port", "0", str(script), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "HF_HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("processes 2, same weights") == 2, done.stdout[-2000:]
