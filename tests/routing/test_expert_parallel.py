"""Experts spread over processes give what one process gives: outputs, gradients, biases, checkpoints."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

from softgate import explain
from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError
from softgate.routing import MoE, SigmoidBias, average_gradients, moe_ffn, parallelize, update_gates

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs the gloo backend")

EXPERTS, WIDTH, TOKENS, STEPS = 8, 6, 24, 3
#: Tokens of each rank: uneven, and none at all.
SHARES = {2: [24, 0], 4: [10, 0, 13, 1]}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def build() -> MoE:
    torch.manual_seed(3)
    gate = SigmoidBias(WIDTH, EXPERTS, 2, bias_update=0.05)
    layer = MoE(WIDTH, 5, EXPERTS, gate=gate, n_shared=1, bias=True, aux=None).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.6)
    return layer


def batch(step: int) -> torch.Tensor:
    return torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def train(layer: nn.Module, rows: slice, world: int, finish, group=None) -> list[torch.Tensor]:
    """Outputs and input gradients; the loss is the mean over all tokens, as a mean over ranks of local losses."""
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.3)
    seen = []
    for step in range(STEPS):
        x = batch(step)[rows].requires_grad_()
        y = layer(x)
        optimizer.zero_grad()
        (world * y.square().sum() / TOKENS).backward()
        finish()
        optimizer.step()
        update_gates(layer, group)
        seen += [y.detach(), x.grad / world]
    return seen


def whole(layer: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.full_tensor() if hasattr(v, "full_tensor") else v.clone() for k, v in layer.state_dict().items()}


#: (ranks, of which so many along dp, who averages gradients), in processes that are started once.
CASES = [(2, 1, "plain"), (2, 2, "plain"), (4, 1, "plain"), (4, 2, "plain"), (4, 2, "fsdp")]
NAMES = ("dp", "ep")


def worker(rank: int, port: int, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=4)
    try:
        for world, dp, kind in CASES:
            mesh = DeviceMesh("cpu", torch.arange(world).view(dp, -1), mesh_dim_names=NAMES)
            group = dist.new_group(list(range(world)))
            if rank < world:
                one_case(rank, world, mesh, kind, group, Path(out) / f"{world}-{dp}-{kind}")
        layer = build()  # saved at ep = 4, loaded at ep = 2
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.zero_()
        parallelize(layer, init_device_mesh("cpu", (2, 2), mesh_dim_names=NAMES))
        state = layer.state_dict()
        dcp.load(state, checkpoint_id=f"{out}/checkpoint")
        layer.load_state_dict(state)
        torch.save(whole(layer), Path(out) / f"loaded-{rank}.pt")
    finally:
        dist.destroy_process_group()


def one_case(rank: int, world: int, mesh: DeviceMesh, kind: str, group, out: Path) -> None:
    layer = build()
    if rank:
        with torch.no_grad():
            layer.gate.weight.add_(1.0)  # rank 0 counts
    parallelize(layer, mesh)
    if kind == "fsdp":  # experts over dp; gate and shared experts are averaged by hand
        fully_shard(layer.experts, mesh=mesh["dp"])
    first = sum(SHARES[world][:rank])
    rows = slice(first, first + SHARES[world][rank])
    seen = train(layer, rows, world, lambda: finish(layer, mesh, kind), group)
    out.mkdir(exist_ok=True)
    torch.save((seen, whole(layer)), out / f"{rank}.pt")
    if (world, mesh["ep"].size()) == (4, 4):
        dcp.save(layer.state_dict(), checkpoint_id=out.parent / "checkpoint")


def finish(layer: nn.Module, mesh: DeviceMesh, kind: str) -> None:
    if kind == "plain":
        average_gradients(layer, mesh)
    else:  # FSDP has averaged the experts' gradients over dp
        average_gradients(nn.ModuleList([layer.gate, layer.shared]), mesh)


@pytest.mark.slow
def test_many_processes_equal_one(tmp_path) -> None:
    mp.spawn(worker, args=(free_port(), str(tmp_path)), nprocs=4)
    alone = build()
    expected = train(alone, slice(0, TOKENS), 1, lambda: None)
    start, end = build().state_dict(), alone.state_dict()
    for world, dp, kind in CASES:
        for rank in range(world):
            seen, state = torch.load(tmp_path / f"{world}-{dp}-{kind}" / f"{rank}.pt", weights_only=True)
            first = sum(SHARES[world][:rank])
            for found, every in zip(seen, expected, strict=True):
                torch.testing.assert_close(found, every[first : first + SHARES[world][rank]], rtol=1e-8, atol=1e-10)
            for name, value in end.items():
                torch.testing.assert_close(state[name], value, rtol=1e-8, atol=1e-10)
                assert float((value - start[name]).abs().max()) > 1e-3, f"{name} did not move"
    for rank in range(4):
        state = torch.load(tmp_path / f"loaded-{rank}.pt", weights_only=True)
        for name, value in end.items():
            torch.testing.assert_close(state[name], value, rtol=1e-8, atol=1e-10)
    fresh = {name: torch.zeros_like(value) for name, value in end.items()}
    with pytest.warns(UserWarning):  # torch says that this process is alone
        dcp.load(fresh, checkpoint_id=tmp_path / "checkpoint")
    for name, value in end.items():
        torch.testing.assert_close(fresh[name], value, rtol=1e-8, atol=1e-10)


@pytest.fixture
def alone(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_one_process_is_the_layer_itself(alone) -> None:
    mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=NAMES)
    spread = parallelize(build(), mesh)
    found = train(spread, slice(0, TOKENS), 1, lambda: average_gradients(spread, mesh))
    for a, b in zip(found, train(build(), slice(0, TOKENS), 1, lambda: None), strict=True):
        torch.testing.assert_close(a, b)


def test_kernels_run_on_what_arrived(alone, monkeypatch) -> None:
    """A collective's result is a tensor subclass, for which dispatch would take the slow reference."""
    layer = parallelize(build(), init_device_mesh("cpu", (1, 1), mesh_dim_names=NAMES))
    chosen = []
    compute = layer.experts.compute

    def spy(x, indices, weights, matrices):
        gate_up, down, *biases = matrices
        chosen.append(explain(moe_ffn, x, gate_up, down, indices, weights, *biases).chosen)
        return compute(x, indices, weights, matrices)

    monkeypatch.setattr(layer.experts, "compute", spy)
    layer(batch(0)).sum().backward()
    assert chosen == ["sorted"]


def test_bad_meshes_and_models(alone) -> None:
    mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("dp", "ep"))
    with pytest.raises(ArgumentTypeError, match="mesh"):
        parallelize(build(), "cpu")
    with pytest.raises(ArgumentValueError, match="'ep'"):
        parallelize(build(), init_device_mesh("cpu", (1,), mesh_dim_names=("dp",)))
    with pytest.raises(StateError, match="no MoE"):
        parallelize(nn.Linear(2, 2), mesh)
    layer = parallelize(build(), mesh)
    with pytest.raises(StateError, match="already"):
        parallelize(layer, mesh)
    layer.experts.down_proj = nn.Parameter(layer.experts.down_proj.to_local())
    with pytest.raises(StateError, match="no longer DTensors"):
        layer(batch(0))
