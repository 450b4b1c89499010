"""Who computes a fused linear loss: the reference, or the chunked loops with the sweeps of one backend."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor

from softgate import _triton, native
from softgate.losses.fused_linear import gram
from softgate.losses.fused_linear.autograd import Build, fused_loss
from softgate.losses.fused_linear.chunks import Problem
from softgate.losses.fused_linear.native_passes import NativePasses
from softgate.losses.fused_linear.passes import Passes, TorchPasses
from softgate.losses.fused_linear.prepare import Prepared, prepare
from softgate.losses.fused_linear.reference import dense
from softgate.losses.fused_linear.settings import Settings
from softgate.losses.fused_linear.shards import Shard

__all__: list[str] = []

_OPTIONS = tuple(field.name for field in fields(Settings))


@dataclass(frozen=True)
class Call:
    """A call that has been checked, in the form that all backends work on."""

    weight: Tensor
    bias: Tensor | None
    class_weight: Tensor | None
    rows: Prepared
    settings: Settings
    group: Any
    shape: torch.Size
    extras: tuple[bool, bool]

    @classmethod
    def of(cls, input: Tensor, weight: Tensor, target: Tensor, **options: Any) -> Call:
        """From the arguments of the public function."""
        settings = Settings(**{name: options[name] for name in _OPTIONS if name in options})
        return cls(
            weight,
            options.get("bias"),
            options.get("class_weight"),
            prepare(input, target, settings),
            settings,
            options.get("process_group"),
            target.shape,
            (options.get("return_lse", False), options.get("return_accuracy", False)),
        )

    def results(self, value: Tensor, lse: Tensor | None = None, hit: Tensor | None = None) -> Any:
        """What the caller gets: the loss, and what else was asked for."""
        found = [value.reshape(self.shape) if value.ndim else value]
        if self.extras[0] and lse is not None:
            found.append(lse.detach().reshape(self.shape))
        if self.extras[1] and hit is not None:
            found.append(hit.sum() / self.rows.keep.sum().clamp(min=1))
        return found[0] if len(found) == 1 else tuple(found)

    def reduce(self, rows: Tensor) -> Tensor:
        """The reduction of row losses, 0 where no row counts."""
        if self.settings.reduction == "none":
            return rows
        if self.settings.reduction == "sum":
            return rows.sum()
        keep = self.rows.keep
        counted = keep.to(rows.dtype)
        if self.class_weight is not None:
            counted = torch.where(keep, self.class_weight.to(rows.dtype)[torch.where(keep, self.rows.labels, 0)], 0.0)
        total = counted.sum()
        return rows.sum() / torch.where(total == 0.0, 1.0, total)


def reference(input: Tensor, weight: Tensor, target: Tensor, **options: Any) -> Any:
    """All logits at once."""
    call = Call.of(input, weight, target, **options)
    rows = call.rows
    found, lse, hit = dense(rows.x, weight, rows.labels, rows.keep, call.bias, call.class_weight, call.settings)
    return call.results(call.reduce(found), lse, hit)


def run_gram(input: Tensor, weight: Tensor, target: Tensor, **options: Any) -> Any:
    """The Z-loss, from sums of logits that are never computed."""
    call = Call.of(input, weight, target, **options)
    rows = call.rows
    found = gram.z_loss_rows(rows.x, weight, rows.labels, rows.keep, call.bias, call.class_weight, call.settings)
    return call.results(call.reduce(found))


def problem_of(call: Call, passes: Passes) -> Build:
    """The problem as a function of the differentiable tensors."""
    keep, labels = call.rows.keep, call.rows.labels
    everything = bool(keep.all())
    rows = None if everything else keep.nonzero().squeeze(1)
    labels = labels if everything else labels[keep]
    shard = Shard.of(call.weight, call.group)

    def build(x: Tensor, weight: Tensor, bias: Tensor | None) -> Problem:
        return Problem(x, weight, bias, rows, labels, call.class_weight, call.settings, passes, shard)

    return build


def _run(passes: Callable[[], Passes], input: Tensor, weight: Tensor, target: Tensor, **options: Any) -> Any:
    call = Call.of(input, weight, target, **options)
    rows = call.rows

    def whole(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        found = dense(x, weight, rows.labels, rows.keep, bias, call.class_weight, call.settings)[0]
        return call.reduce(found)

    value, lse, hit = fused_loss(rows.x, weight, call.bias, problem_of(call, passes()), whole)
    return call.results(value, lse, hit)


def _triton_passes() -> Passes:
    passes: Passes = importlib.import_module("softgate._triton.fused_linear").TritonPasses()
    return passes


PASSES: dict[str, Callable[[], Passes]] = {"eager": TorchPasses, "cpu": NativePasses, "triton": _triton_passes}
run_eager, run_native, run_triton = (partial(_run, PASSES[name]) for name in ("eager", "cpu", "triton"))


def eager_refuses(input: Tensor, weight: Tensor, target: Tensor, **options: Any) -> str | None:
    """Why torch operations on chunks cannot run this call, None if they can."""
    return _not_asked_for("eager", options)


def native_refuses(input: Tensor, weight: Tensor, target: Tensor, **options: Any) -> str | None:
    """Why the compiled sweeps cannot run this call, None if they can."""
    settings = Settings(**{name: options[name] for name in _OPTIONS if name in options})
    if not native.available():
        return native.unavailable_reason()
    if not input.is_cpu:
        return f"they are written for the CPU, input is on {input.device}"
    wide = settings.wide(torch.promote_types(input.dtype, weight.dtype))
    if wide != torch.float32:
        return f"they work in float32, these operands in {wide}"
    return _not_asked_for("cpu", options)


def triton_refuses(input: Tensor, weight: Tensor, target: Tensor, **options: Any) -> str | None:
    """Why the Triton kernels cannot run this call, None if they can."""
    if options.get("accum_dtype") is torch.float64:
        return "they work in float32, accum_dtype is float64"
    reason = _not_asked_for("triton", options)
    return reason or _triton.refuses(input, options.get("backend", "auto"))


def available(device: torch.device, dtype: torch.dtype, backend: str) -> str:
    """The backend that runs on ``device`` with logits of ``dtype`` where only the names are known (compilation)."""
    if backend != "auto":
        return backend
    if device.type == "cpu":
        return "cpu" if native.available() and dtype is torch.float32 else "eager"
    triton = device.type == "cuda" and dtype is torch.float32 and importlib.util.find_spec("triton") is not None
    return "triton" if triton else "eager"


def _not_asked_for(name: str, options: dict[str, Any]) -> str | None:
    asked = options.get("backend", "auto")
    return None if asked in ("auto", name) else f"backend={asked!r} was asked for"
