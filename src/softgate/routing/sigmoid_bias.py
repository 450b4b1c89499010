"""Balancing without a loss: a bias per expert that decides who is chosen and follows the load."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from softgate._checks import check_number
from softgate.errors import bad_type
from softgate.routing._choice import check_count
from softgate.routing.gates import Gate, GateOutput
from softgate.routing.top_k import check_groups, topk_sigmoid

__all__ = ["SigmoidBias", "balance_after", "balanced_bias", "max_violation", "update_gates"]


def in_backward() -> bool:
    """Whether a backward pass is running: a forward inside it is an activation checkpoint computing again."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def loads(indices: Tensor, n_experts: int) -> Tensor:
    """(E,) int64: how often each expert was chosen; the sentinel E counts nowhere. No wait for an accelerator."""
    counts = torch.zeros(n_experts + 1, dtype=torch.int64, device=indices.device)
    flat = indices.reshape(-1)
    return counts.scatter_add(0, flat, torch.ones_like(flat))[:n_experts]


def max_violation(load: Tensor) -> Tensor:
    """How far the busiest expert is above the mean: ``max(load) / mean(load) - 1``; 0 for an equal load.

    Args:
        load: (…, E), how many tokens each expert got.

    Returns:
        (…) float64; 0 where nothing was routed.

    Example:
        >>> import torch
        >>> max_violation(torch.tensor([2, 1, 0, 1]))
        tensor(1., dtype=torch.float64)

    Paper: Auxiliary-Loss-Free Load Balancing, arXiv 2408.15664, eq. (4).
    """
    wide = load.double()
    mean = wide.mean(-1)
    return torch.where(mean > 0, wide.amax(-1) / mean.clamp_min(1e-300) - 1.0, 0.0)


def balanced_bias(bias: Tensor, load: Tensor, rate: float, *, centre: bool = True) -> Tensor:
    """The bias after one update: ``b + rate · sign(mean(load) - load)``, kept at its sum if ``centre``.

    Args:
        bias: (E,).
        load: (E,), how many tokens each expert got since the last update, over all ranks.
        rate: size of the update.
        centre: subtract the mean of the update, so that the sum of the biases never drifts.

    Returns:
        (E,).

    Example:
        >>> import torch
        >>> balanced_bias(torch.zeros(4), torch.tensor([5, 1, 1, 1]), 0.1)
        tensor([-0.1500,  0.0500,  0.0500,  0.0500])

    Paper: arXiv 2408.15664, algorithm 1; centring as in public training code.
    """
    wide = load.to(torch.float64)
    update = rate * (wide.mean() - wide).sign()
    if centre:
        update = update - update.mean()
    return bias + update.to(bias.dtype)


