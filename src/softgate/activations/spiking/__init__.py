"""Spiking neurons: a leaky membrane that collects its input over steps and fires where it reaches a threshold."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn

from softgate._checks import check_float_tensor, check_number, check_same_device
from softgate.activations.spiking import native_passes
from softgate.activations.spiking.native_passes import NativePasses
from softgate.activations.spiking.passes import TorchPasses, run
from softgate.activations.spiking.reference import RESETS, SURROGATES, lif_reference
from softgate.dispatch import call
from softgate.errors import bad_type, bad_value, check_choice
from softgate.registry import Kernel, method, record_of

__all__ = ["LIF", "lif"]


def _samples(dtype: torch.dtype, generator: Generator) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    def draw(*shape: int, mean: float = 1.0) -> Tensor:
        # multiples of 1/8 that are no multiple of 1/4: with tau = 2 no membrane meets the threshold within rounding
        whole = torch.randint(-6, 10, shape, generator=generator, dtype=torch.float64)
        return (mean + whole / 4 + 0.125).to(dtype)

    yield (draw(3, 2, 3),), {}
    yield (draw(1, 5),), {}
    yield (draw(4, 9, 14).transpose(1, 2)[:, ::2],), {}
    yield (draw(2, 6, 4, 5).contiguous(memory_format=torch.channels_last),), {}
    yield (draw(5, 3),), {"state": draw(3, mean=0.0), "return_state": True}
    yield (draw(4, 4099),), {}
    yield (draw(3, 0),), {}


def _bad_inputs() -> Iterator[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    x = torch.ones(2, 3)
    for wrong in (x.long(), x.tolist(), x.to(torch.complex64)):
        yield (wrong,), {}, TypeError, "x"
    for shape in ((), (0, 3)):
        yield (torch.ones(shape),), {}, ValueError, "x"
    for tau in (0.5, float("inf"), float("nan")):
        yield (x, tau), {}, ValueError, "tau"
    yield (x, "2"), {}, TypeError, "tau"
    for threshold in (0.0, -1.0):
        yield (x, 2.0, threshold), {}, ValueError, "v_threshold"
    yield (x,), {"alpha": 0.0}, ValueError, "alpha"
    yield (x,), {"reset": "none"}, ValueError, "reset"
    yield (x,), {"surrogate": "relu"}, ValueError, "surrogate"
    yield (x,), {"detach_reset": 1}, TypeError, "detach_reset"
    yield (x,), {"return_state": None}, TypeError, "return_state"
    yield (x,), {"state": 0.0}, TypeError, "state"
    yield (x,), {"state": torch.ones(2)}, ValueError, "state"


def _check_neuron(
    tau: float | None, v_threshold: float, reset: str, surrogate: str, alpha: float, detach_reset: bool
) -> None:
    if tau is not None:
        check_number("tau", tau, low=1.0, high_open=True)
    check_number("v_threshold", v_threshold, low=0.0, low_open=True, high_open=True)
    check_choice("reset", reset, RESETS)
    check_choice("surrogate", surrogate, SURROGATES)
    check_number("alpha", alpha, low=0.0, low_open=True, high_open=True)
    if not isinstance(detach_reset, bool):
        bad_type("detach_reset", detach_reset, "a bool")


@method(
    site="activations",
    family="custom",
    paper="max-former",
    source="eq. 1-3: charge, fire, reset; the released code resets to 0, the paper's eq. 3 subtracts the threshold",
    reference=lif_reference,
    kernels=(
        Kernel("native", partial(run, NativePasses()), native_passes.refuses),
        Kernel("recompute", partial(run, TorchPasses()), lambda *_, **__: None),
    ),
    variants={"default": {}, "soft": {"reset": "soft", "detach_reset": False}},
    gradient="surrogate",
    samples=_samples,
    bad_inputs=_bad_inputs,
    error_scale="tensor",
    deviations=("an infinite input leaves a membrane of 0 after a hard reset; the released code leaves NaN",),
)
def lif(
    x: Tensor,
    tau: float | None = 2.0,
    v_threshold: float = 1.0,
    *,
    reset: str = "hard",
    surrogate: str = "sigmoid",
    alpha: float = 4.0,
    detach_reset: bool = True,
    state: Tensor | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Spikes of leaky integrate-and-fire neurons over all steps of ``x``.

    .. math:: u_t = v_{t-1} + (x_t - v_{t-1}) / \tau, \qquad s_t = [u_t \ge v_{th}], \qquad
              v_t = u_t (1 - s_t) \;\text{(hard)} \;\text{or}\; u_t - v_{th} s_t \;\text{(soft)}

    Every entry of a step is a neuron of its own; the membrane v starts at 0 in every call. A step function has no
    useful derivative, so gradients take that of a smooth one in its place, :math:`\alpha\,\sigma(1 - \sigma)` of
    :math:`\sigma(\alpha (u - v_{th}))` or :math:`\alpha / 2 / (1 + (\pi \alpha (u - v_{th}) / 2)^2)`. They keep ``x``
    and nothing else of its size, and the compiled kernels pass over the data once forward and once backward.

    Args:
        x: input currents, (T, …) with time first; real floating point.
        tau: time constant in steps, at least 1; None for neurons that do not leak, u_t = v_{t-1} + x_t.
        v_threshold: where a neuron fires, positive.
        reset: ``"hard"`` to 0, or ``"soft"`` by the threshold.
        surrogate: ``"sigmoid"`` or ``"atan"``.
        alpha: steepness of the surrogate, positive.
        detach_reset: whether what a spike takes away from the membrane passes no gradient on.
        state: membrane before the first step, (…); 0 if None.
        return_state: return the membrane after the last step as well, to go on from there.

    Returns:
        Spikes, 0 or 1, of the shape and dtype of ``x``; with ``return_state`` a pair of these and the membrane (…) in
        float32 or wider. 16-bit inputs have their membrane in float32. A NaN makes the membrane NaN from there on,
        which never fires.

    Raises:
        ArgumentTypeError: ``x`` or ``state`` is not a real floating-point tensor, or an option has the wrong type.
        ArgumentValueError: no step, ``tau`` below 1, a threshold or steepness that is not positive, an unknown reset or
            surrogate, or a state of another shape than a step.

    Example:
        >>> import torch
        >>> lif(torch.full((6, 1), 1.25)).flatten()
        tensor([0., 0., 1., 0., 0., 1.])

    Paper: Spiking Neural Networks Need High Frequency Information, arXiv 2505.18608, eq. 1-3.
    """
    check_float_tensor("x", x)
    if x.ndim == 0 or len(x) == 0:
        bad_value("x", tuple(x.shape), "of shape (steps, …) with at least one step")
    _check_neuron(tau, v_threshold, reset, surrogate, alpha, detach_reset)
    if not isinstance(return_state, bool):
        bad_type("return_state", return_state, "a bool")
    if state is not None:
        check_float_tensor("state", state)
        check_same_device(x=x, state=state)
        if state.shape != x.shape[1:]:
            bad_value("state", tuple(state.shape), f"of the shape of a step, {tuple(x.shape[1:])}")
    found: Tensor | tuple[Tensor, Tensor] = call(
        record_of(lif), x, tau, v_threshold, reset=reset, surrogate=surrogate, alpha=alpha, detach_reset=detach_reset,
        state=state, return_state=return_state,
    )  # fmt: skip
    return found


