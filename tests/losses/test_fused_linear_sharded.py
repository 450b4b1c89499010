"""Two processes that hold half of the classes each compute what one computes with all of them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from softgate.losses import FusedLinearLoss, fused_linear_loss

SPLIT = (0, 8, 13)
CASES: list[dict[str, Any]] = [
    {},
    {"reduction": "none", "softcap": 2.0, "z_penalty": 0.1},
    {"label_smoothing": 0.1, "class_weight": True},
    {"loss": "stablemax"},
    {"loss": "svm", "temperature": 0.7},
]


def inputs(case: dict[str, Any]) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(0)
    x, w, bias, weights = (torch.randn(shape, generator=generator, dtype=torch.float64)
                           for shape in ((7, 4), (13, 4), (13,), (13,)))  # fmt: skip
    y = torch.tensor([0, 7, 8, 12, -100, 3, 9])
    return x, w, bias, y, {**case, **({"class_weight": weights.exp()} if "class_weight" in case else {})}


def evaluate(case: dict[str, Any], part: slice, group: Any) -> list[torch.Tensor]:
    x, w, bias, y, options = inputs(case)
    x, w, bias = x.requires_grad_(), w[part].clone().requires_grad_(), bias[part].clone().requires_grad_()
    loss, accuracy = fused_linear_loss(
        x, w, y, bias=bias, return_accuracy=True, process_group=group, chunk=3, **options
    )
    (loss * torch.linspace(1.0, 2.0, loss.numel()).reshape(loss.shape)).sum().backward()
    return [loss.detach(), accuracy, x.grad, w.grad, bias.grad]


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    part = slice(SPLIT[rank], SPLIT[rank + 1])
    found = [evaluate(case, part, dist.group.WORLD) for case in CASES]
    head = DistributedDataParallel(Head())
    x, _, _, y, _ = inputs({})
    rows = slice(0, 3) if rank == 0 else slice(3, 6)
    head(x[rows].float(), y[rows].clamp(min=0)).backward()
    torch.save((found, head.module.head.weight.grad), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = FusedLinearLoss(4, 13)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.head(x, y)


@pytest.mark.skipif(not dist.is_available(), reason="torch has no distributed package")
def test_two_processes_are_one() -> None:
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(work, args=(folder,), nprocs=2, start_method="spawn")
        (first, gradient), (second, same) = (torch.load(Path(folder) / f"{rank}.pt") for rank in (0, 1))
    for case, a, b in zip(CASES, first, second, strict=True):
        whole = evaluate(case, slice(0, 13), None)
        for place, expected in enumerate(whole):
            if place < 3:  # loss, accuracy and the gradient of the shared input are the same in both
                torch.testing.assert_close(a[place], expected)
                torch.testing.assert_close(b[place], expected)
            else:
                torch.testing.assert_close(torch.cat((a[place], b[place])), expected)
    # data parallel: the mean of both halves
    alone = Head()
    x, _, _, y, _ = inputs({})
    alone(x[:6].float(), y[:6].clamp(min=0)).backward()
    torch.testing.assert_close(gradient, same)
    torch.testing.assert_close(gradient, alone.head.weight.grad)