class SigmoidBias(Gate):
    """Sigmoid scores with a balancing bias and limited groups (DeepSeek-V3); see :func:`softgate.routing.topk_sigmoid`.

    The bias is a float32 buffer: no gradient, saved with the model. In training the gate counts its tokens;
    ``after_step`` (once per optimiser step, through :func:`balance_after` or :func:`update_gates`) sums the counts over
    the ranks, moves the bias and starts counting anew. Forward passes that a checkpoint repeats count once.

    Args:
        d_model: width of the hidden states.
        n_experts: number of experts E.
        k: experts per token.
        n_groups: into how many groups the experts are cut, None for no limit.
        topk_groups: how many groups a token may use.
        renorm: weights sum to ``scale``.
        scale: factor of the weights (2.5 in DeepSeek-V3).
        bias_update: size of one update; 0 freezes the bias.
        centre: keep the sum of the biases at 0.
        device: where the parameters live.
        dtype: of the router's weights.

    Example:
        >>> import torch
        >>> gate = SigmoidBias(4, 8, k=2)
        >>> _ = gate(torch.zeros(3, 4))
        >>> gate.after_step()
        >>> gate.bias[0] < 0 < gate.bias[7]
        tensor(True)

    Paper: DeepSeek-V3 Technical Report, arXiv 2412.19437, eq. (12)-(16).
    """

    bias: Tensor
    load: Tensor

    def __init__(
        self,
        d_model: int,
        n_experts: int,
        k: int = 2,
        *,
        n_groups: int | None = None,
        topk_groups: int | None = None,
        renorm: bool = True,
        scale: float = 1.0,
        bias_update: float = 1e-3,
        centre: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model, n_experts, device=device, dtype=dtype)
        self.k = check_count("k", k, high=n_experts, what=", n_experts")
        check_groups(n_experts, k, n_groups, topk_groups)
        for name, value in (("renorm", renorm), ("centre", centre)):
            if not isinstance(value, bool):
                bad_type(name, value, "a bool")
        self.n_groups, self.topk_groups, self.renorm, self.centre = n_groups, topk_groups, renorm, centre
        self.scale = check_number("scale", scale, low=0.0, low_open=True, high_open=True)
        self.bias_update = check_number("bias_update", bias_update, low=0.0, high_open=True)
        self.register_buffer("bias", torch.zeros(n_experts, device=device, dtype=torch.float32))
        self._counts_itself = True
        self.register_buffer("load", torch.zeros(n_experts, device=device, dtype=torch.int64), persistent=False)

    def choose(self, logits: Tensor) -> GateOutput:
        """The experts with the largest σ + bias, weighted by σ."""
        weights, indices = topk_sigmoid(
            logits,
            self.k,
            self.bias,
            n_groups=self.n_groups,
            topk_groups=self.topk_groups,
            renorm=self.renorm,
            scale=self.scale,
        )
        share = logits.sigmoid()
        return GateOutput(indices, weights, logits, share / (share.sum(-1, keepdim=True) + 1e-20))

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Follow the model to other devices and never to another dtype: 16 bits lose the small updates."""
        before = self.bias
        super()._apply(fn, recurse)
        if self.bias.dtype is not torch.float32:
            self.bias = before.to(self.bias.device) if not before.is_meta else self.bias.float()
        return self

    def layer_counts(self) -> None:
        """Leave counting to the layer, which knows of padding and dropped tokens."""
        self._counts_itself = False

    def count(self, indices: Tensor) -> None:
        """Add the assignments to the load; the layer calls it with what is left after masks and capacity."""
        if self.training and not in_backward():
            self.load += loads(indices.detach(), self.n_experts)

    def forward(self, x: Tensor) -> GateOutput:
        """Route hidden states ``x`` (T, D)."""
        found = super().forward(x)
        if self._counts_itself:
            self.count(found.indices)
        return found

    @torch.no_grad()
    def after_step(self, group: Any = None) -> None:
        """Move the bias by the load since the last call, summed over ``group`` (all ranks if None), and reset it."""
        load = self.load
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            load = load.clone()
            torch.distributed.all_reduce(load, group=group)
        self.bias.copy_(balanced_bias(self.bias, load, self.bias_update, centre=self.centre))
        self.load.zero_()

    def extra_repr(self) -> str:
        """Sizes and choices."""
        return (
            f"{super().extra_repr()}, k={self.k}, n_groups={self.n_groups}, topk_groups={self.topk_groups}, "
            f"scale={self.scale}, bias_update={self.bias_update}, centre={self.centre}"
        )


def update_gates(model: nn.Module, group: Any = None) -> int:
    """Tell every gate of ``model`` that an optimiser step is over: biases follow the load, temperatures fall.

    Args:
        model: any module that holds gates.
        group: process group whose loads are summed, all ranks if None. Every rank must call.

    Returns:
        How many gates were told.

    Example:
        >>> update_gates(SigmoidBias(4, 8))
        1
    """
    gates = [module for module in model.modules() if callable(getattr(module, "after_step", None))]
    gate: Any
    for gate in gates:
        gate.after_step(group)
    return len(gates)


def balance_after(optimizer: torch.optim.Optimizer, model: nn.Module, group: Any = None) -> Any:
    """Call :func:`update_gates` after every step of ``optimizer``: once per step, however many micro-batches it had.

    Args:
        optimizer: the optimizer that trains ``model``.
        model: holds the gates.
        group: as in :func:`update_gates`.

    Returns:
        A handle; ``handle.remove()`` ends it.

    Example:
        >>> gate = SigmoidBias(4, 8)
        >>> handle = balance_after(torch.optim.SGD(gate.parameters(), lr=0.1), gate)
    """

    def after(*_: Any) -> None:
        update_gates(model, group)

    return optimizer.register_step_post_hook(after)
