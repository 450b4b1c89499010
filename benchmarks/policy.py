"""Policy objectives: the loss alone, and log-probabilities with it at a large vocabulary, against the eager formulas.

    python benchmarks/policy.py [--seconds S] [--shape B,T] [--groups P,n] [--head N,d,V] [--losses L ...] [--out DIR]
    python benchmarks/policy.py --device cuda [--dtype bfloat16]

Forward and backward, candidates in turns; one thread and float32 on the CPU. ``trl_x`` is TRL's formula of the
objective x in torch operations; ``limit`` reads three arrays and writes one of the same size. Listwise: P lists of n
answers, as equal blocks (``dense``), with ids in order, and with ids of lists of n / 2 to 3 n / 2. At the head,
``eager`` is a log-softmax of all logits, ``trl`` the chunked function of TRL and ``liger`` Liger's fused head and loss,
where they are installed; all but the last end in an objective on float32 log-probabilities. Rows are of 1024 tokens at
most.
Memory is the peak beyond the gradients. Figures go to DIR/benchmark-policy.json, those of a GPU to
DIR/benchmark-policy-cuda.json. Smoke: --shape 8,64 --groups 8,4 --head 64,32,1000.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from _policy_peers import eager_log_probs, liger_loss, trl_cispo, trl_grpo, trl_gspo, trl_log_probs, trl_sapo
from _timing import CONSOLE, peak_bytes, table, write_record
from softgate.lab.timing import interleaved, load_per_core
from softgate.losses import selective_log_softmax_fused
from softgate.policy import adpo_loss, cispo_loss, grpo_loss, gspo_loss, sapo_loss

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
SHAPE = (64, 4096)
GROUPS = (12_500, 8)
HEAD = {"cpu": (512, 256, 151_936), "cuda": (8192, 2048, 151_936)}
#: Tokens of a row at the head: Liger works on one row after the other.
ROW = 1024
Step = Callable[[], object]
Loss = Callable[..., Tensor]
OURS: dict[str, Loss] = {"sapo": sapo_loss, "grpo": grpo_loss, "gspo": gspo_loss, "cispo": cispo_loss}
TRL: dict[str, Loss] = {"sapo": trl_sapo, "grpo": trl_grpo, "gspo": trl_gspo, "cispo": trl_cispo}


def batch(rows: int, length: int, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    old = -3 * torch.rand(rows, length, generator=generator) - 0.5
    logp = old + 0.2 * torch.randn(rows, length, generator=generator)
    lengths = torch.randint(length // 4 + 1, length + 1, (rows, 1), generator=generator)
    advantages, mask = torch.randn(rows, generator=generator), (torch.arange(length) < lengths).long()
    return logp.to(device).requires_grad_(), old.to(device), advantages.to(device), mask.to(device)


def objective_steps(rows: int, length: int, device: str) -> dict[str, Step]:
    logp, *others = batch(rows, length, device)
    outputs = torch.zeros(rows, length, device=device)
    mask = others[2].bool()

    def step(loss: Loss) -> Step:
        return lambda: torch.autograd.grad(loss(logp, *others), logp)

    found = {name: step(loss) for name, loss in OURS.items()}
    found |= {f"{name}_with_stats": step(lambda *args, loss=OURS[name]: loss(*args, return_stats=True)[0])
              for name in ("sapo", "grpo")}  # fmt: skip
    found |= {f"trl_{name}": step(loss) for name, loss in TRL.items()}
    found["limit"] = lambda: torch.where(mask, torch.sub(logp.detach(), others[0], out=outputs), 0.0)
    return found


def listwise_steps(lists: int, size: int, device: str) -> dict[str, Step]:
    rows = lists * size
    generator = torch.Generator().manual_seed(0)
    old = -torch.rand(rows, generator=generator) - 1
    logp = (old + 0.1 * torch.randn(rows, generator=generator)).to(device).requires_grad_()
    old, scores = old.to(device), torch.rand(rows, generator=generator).to(device)
    sizes = torch.randint(size // 2, size + size // 2 + 1, (2 * lists,), generator=generator)
    ragged = torch.arange(2 * lists).repeat_interleave(sizes)[:rows]
    shuffled = ragged[torch.randperm(rows, generator=generator)]
    ids = {"sorted": torch.arange(lists).repeat_interleave(size), "ragged": ragged, "ragged_shuffled": shuffled}

    def step(group_id: Tensor | int) -> Step:
        return lambda: torch.autograd.grad(adpo_loss(logp, old, scores, group_id), logp)

    return {"dense": step(size), **{name: step(tensor.to(device)) for name, tensor in ids.items()}}


def head_losses(name: str, tokens: int, width: int, vocabulary: int, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """name of a candidate -> function that returns its loss; and the tensors that get gradients under ``""``."""
    generator = torch.Generator().manual_seed(0)
    length = min(tokens, ROW)
    rows = tokens // length
    x = torch.randn(rows, length, width, generator=generator).to(device, dtype).requires_grad_()
    w = (torch.randn(vocabulary, width, generator=generator) / width**0.5).to(device, dtype).requires_grad_()
    y = torch.randint(vocabulary, (rows, length), generator=generator).to(device)
    advantages = torch.randn(rows, generator=generator).to(device)
    mask = torch.ones(rows, length, device=device)
    with torch.no_grad():
        old = selective_log_softmax_fused(x, w, y) + 0.1 * torch.randn(rows, length, generator=generator).to(device)
    log_probs = {"fused": selective_log_softmax_fused, "eager": eager_log_probs, "trl": trl_log_probs()}
    found: dict[str, Any] = {"": (x, w)}
    for candidate, function in log_probs.items():
        if function is not None:
            loss = OURS[name] if candidate == "fused" else TRL[name]
            found[candidate] = lambda f=function, loss=loss: loss(f(x, w, y), old, advantages, mask)
    liger = liger_loss(name, device)
    if liger is not None:
        found["liger"] = lambda: liger(x, w, y, old, advantages, mask)
    return found


def measure(steps: dict[str, Step], returned: int, seconds: float, device: str) -> dict[str, Any]:
    memory = {name: peak_bytes(run, device) - returned for name, run in steps.items()}
    times = interleaved(steps, turns=5, seconds=seconds, most=200, device=device)
    return {"ms": {name: 1e3 * timing.median for name, timing in times.items()}, "extra_bytes": memory}


def measure_objectives(rows: int, length: int, seconds: float, device: str) -> dict[str, Any]:
    found = measure(objective_steps(rows, length, device), 4 * rows * length, seconds, device)
    found["ratios"] = {f"{name} / trl": found["ms"][name] / found["ms"][f"trl_{name}"] for name in OURS}
    return {"shape": (rows, length), **found}


def measure_listwise(lists: int, size: int, seconds: float, device: str) -> dict[str, Any]:
    found = measure(listwise_steps(lists, size, device), 4 * lists * size, seconds, device)
    found["ratios"] = {f"{name} / dense": found["ms"][name] / found["ms"]["dense"] for name in list(found["ms"])[1:]}
    return {"shape": (lists, size), **found}


def measure_head(name: str, sizes: tuple[int, int, int], seconds: float, device: str, dtype: torch.dtype) -> Any:
    losses = head_losses(name, *sizes, device, dtype)
    leaves = losses.pop("")
    steps = {candidate: lambda f=f: torch.autograd.grad(f(), leaves) for candidate, f in losses.items()}
    values = {candidate: float(f().detach()) for candidate, f in losses.items()}
    found = measure(steps, sum(leaf.nbytes for leaf in leaves), seconds, device)
    others = [candidate for candidate in steps if candidate != "fused"]
    found["ratios"] = {f"fused / {other}": found["ms"]["fused"] / found["ms"][other] for other in others}
    return {"shape": sizes, "dtype": str(dtype).removeprefix("torch."), "loss": values, **found}


def show(title: str, found: dict[str, Any]) -> None:
    lines = [[name, found["ms"][name], found["extra_bytes"][name] / 2**20] for name in found["ms"]]
    table(f"{title}, {found['shape']}: forward + backward (median)", ["candidate", "ms", "extra MiB"], lines)
    CONSOLE.print({name: round(ratio, 3) for name, ratio in found["ratios"].items()})


def main() -> None:
    def sizes(text: str) -> tuple[int, ...]:
        return tuple(map(int, text.split(",")))

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="per table")
    parser.add_argument("--shape", type=sizes, default=SHAPE)
    parser.add_argument("--groups", type=sizes, default=GROUPS)
    parser.add_argument("--head", type=sizes, help=f"N,d,V; {HEAD}")
    parser.add_argument("--losses", nargs="*", choices=list(OURS), default=["sapo", "grpo"], help="at the head")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="at the head; float32, bfloat16 on a GPU")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = options.device
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU and a torch that can use it")
    dtype = getattr(torch, options.dtype or ("float32" if device == "cpu" else "bfloat16"))
    sections = {"objective": measure_objectives(*options.shape, options.seconds, device)}
    show("objective", sections["objective"])
    sections["listwise"] = measure_listwise(*options.groups, options.seconds, device)
    show("listwise", sections["listwise"])
    for name in options.losses:
        key = f"head_{name}"
        sections[key] = measure_head(name, options.head or HEAD[device], options.seconds, device, dtype)
        show(f"head and {name}", sections[key])
    CONSOLE.print(f"load per core {load_per_core():.2f}")
    write_record(options.out / f"benchmark-policy{'' if device == 'cpu' else '-cuda'}.json", sections)


if __name__ == "__main__":
    main()
