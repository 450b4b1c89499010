"""Policy objectives: the loss alone, and log-probabilities with it at a large vocabulary, against the eager formulas.

    python benchmarks/policy.py [--seconds S] [--shape B,T] [--head N,d,V] [--out DIR]

One thread, float32, candidates in turns, forward and backward. ``trl`` is TRL's formula for SAPO in torch operations;
``limit`` reads three arrays and writes one of the same size. At the head, ``eager`` is a log-softmax of all logits,
``trl`` the chunked function of TRL, where it is installed, and ``liger`` Liger's fused loss, where it has a GPU. Memory
is the peak beyond the gradients. Figures go to DIR/benchmark-policy.json. Smoke: --shape 8,64 --head 64,32,1000.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from _timing import CONSOLE, peak_bytes, table, write_record
from softgate.integrations import torchvision_cpu
from softgate.lab.timing import interleaved, load_per_core
from softgate.losses import selective_log_softmax_fused
from softgate.policy import grpo_loss, gspo_loss, sapo_loss

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
SHAPE = (64, 4096)
HEAD = (512, 256, 151_936)
Step = Callable[[], object]


def trl_sapo(logp: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """SAPO as a trainer writes it down: exp, sigmoid and products, each with its saved tensors."""
    columns = advantages.unsqueeze(1)
    temperature = torch.where(columns > 0, 1.0, 1.05)
    ratio = torch.exp(logp - old)
    losses = -(torch.sigmoid(temperature * (ratio - 1)) * 4 / temperature) * columns
    return ((losses * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).mean()


def batch(rows: int, length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    old = -3 * torch.rand(rows, length, generator=generator) - 0.5
    logp = (old + 0.2 * torch.randn(rows, length, generator=generator)).requires_grad_()
    lengths = torch.randint(length // 4 + 1, length + 1, (rows, 1), generator=generator)
    return logp, old, torch.randn(rows, generator=generator), (torch.arange(length) < lengths).long()


def objective_steps(rows: int, length: int) -> dict[str, Step]:
    logp, *others = batch(rows, length)
    outputs = torch.zeros(rows, length)
    mask = others[2].bool()

    def step(loss: Callable[..., Tensor]) -> Step:
        return lambda: torch.autograd.grad(loss(logp, *others), logp)

    def reference(*args: Tensor) -> Tensor:
        return sapo_loss(*args, return_stats=True)[0]

    return {
        "sapo": step(sapo_loss),
        "sapo_with_stats": step(reference),
        "grpo": step(grpo_loss),
        "gspo": step(gspo_loss),
        "trl": step(trl_sapo),
        "limit": lambda: torch.where(mask, torch.sub(logp.detach(), others[0], out=outputs), 0.0),
    }


def head_steps(tokens: int, width: int, vocabulary: int) -> dict[str, Step]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, width, generator=generator).requires_grad_()
    w = (torch.randn(vocabulary, width, generator=generator) / width**0.5).requires_grad_()
    y = torch.randint(vocabulary, (tokens,), generator=generator)
    advantages, mask = torch.randn(1, generator=generator), torch.ones(1, tokens)

    def step(log_probs: Callable[[], Tensor]) -> Step:
        def run() -> object:
            logp = log_probs().view(1, -1)
            return torch.autograd.grad(sapo_loss(logp, logp.detach() - 0.1, advantages, mask), (x, w))

        return run

    found = {
        "fused": step(lambda: selective_log_softmax_fused(x, w, y)),
        "eager": step(lambda: (x @ w.t()).log_softmax(-1).gather(-1, y[:, None])),
    }
    chunked = _trl_chunks()
    if chunked is not None:
        found["trl"] = step(lambda: chunked(x, w, y))
    liger = _liger()
    if liger is not None:
        old = torch.zeros(1, tokens)
        loss = liger(loss_type="sapo", beta=0.0, use_ref_model=False)
        found["liger"] = lambda: torch.autograd.grad(
            loss(x[None], w, y[None], mask, advantages, old_per_token_logps=old)[0], (x, w)
        )
    return found


def _trl_chunks() -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """What TRL computes log-probabilities with, where it is installed and has that function."""
    if importlib.util.find_spec("trl") is None:
        return None
    torchvision_cpu.repair()
    from trl.trainer import utils

    function = getattr(utils, "_ChunkedLogProbFunction", None)
    if function is None:
        return None
    size = utils._CHUNKED_LOGPROB_CHUNK_SIZE
    return lambda x, w, y: function.apply(x, w, None, y, 1.0, size, None, 1.0, ("log_probs",))[0]


def _liger() -> Any:
    """Liger's fused head and loss, where it is installed and has a device to run on."""
    if importlib.util.find_spec("liger_kernel") is None or not torch.cuda.is_available():
        return None
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    return LigerFusedLinearGRPOLoss


def measure(steps: dict[str, Step], base: str, returned: int, seconds: float) -> dict[str, Any]:
    times = interleaved(steps, turns=5, seconds=seconds, most=200)
    ours = next(iter(steps))
    return {
        "ms": {name: 1e3 * timing.median for name, timing in times.items()},
        f"{ours} / {base}": times[ours].median / times[base].median,
        "extra_bytes": {name: peak_bytes(run) - returned for name, run in steps.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="per table")
    parser.add_argument("--shape", type=lambda text: tuple(map(int, text.split(","))), default=SHAPE)
    parser.add_argument("--head", type=lambda text: tuple(map(int, text.split(","))), default=HEAD)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, length = options.shape
    tokens, width, vocabulary = options.head
    objectives = measure(objective_steps(rows, length), "trl", 4 * rows * length, options.seconds)
    head = measure(head_steps(*options.head), "eager", 4 * width * (tokens + vocabulary), options.seconds)
    for title, found in ((f"objective, {options.shape}", objectives), (f"head and SAPO, {options.head}", head)):
        lines = [[name, found["ms"][name], found["extra_bytes"][name] / 2**20] for name in found["ms"]]
        table(f"{title}: forward + backward (median)", ["candidate", "ms", "extra MiB"], lines)
    CONSOLE.print(f"load per core {load_per_core():.2f}")
    sections = {"objective": {"shape": options.shape, **objectives}, "head": {"shape": options.head, **head}}
    write_record(options.out / "benchmark-policy.json", sections)


if __name__ == "__main__":
    main()
