"""Several processes train one model: the same loop under ``torchrun`` and ``accelerate launch``.

Every process builds the same model and the same global batch, and computes on its slice of it. The gradient is the
mean over the global batch, also when the slices are uneven, so one process and many give the same training.
"""

from __future__ import annotations

import atexit
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError

STRATEGIES = ("ddp", "fsdp")
#: A peer that has been silent for so long is taken for dead; a peer whose process ended is noticed at once.
TIMEOUT = timedelta(seconds=float(os.environ.get("SOFTGATE_DISTRIBUTED_TIMEOUT", "600")))


@dataclass
class World:
    """This process among its peers.

    Attributes:
        rank: 0 … size - 1; rank 0 logs and writes checkpoints.
        size: number of processes; 1 without a launcher.
        device: where this process computes.
    """

    rank: int
    size: int
    device: torch.device

    def __post_init__(self) -> None:
        # Decisions (stop, checkpoint) travel over gloo on the CPU: reading them never waits for the accelerator.
        self._control = dist.new_group(backend="gloo", timeout=TIMEOUT) if self.size > 1 else None

    @property
    def is_main(self) -> bool:
        """Whether this process logs and writes."""
        return self.rank == 0

    def agree(self, flags: Tensor) -> Tensor:
        """Element-wise maximum of ``flags`` (a CPU tensor) over all processes."""
        if self.size > 1:
            with _peers():
                dist.all_reduce(flags, dist.ReduceOp.MAX, group=self._control)
        return flags

    def gather(self, tensor: Tensor) -> Tensor:
        """``tensor`` of every process, stacked in rank order (on the CPU)."""
        local = tensor.detach().cpu().contiguous()
        if self.size == 1:
            return local[None]
        stacked = [torch.empty_like(local) for _ in range(self.size)]
        with _peers():
            dist.all_gather(stacked, local, group=self._control)
        return torch.stack(stacked)

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """``data`` of every process, in rank order."""
        lengths = self.gather(torch.tensor([len(data)]))[:, 0].tolist()
        padded = torch.zeros(max(lengths), dtype=torch.uint8)
        padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        rows = self.gather(padded)
        return [row[:length].numpy().tobytes() for row, length in zip(rows, lengths, strict=True)]

    def from_main(self, text: str) -> str:
        """``text`` of rank 0."""
        return self.gather_bytes(text.encode() + b"\n")[0].decode()[:-1]


@contextmanager
def _peers() -> Iterator[None]:
    """Say what a broken connection means; the processes that are left must end too, and be started anew together."""
    try:
        yield
    except RuntimeError as error:
        raise StateError(
            f"another process of this training ended or hangs; resume from the checkpoint ({error})"
        ) from error


def launched() -> bool:
    """Whether a launcher (``torchrun``, ``accelerate launch``) started several processes."""
    return dist.is_available() and (dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) > 1)


def join(device: str = "cpu") -> World:
    """Join the process group that the launcher announced; without a launcher, a world of one."""
    if not launched():
        return World(0, 1, torch.device(device))
    kind = torch.device(device).type
    if kind == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        torch.cuda.set_device(local)
        device = f"cuda:{local}"
    if not dist.is_initialized():
        dist.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=TIMEOUT)
        atexit.register(_leave)
    return World(dist.get_rank(), dist.get_world_size(), torch.device(device))


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


class _Step(nn.Module):
    """The step function as a module: all that it does with the model happens inside the wrapper's forward."""

    def __init__(self, model: nn.Module, step_loss: Callable[[nn.Module, Any], Any]) -> None:
        super().__init__()
        self.model = model
        self.step_loss = step_loss

    def forward(self, batch: Any) -> Any:
        return self.step_loss(self.model, batch)


def distribute(
    model: nn.Module, step_loss: Callable[[nn.Module, Any], Any], strategy: str, world: World
) -> tuple[Callable[[Any], Any], Callable[[bool], AbstractContextManager[None]]]:
    """Make ``step_loss`` compute gradients that are averaged over all processes.

    ``ddp`` wraps, ``fsdp`` shards the parameters of ``model`` in place: one group for each element of its
    ``nn.ModuleList`` s and one for the rest. Parameters and buffers of rank 0 count.

    Returns:
        The function of a batch, and the context in which it and its backward run; the latter takes whether this is
        the step's last micro-batch, before which gradients need not travel.
    """
    if world.size == 1:
        return lambda batch: step_loss(model, batch), lambda last: nullcontext()
    step = _Step(model, step_loss)
    if strategy == "ddp":
        ids = [world.device.index] if world.device.type == "cuda" else None
        wrapped = nn.parallel.DistributedDataParallel(step, device_ids=ids)
        return wrapped, lambda last: nullcontext() if last else wrapped.no_sync()
    for tensor in [*model.parameters(), *model.buffers()]:
        dist.broadcast(tensor.detach(), 0)
    _shard(model, world)

    @contextmanager
    def context(last: bool) -> Iterator[None]:
        model.set_requires_gradient_sync(last)  # type: ignore[operator]  # fully_shard adds this method
        yield

    return step, context


