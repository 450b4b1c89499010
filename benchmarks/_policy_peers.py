"""What the policy objectives are timed beside: trainers' formulas, TRL's chunks and Liger's fused head and loss."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from softgate.integrations import torchvision_cpu

#: ``(x, weight, target) -> log-probabilities`` of rows of tokens.
LogProbs = Callable[[Tensor, Tensor, Tensor], Tensor]


def _row_means(losses: Tensor, mask: Tensor) -> Tensor:
    return ((losses * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).mean()


def _clipped(ratio: Tensor, columns: Tensor, low: float, high: float) -> Tensor:
    return -torch.min(ratio * columns, torch.clamp(ratio, 1 - low, 1 + high) * columns)


def trl_sapo(logp: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """SAPO as a trainer writes it down: exp, sigmoid and products, each with its saved tensors."""
    columns = advantages.unsqueeze(1)
    temperature = torch.where(columns > 0, 1.0, 1.05)
    ratio = torch.exp(logp - old)
    return _row_means(-(torch.sigmoid(temperature * (ratio - 1)) * 4 / temperature) * columns, mask)


def trl_grpo(logp: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """GRPO: two products and the smaller one."""
    return _row_means(_clipped(torch.exp(logp - old), advantages.unsqueeze(1), 0.2, 0.2), mask)


def trl_gspo(logp: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """GSPO: GRPO of one ratio per row."""
    log_weight = ((logp - old) * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)
    return _row_means(_clipped(torch.exp(log_weight).unsqueeze(1), advantages.unsqueeze(1), 3e-4, 4e-4), mask)


def trl_cispo(logp: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """CISPO: the capped ratio as a constant, over all tokens."""
    weight = torch.clamp(torch.exp(logp - old), max=5.0).detach()
    return (-weight * advantages.unsqueeze(1) * logp * mask).sum() / mask.sum().clamp(min=1.0)


def eager_log_probs(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """A log-softmax, in float32, of all logits."""
    return (x @ weight.t()).float().log_softmax(-1).gather(-1, target.unsqueeze(-1)).squeeze(-1)


def trl_log_probs() -> LogProbs | None:
    """What TRL computes log-probabilities with, where it is installed and has that function."""
    if importlib.util.find_spec("trl") is None:
        return None
    torchvision_cpu.repair()
    try:
        from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as size
        from trl.trainer.utils import _ChunkedLogProbFunction as function
    except (ImportError, RuntimeError):  # another version, or one that does not go with this transformers
        return None

    def log_probs(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        found = function.apply(x.flatten(0, -2), weight, None, target.flatten(), 1.0, size, None, 1.0, ("log_probs",))
        return found[0].view(target.shape)

    return log_probs


def liger_loss(name: str, device: str) -> Callable[..., Tensor] | None:
    """Liger's fused head and loss ``(x, weight, target, old, advantages, mask) -> loss``, where it is installed."""
    if importlib.util.find_spec("liger_kernel") is None:
        return None
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    gspo = {"importance_sampling_level": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4}
    settings = {"gspo": {"loss_type": "grpo", **gspo}, "cispo": {"loss_type": "cispo", "epsilon_high": 5.0}}
    chosen = {"loss_type": name, **settings.get(name, {})}
    loss = LigerFusedLinearGRPOLoss(beta=0.0, use_ref_model=False, compiled=device == "cuda", **chosen)

    def run(x: Tensor, weight: Tensor, target: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        found: Tensor = loss(x, weight, target, mask.to(torch.float32), advantages, old_per_token_logps=old)[0]
        return found

    return run