class LIF(nn.Module):
    """Leaky integrate-and-fire neurons as a module: :func:`lif` of all steps, with no state between calls.

    Args:
        tau: time constant in steps, at least 1; None for neurons that do not leak.
        v_threshold: where a neuron fires.
        reset: ``"hard"`` to 0, or ``"soft"`` by the threshold.
        surrogate: whose derivative stands for that of the step, ``"sigmoid"`` or ``"atan"``.
        alpha: steepness of the surrogate.
        detach_reset: whether what a spike takes away passes no gradient on.

    Shapes: (T, …) -> the same.

    Raises:
        ArgumentTypeError: an option has the wrong type.
        ArgumentValueError: an option is out of range.

    Example:
        >>> import torch
        >>> LIF(v_threshold=0.5)(torch.tensor([[0.5], [1.5], [0.75]])).flatten()
        tensor([0., 1., 0.])

    Paper: arXiv 2505.18608, eq. 1-3.
    """

    def __init__(
        self,
        tau: float | None = 2.0,
        v_threshold: float = 1.0,
        reset: str = "hard",
        surrogate: str = "sigmoid",
        alpha: float = 4.0,
        detach_reset: bool = True,
    ) -> None:
        super().__init__()
        _check_neuron(tau, v_threshold, reset, surrogate, alpha, detach_reset)
        self.tau, self.v_threshold, self.reset = tau, v_threshold, reset
        self.surrogate, self.alpha, self.detach_reset = surrogate, alpha, detach_reset

    def forward(self, x: Tensor) -> Tensor:
        """Spikes of the currents ``x`` (T, …)."""
        spikes: Tensor = lif(  # type: ignore[assignment]
            x, self.tau, self.v_threshold, reset=self.reset, surrogate=self.surrogate, alpha=self.alpha,
            detach_reset=self.detach_reset,
        )  # fmt: skip
        return spikes

    def extra_repr(self) -> str:
        """Time constant, threshold and reset, for ``repr``."""
        return f"tau={self.tau}, v_threshold={self.v_threshold}, reset={self.reset!r}"
