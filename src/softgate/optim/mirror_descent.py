"""Optimistic mirror descent as an optimizer of parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from softgate._checks import check_number
from softgate._math.compress import compute_dtype
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type, check_choice

__all__ = ["OptimisticMirrorDescent"]

MIRRORS = ("euclidean", "entropy")


class OptimisticMirrorDescent(Optimizer):
    r"""Gradient descent that takes the coming gradient for the last one; for games, adversarial and drifting losses.

    The parameters are the point ``x_t`` that is played. ``"euclidean"`` groups move, without bounds, by

    .. math:: x_{t+1} = x_t - \eta_t g_t - \eta_{t+1} g_t + \eta_t g_{t-1},

    with constant step ``-2ηg_t + ηg_{t-1}``; one more vector of memory. Where simultaneous gradient descent circles
    around the equilibrium of a game ever further out, this one comes in. ``"entropy"`` groups hold probability
    vectors along their last axis and move by optimistic Hedge; their logits are kept beside them.

    A step size is used twice: to look ahead to ``x_t``, and for the centre when its gradient has come. A scheduler's
    new value therefore counts from the next point on.

    Args:
        params: parameters, named parameters or groups.
        lr: constant (or scheduled) step size, or ``"sea"`` for ``diameter / √(δ + 4G² + Σ_{s<t} ‖g_s - g_{s-1}‖²)``
            over all parameters of the group; for ``"entropy"`` ``1/√(δ + Σ ‖g_s - g_{s-1}‖²_∞)``.
        mirror: ``"euclidean"`` or ``"entropy"``.
        delta: δ > 0 of ``"sea"``.
        diameter: how far the optimum may be from the start, for ``"sea"``.
        G: bound on the gradient's norm, for ``"sea"``; None takes the largest norm so far.
        maximize: ascend instead (the other player of a game).

    Raises:
        ArgumentTypeError: an option has the wrong type, or a gradient is sparse.
        ArgumentValueError: ``params`` is empty, an option is not allowed, or a parameter of an ``"entropy"`` group does
            not hold probability vectors.

    Example:
        >>> x, y = (torch.ones(1, requires_grad=True) for _ in range(2))  # min over x, max over y of x y
        >>> players = OptimisticMirrorDescent([{"params": [x]}, {"params": [y], "maximize": True}], lr=0.3)
        >>> for _ in range(300):
        ...     players.zero_grad()
        ...     (x * y).sum().backward()
        ...     players.step()
        >>> x.abs().item() + y.abs().item() < 1e-3
        True

    Paper: Chen, Zhang, Tu, Zhao and Zhang, Optimistic Online Mirror Descent for Bridging Stochastic and Adversarial
    Online Convex Optimization, arXiv 2302.04552.
    """

    def __init__(
        self,
        params: Any,
        lr: float | str = "sea",
        mirror: str = "euclidean",
        delta: float = 1.0,
        *,
        diameter: float = 1.0,
        G: float | None = None,
        maximize: bool = False,
    ) -> None:
        if not isinstance(params, Iterable) or isinstance(params, Tensor):
            bad_type("params", params, "an iterable of parameters, named parameters or groups")
        params = list(params)
        if not params:
            raise ArgumentValueError("params must hold at least one parameter, got none")
        options = {"lr": lr, "mirror": mirror, "delta": delta, "diameter": diameter, "G": G, "maximize": maximize}
        super().__init__(params, options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with options of their own."""
        _check_options({**self.defaults, **param_group})
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if group["mirror"] == "entropy":
            for p in group["params"]:
                _check_distribution(p)
        # What steps remember of the whole group; groups, unlike states of parameters, keep their dtype when loaded.
        group.setdefault("eta", None)
        group.setdefault("variation", None)
        group.setdefault("largest", None)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Move the parameters with gradients.

        Args:
            closure: computes the loss and the gradients again.

        Returns:
            What ``closure`` returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            ready = [p for p in group["params"] if p.grad is not None]
            for p in ready:
                if p.grad.layout is not torch.strided:
                    raise ArgumentTypeError(f"params must have dense gradients, got layout {p.grad.layout} for a "
                                            f"parameter of shape {tuple(p.shape)}")  # fmt: skip
            if ready:
                self._step_group(group, ready)
        return loss

    def _step_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        grads = [p.grad for p in params if p.grad is not None]
        if group["maximize"]:
            grads = list(torch._foreach_neg(grads))
        hints = [self.state[p].get("hint") for p in params]
        if group["lr"] == "sea":
            before, after = _adaptive_steps(group, grads, hints)
        else:
            before = group["lr"] if group["eta"] is None else group["eta"]
            after = group["eta"] = group["lr"]
        # on the CPU one parameter at a time, while it is in the cache
        for part in [[i] for i in range(len(params))] if params[0].is_cpu else [list(range(len(params)))]:
            chosen = [params[i] for i in part], [grads[i] for i in part], [hints[i] for i in part]
            if group["mirror"] == "euclidean":
                _move(*chosen, before, after, group["lr"] == "sea")
            else:
                for p, g in zip(*chosen[:2], strict=True):
                    _move_distribution(p, g, self.state[p], before, after)
            if group["mirror"] == "euclidean" or group["lr"] == "sea":
                self._remember(*chosen)

    def _remember(self, params: list[Tensor], grads: list[Tensor], hints: list[Any]) -> None:
        """Keep the gradients as the next hints."""
        known = [i for i, hint in enumerate(hints) if hint is not None]
        if known:
            torch._foreach_copy_([hints[i] for i in known], [grads[i] for i in known])
        for p, g, hint in zip(params, grads, hints, strict=True):
            if hint is None:
                self.state[p]["hint"] = g.clone()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` gave; logits of 16-bit parameters keep their float32."""
        super().load_state_dict(state_dict)
        saved = state_dict["state"]
        for group, own in zip(state_dict["param_groups"], self.param_groups, strict=True):
            for key, p in zip(group["params"], own["params"], strict=True):
                if "logits" in saved.get(key, {}):
                    self.state[p]["logits"] = saved[key]["logits"].to(p.device, copy=True)


def _check_options(options: dict[str, Any]) -> None:
    lr = options["lr"]
    if isinstance(lr, str):
        check_choice("lr", lr, ("sea",))
    elif isinstance(lr, Tensor):
        bad_type("lr", lr, "a real number or 'sea'")
    else:
        check_number("lr", lr, low=0.0, high_open=True)
    check_choice("mirror", options["mirror"], MIRRORS)
    for name in ("delta", "diameter", "G"):
        if options[name] is not None or name != "G":
            check_number(name, options[name], low=0.0, low_open=True, high_open=True)
    if not isinstance(options["maximize"], bool):
        bad_type("maximize", options["maximize"], "a bool")


def _check_distribution(p: Tensor) -> None:
    if p.is_complex() or p.ndim == 0 or p.numel() == 0:
        raise ArgumentValueError(f"params must hold real probability vectors for mirror 'entropy', got {p.dtype} "
                                 f"{tuple(p.shape)}")  # fmt: skip
    with torch.no_grad():
        wide = p.to(compute_dtype(p.dtype))
        off = float((wide.sum(-1) - 1.0).abs().max())
        if not bool((wide >= 0).all()) or not off <= 8.0 * p.shape[-1] ** 0.5 * torch.finfo(p.dtype).eps:
            raise ArgumentValueError("params must hold probability vectors along their last axis for mirror 'entropy', "
                                     f"got sums that are up to {off:.2g} from 1 or an entry below 0")  # fmt: skip


def _adaptive_steps(group: dict[str, Any], grads: list[Tensor], hints: list[Any]) -> tuple[Any, Any]:
    """Step size that led to the present point, and the one that leads to the next; hints m become ``m - g``."""
    size, least = (_largest, 1.0) if group["mirror"] == "entropy" else (_length, group["diameter"])
    if group["variation"] is None:
        zero = torch.zeros((), dtype=torch.float64, device=grads[0].device)
        group.update(variation=zero, largest=zero + (group["G"] or 0.0))
    variation, largest = (group[name].to(grads[0].device) for name in ("variation", "largest"))
    if group["mirror"] == "euclidean" and group["G"] is None:
        largest = torch.maximum(largest, size(grads))
    fixed = group["delta"] + (4.0 * largest.square() if group["mirror"] == "euclidean" else 0.0)
    before = least / (fixed + variation).sqrt() if group["eta"] is None else group["eta"]
    known = [i for i, hint in enumerate(hints) if hint is not None]
    if known:
        torch._foreach_sub_([hints[i] for i in known], [grads[i] for i in known])
    missed = [g if hint is None else hint for g, hint in zip(grads, hints, strict=True)]
    variation = variation + size(missed).square()
    after = least / (fixed + variation).sqrt()
    group.update(eta=after, variation=variation, largest=largest)
    # numbers on the CPU; on an accelerator tensors, which nobody waits for
    return (float(before), float(after)) if after.is_cpu else (before.to(after.device), after)


def _length(tensors: list[Tensor]) -> Tensor:
    norms = torch._foreach_norm([t.to(compute_dtype(t.dtype)) for t in tensors])
    return torch.linalg.vector_norm(torch.stack([n.double() for n in norms]))


def _largest(tensors: list[Tensor]) -> Tensor:
    return torch.stack([t.abs().max().double() for t in tensors]).max()


def _move(
    params: list[Tensor], grads: list[Tensor], hints: list[Any], before: Any, after: Any, subtracted: bool
) -> None:
    """``p ← p + before · (m - g) - after · g``, rounded once where the type is narrow; ``subtracted``: m is m - g."""
    narrow = any(p.dtype != compute_dtype(p.dtype) for p in params)
    if narrow or isinstance(before, Tensor):
        for p, g, m in zip(params, grads, hints, strict=True):
            wide = compute_dtype(p.dtype)
            weight = after if subtracted and m is not None else before + after
            moved = p.to(wide) - weight * g.to(wide)
            p.copy_(moved if m is None else moved + before * m.to(wide))
        return
    known = [i for i, hint in enumerate(hints) if hint is not None]
    new = [i for i, hint in enumerate(hints) if hint is None]
    for some, weight in ((known, after if subtracted else before + after), (new, before + after)):
        if some:
            torch._foreach_add_([params[i] for i in some], [grads[i] for i in some], alpha=-weight)
    if known:
        torch._foreach_add_([params[i] for i in known], [hints[i] for i in known], alpha=before)


def _move_distribution(p: Tensor, g: Tensor, state: dict[str, Any], before: Any, after: Any) -> None:
    """Optimistic Hedge on logits; 0 stays 0."""
    wide = compute_dtype(p.dtype)
    logits, g = state.get("logits"), g.to(wide)
    if logits is None:
        logits = p.to(wide).log()
    logits = logits - before * g
    state["logits"] = logits - logits.amax(-1, keepdim=True)
    p.copy_(torch.softmax(state["logits"] - after * g, -1))