def _shard(model: nn.Module, world: World) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    if isinstance(model, FSDPModule):  # an earlier fit has sharded it
        return
    mesh = init_device_mesh(world.device.type, (world.size,))
    for module in list(model.modules()):
        for block in module if isinstance(module, nn.ModuleList) else ():
            if not isinstance(block, nn.ModuleList | nn.ModuleDict):  # containers are never called
                fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def full(value: Any) -> Any:
    """``value`` with every sharded tensor gathered; all processes must call it on the same structure."""
    if isinstance(value, Tensor):
        return value.full_tensor() if hasattr(value, "full_tensor") else value
    if isinstance(value, Mapping):
        return {key: full(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(full(item) for item in value)
    return value


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """``tensor`` sharded as ``parameter`` is; unchanged where that is not sharded or has another shape."""
    if not hasattr(parameter, "full_tensor") or tensor.shape != parameter.shape:
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(parameter, DTensor):
        raise StateError(f"cannot shard a tensor like a {type(parameter).__name__}")
    return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements)


def like_optimizer(saved: Mapping[str, Any], optimizer: Any) -> dict[str, Any]:
    """A full optimizer state with each tensor sharded as the parameter it belongs to."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if not any(hasattr(p, "full_tensor") for p in parameters):
        return dict(saved)
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    owners = dict(zip(numbers, parameters, strict=True))
    state = {
        number: map_tensors(entries, functools.partial(like, parameter=owners[number]))
        for number, entries in saved["state"].items()
    }
    return {**saved, "state": state}


def shares(batch: Any, parts: int, weight: Callable[[Any], float] | None = None) -> list[tuple[Any, float]]:
    """Cut ``batch`` into ``parts`` slices of rows and give each its share of the weight (of the rows by default).

    Tensors in tuples, lists and dicts are cut along their first dimension; everything else is passed on. A batch with
    fewer rows than parts leaves some slices without rows: they get its first row, with share 0, so that every process
    takes part in every exchange.
    """
    rows = _rows(batch)
    size = -(-rows // parts)
    slices, weights = [], []
    for index in range(parts):
        low, high = min(index * size, rows), min((index + 1) * size, rows)
        slices.append(_cut(batch, low, high) if high > low else _cut(batch, 0, 1))
        weights.append(0.0 if high == low else float(weight(slices[-1])) if weight else float(high - low))
    total = sum(weights)
    if not total > 0.0:
        raise ArgumentValueError(f"batch_weight must give the batch a positive weight, got {total}")
    return [(piece, part / total) for piece, part in zip(slices, weights, strict=True)]


def _rows(batch: Any) -> int:
    sizes = {tensor.shape[0] for tensor in tensors_in(batch) if tensor.ndim}
    if len(sizes) != 1 or 0 in sizes:
        found = ", ".join(map(str, sorted(sizes))) or "no tensor"
        raise ArgumentTypeError(f"batch must hold tensors with one number (> 0) of rows to be cut, got {found}")
    return sizes.pop()


def _cut(batch: Any, low: int, high: int) -> Any:
    return map_tensors(batch, lambda tensor: tensor[low:high] if tensor.ndim else tensor)


def tensors_in(batch: Any) -> Iterator[Tensor]:
    """All tensors in a batch of nested tuples, lists and dicts."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for item in batch.values():
            yield from tensors_in(item)
    elif isinstance(batch, list | tuple):
        for item in batch:
            yield from tensors_in(item)


def map_tensors(batch: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """``batch`` with ``function`` applied to its tensors; namedtuples stay namedtuples."""
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        return {key: map_tensors(item, function) for key, item in batch.items()}
    if isinstance(batch, list | tuple):
        items = [map_tensors(item, function) for item in batch]
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
    return batch
