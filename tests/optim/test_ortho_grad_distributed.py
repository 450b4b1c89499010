"""OrthoGrad on two processes equals one: DDP averages gradients before the step, FSDP2 shards them."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from softgate.optim import OrthoGrad

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs the gloo backend")

CASES = [(strategy, scope) for strategy in ("ddp", "fsdp") for scope in ("tensor", "global")]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def network() -> nn.Module:
    torch.manual_seed(0)
    # 5 rows over two processes: the shards are of different sizes; 1 row: one process holds nothing
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1, bias=False), nn.Linear(1, 3))


def train(model: nn.Module, scope: str, rows: slice, steps: int = 4) -> list[torch.Tensor]:
    optimizer = OrthoGrad(model.parameters(), torch.optim.AdamW, lr=0.05, weight_decay=0.0, scope=scope)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x, y = torch.randn(8, 4, generator=generator), torch.randn(8, 3, generator=generator)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x[rows]), y[rows]).backward()
        optimizer.step()
    weights = [p.detach() for p in model.parameters()]
    return [w.full_tensor() if hasattr(w, "full_tensor") else w.clone() for w in weights]


def worker(rank: int, port: int, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        mesh = init_device_mesh("cpu", (2,))
        for strategy, scope in CASES:
            model = network()
            if strategy == "ddp":
                model = DistributedDataParallel(model)
            else:
                for layer in (model[0], model[2], model[3]):
                    fully_shard(layer, mesh=mesh)
                fully_shard(model, mesh=mesh)
            weights = train(model, scope, slice(4 * rank, 4 * rank + 4))
            torch.save(weights, Path(out) / f"{strategy}-{scope}-{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path) -> None:
    mp.spawn(worker, args=(free_port(), str(tmp_path)), nprocs=2)
    start = [p.detach() for p in network().parameters()]
    for strategy, scope in CASES:
        alone = train(network(), scope, slice(0, 8))
        name = f"{strategy}-{scope}"
        first, second = (torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True) for rank in range(2))
        for a, b, c, untrained in zip(first, second, alone, start, strict=True):
            assert torch.equal(a, b), name
            torch.testing.assert_close(a, c, rtol=2e-5, atol=2e-6)
            assert float((c - untrained).abs().max()) > 0.05
