"""Experts spread over processes: tokens travel to their experts and back.

Every process of the mesh has tokens of its own. Rows are sorted by expert, exchanged so that each process gets the rows
of its experts, computed there, sent back and combined with the weights of the process they came from. A process
without tokens takes part in every exchange.

Gradients: with a loss that is the mean over the local tokens, ordinary gradients are averaged over all W = dp·ep
processes. An expert's gradient already holds the sum over its ep group, so it is divided by ep here and averaged over
dp only; :func:`average_gradients` does both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from softgate._math.masks import accumulation_dtype
from softgate.errors import ArgumentValueError, StateError, bad_type
from softgate.routing._experts import Experts
from softgate.routing.expert_ffn import plan as plans
from softgate.routing.layer import MoE
from softgate.routing.sigmoid_bias import loads

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["average_gradients", "parallelize"]


class _ExpertParallel:
    """The forward pass of experts of which this process holds a part."""

    def __init__(self, mesh: DeviceMesh) -> None:
        self.group = mesh.get_group()
        self.size = mesh.size()

    def __call__(self, experts: Experts, x: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        matrices = [_local(matrix, self.size) for matrix in experts.matrices()]
        count, width = indices.numel(), x.shape[-1]
        chosen = indices.shape[-1]
        plan = plans.by_expert(indices, experts.n_experts)
        send, receive, arrived = self._exchange_counts(loads(indices, experts.n_experts))
        going = sum(send)
        rows = _Spread.apply(x, plan.order[:going] // max(chosen, 1), plan.order, chosen)  # type: ignore[no-untyped-call]
        there = self._all_to_all(rows, receive, send)
        local = torch.arange(experts.n_experts // self.size, device=x.device).repeat(self.size)
        of_rows = torch.repeat_interleave(local, arrived, output_size=sum(receive))[:, None]
        ones = torch.ones(of_rows.shape, dtype=accumulation_dtype(x.dtype), device=x.device)
        back = self._all_to_all(experts.compute(there, of_rows, ones, matrices), send, receive)
        # rows without an expert have none that came back: they find the row of zeros at the end
        padded = torch.cat((back, back.new_zeros(1, width)))
        places = plans.inverse(plan.order).clamp_max(going)
        wide = accumulation_dtype(x.dtype)
        found = padded.index_select(0, places).view(count // max(chosen, 1), chosen, width).to(wide)
        return (found * weights.to(wide)[..., None]).sum(1).to(back.dtype)

    def _exchange_counts(self, load: Tensor) -> tuple[list[int], list[int], Tensor]:
        """Rows to send to and receive from each process (on the host), and those received per (process, expert)."""
        arrived = torch.empty_like(load)
        torch.distributed.all_to_all_single(arrived, load, group=self.group)
        both = torch.stack((load, arrived)).view(2, self.size, -1).sum(-1).tolist()  # the one wait for an accelerator
        return both[0], both[1], arrived

    def _all_to_all(self, rows: Tensor, receive: list[int], send: list[int]) -> Tensor:
        from torch.distributed._functional_collectives import all_to_all_single_autograd

        return _Arrived.apply(  # type: ignore[no-untyped-call]
            all_to_all_single_autograd(rows.contiguous(), receive, send, self.group)
        )


class _Arrived(torch.autograd.Function):
    """The plain tensor behind a collective's promise: for a tensor subclass no kernel runs."""

    @staticmethod
    def forward(ctx: Any, rows: Any) -> Tensor:
        return rows.wait() if hasattr(rows, "wait") else rows.view_as(rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class _Spread(torch.autograd.Function):
    """Rows for the assignments; the gradient sums each token's rows in the order of k, whatever device it is on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tokens: Tensor, order: Tensor, chosen: int) -> Tensor:
        ctx.save_for_backward(order)
        ctx.rows, ctx.chosen = x.shape[0], chosen
        return x.index_select(0, tokens)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (order,) = ctx.saved_tensors
        grad = grads[0]
        padded = torch.cat((grad, grad.new_zeros(1, grad.shape[-1])))
        places = plans.inverse(order).clamp_max(grad.shape[0])
        rows = padded.index_select(0, places).view(ctx.rows, ctx.chosen, grad.shape[-1])
        return rows.to(accumulation_dtype(grad.dtype)).sum(1).to(grad.dtype), None, None, None


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.factor, None


def _local(matrix: Any, size: int) -> Any:
    """This process's experts of a sharded parameter; their gradient is divided by the number of processes."""
    if matrix is None:
        return None
    if not hasattr(matrix, "to_local"):
        raise StateError("the experts' parameters are no longer DTensors: parallelize must be the last to change them")
    return _Scaled.apply(matrix.to_local(), 1.0 / size)  # type: ignore[no-untyped-call]


def parallelize(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Spread the experts of every :class:`~softgate.routing.MoE` in ``model`` over the mesh dimension ``"ep"``.

    Expert matrices become DTensors, Shard(0) over "ep"; gates and shared experts stay whole. All parameters and buffers
    of these layers are those of rank 0 afterwards. Checkpoints of torch.distributed.checkpoint load at any size of
    "ep". FSDP2 may shard the experts further over "dp".

    Args:
        model: an MoE layer or a module that holds some, on the mesh's device; changed in place. Create optimizers
            afterwards.
        mesh: from ``init_device_mesh(device, (dp, ep), mesh_dim_names=("dp", "ep"))``; other dimensions are allowed.

    Returns:
        ``model``.

    Raises:
        ArgumentTypeError: ``mesh`` is no DeviceMesh.
        ArgumentValueError: no dimension is called "ep", or its size does not divide a layer's number of experts.
        StateError: there is no MoE layer, or one is spread already.
    """
    from torch.distributed.device_mesh import DeviceMesh

    if not isinstance(mesh, DeviceMesh):
        bad_type("mesh", mesh, "a torch.distributed.device_mesh.DeviceMesh")
    if "ep" not in (mesh.mesh_dim_names or ()):
        raise ArgumentValueError(f"mesh must have a dimension called 'ep', got {mesh.mesh_dim_names}")
    layers = [module for module in model.modules() if isinstance(module, MoE)]
    if not layers:
        raise StateError(f"{type(model).__name__} holds no MoE layer")
    part = mesh["ep"]
    for layer in layers:
        if layer.n_experts % part.size():
            raise ArgumentValueError(f"mesh must have an 'ep' size that divides n_experts={layer.n_experts}, "
                                     f"got {part.size()}")  # fmt: skip
        if layer.experts.elsewhere is not None:
            raise StateError("the experts of this layer are spread already")
    for layer in layers:
        _spread_layer(layer, mesh, part)
    return model


def _spread_layer(layer: MoE, mesh: DeviceMesh, part: DeviceMesh) -> None:
    from torch.distributed.tensor import Shard, distribute_tensor

    first = int(mesh.mesh.flatten()[0])
    for tensor in [*layer.parameters(), *layer.buffers()]:
        _along(mesh, lambda group, t=tensor: _broadcast(t, first, group))  # type: ignore[misc]
    for name, parameter in list(layer.experts.named_parameters()):
        sharded = distribute_tensor(parameter.detach(), part, [Shard(0)], src_data_rank=None)
        layer.experts.register_parameter(name, nn.Parameter(sharded, requires_grad=parameter.requires_grad))
    layer.experts.elsewhere = _ExpertParallel(part)


def _along(mesh: DeviceMesh, action: Callable[[Any], None]) -> None:
    """Do ``action`` in this process's group of every dimension, one after the other."""
    for place in range(mesh.ndim):
        action(mesh.get_group(place))


def _broadcast(tensor: Tensor, first: int, group: Any) -> None:
    """From the lowest rank of the group, which after all dimensions is rank ``first``."""
    ranks = torch.distributed.get_process_group_ranks(group)
    torch.distributed.broadcast(tensor.detach(), first if first in ranks else min(ranks), group=group)


@torch.no_grad()
def average_gradients(model: nn.Module, mesh: DeviceMesh) -> None:
    """Average gradients after backward: an expert's over its copies, everything else over all processes of the mesh.

    For training without FSDP or DDP. Parameters without a gradient here count as 0: every process must call this, with
    the same model.

    Args:
        model: contains layers given to :func:`parallelize`.
        mesh: the same mesh.

    Raises:
        ArgumentValueError: no dimension is called "ep".
    """
    names = mesh.mesh_dim_names or ()
    if "ep" not in names:
        raise ArgumentValueError(f"mesh must have a dimension called 'ep', got {mesh.mesh_dim_names}")
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        sharded = hasattr(parameter.grad, "to_local")
        grad = parameter.grad.to_local() if sharded else parameter.grad  # type: ignore[attr-defined]
        for place, name in enumerate(names):
            if not (sharded and name == "ep"):
                torch.distributed.all_reduce(grad, group=mesh.get_group(place))
                grad /= mesh.size(place)
