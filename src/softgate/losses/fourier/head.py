"""A head that gives ordered bins the probabilities of a learnt Fourier series density."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from softgate._checks import check_float_tensor, check_number
from softgate._math import masks
from softgate.errors import ArgumentValueError, StateError, bad_type, bad_value
from softgate.losses.fourier.density import FourierDensity
from softgate.losses.fourier.pmf import fourier_log_pmf
from softgate.losses.fourier.series import (
    autocorrelation,
    bin_tables,
    normalize,
    normalized_coefficients,
    power,
    roughness,
    split_coefficients,
    tables,
    unit_scale_or_uniform,
)

__all__: list[str] = []


class FourierHead(nn.Module):
    r"""Log-probabilities of m ordered bins from a truncated Fourier series density: for a linear layer plus softmax.

    A linear map gives the coefficients ``a_0 … a_N`` of an amplitude ``A``; bin j with centre ``b_j`` in [-1, 1] gets

    .. math:: y_j = \frac{|A(b_j)|^2}{\sum_{j'} |A(b_{j'})|^2}, \qquad \text{output}_j = \log(y_j + \varepsilon)

    Neighbouring bins share strength, and what is learnt has no frequencies above N: right for tokens with an order
    (quantised values, ages, actions), wrong for words. The output serves as logits of any cross-entropy, in place of
    ``nn.Linear(in_features, num_bins)``: ``model.head = FourierHead(...)`` in :class:`softgate.models.GPT`,
    ``model.lm_head = FourierHead(...)`` in a model of transformers whose embeddings are not tied.

    Args:
        in_features: D, size of the hidden states.
        num_bins: m.
        num_frequencies: N ≥ 0. More follow sharper densities, fewer ignore more noise; the paper's runs have 2 to 32
            for 18 bins, 12 for 50 and 64 to 550 for 4,096. From m on the bins no longer tell the frequencies apart.
        gamma: weight of :meth:`regularization`.
        eps: floor under the probabilities. With many bins choose it well below 1/m.
        init_scale: multiplies the initial weights and biases, those of ``nn.Linear``. The probabilities do not depend
            on the scale of the coefficients; a smaller one only makes the first gradients larger and Adam's steps
            relatively longer. The authors' class divides by 100 (``init_scale=0.01``), but their published toy results
            come out with 1.
        bin_edges: m + 1 increasing edges of unequal bins; the first and the last are mapped to -1 and 1. The density at
            a bin's centre is then weighted with the bin's width. None: equal bins.
        integrate_bins: take the exact mass of each bin, ``F(right) - F(left)``, instead of the density at its centre.
        device: of the parameters.
        dtype: of the parameters. Tables stay in float32 for 16-bit types.

    Shape: hidden states (…, D), real floating point, to (…, m) in their dtype.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: an argument is out of range.

    Warns:
        UserWarning: ``num_frequencies >= num_bins`` without ``integrate_bins``.

    Example:
        >>> import torch
        >>> head = FourierHead(in_features=16, num_bins=50, num_frequencies=12)
        >>> log_probs = head(torch.randn(4, 16))
        >>> log_probs.shape, bool((log_probs.exp().sum(-1) - 1).abs().max() < 1e-3)
        (torch.Size([4, 50]), True)

    Paper: Gillman et al., Fourier Head, arXiv 2410.22269, sec. 2 (algorithm 1); regulariser as in the authors' code.
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        in_features: int,
        num_bins: int,
        num_frequencies: int,
        *,
        gamma: float = 0.0,
        eps: float = 1e-5,
        init_scale: float = 1.0,
        bin_edges: Sequence[float] | Tensor | None = None,
        integrate_bins: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("in_features", in_features, 1),
            ("num_bins", num_bins, 1),
            ("num_frequencies", num_frequencies, 0),
        ):
            if isinstance(value, bool) or not isinstance(value, int):
                bad_type(name, value, "an int")
            if value < least:
                bad_value(name, value, f"at least {least}")
        if not isinstance(integrate_bins, bool):
            bad_type("integrate_bins", integrate_bins, "a bool")
        if num_frequencies >= num_bins and not integrate_bins:
            warnings.warn(
                f"num_frequencies={num_frequencies} frequencies cannot be told apart at {num_bins} bins; take fewer, "
                "or integrate_bins=True",
                stacklevel=2,
            )
        self.in_features, self.out_features, self.num_frequencies = in_features, num_bins, num_frequencies
        self.gamma = check_number("gamma", gamma, low=0.0, high_open=True)
        self.eps = check_number("eps", eps, low=0.0, high_open=True)
        self.init_scale = check_number("init_scale", init_scale, low=0.0, low_open=True, high_open=True)
        self.integrate_bins = integrate_bins
        self._edges = None if bin_edges is None else _unit_edges(bin_edges, num_bins)
        self.linear = nn.Linear(in_features, 2 * (num_frequencies + 1), device=device, dtype=dtype)
        self._last: tuple[Tensor, Tensor] | None = None
        self._make_tables()
        self.reset_parameters()

    @property
    def num_bins(self) -> int:
        """m, which is also ``out_features``, as in ``nn.Linear``."""
        return self.out_features

    def reset_parameters(self) -> None:
        """Draw weights and biases as ``nn.Linear`` does, times ``init_scale``."""
        self.linear.reset_parameters()
        with torch.no_grad():
            for parameter in self.linear.parameters():
                parameter.mul_(self.init_scale)

    def forward(self, hidden: Tensor) -> Tensor:
        """``log(y + eps)`` (…, m) of hidden states (…, D)."""
        real, imag = self.coefficients(hidden)
        if self.gamma > 0.0:
            self._last = (real, imag)
        if self.integrate_bins or self._edges is not None:
            with masks.without_autocast(real):
                return (self._masses(real, imag) + self.eps).log().to(real.dtype)
        return fourier_log_pmf(real, imag, self.cos, self.sin, eps=self.eps)

    def coefficients(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Real and imaginary parts of a_0 … a_N, each (…, N + 1)."""
        check_float_tensor("hidden", hidden)
        if hidden.ndim == 0 or hidden.shape[-1] != self.in_features:
            raise ArgumentValueError(f"hidden must have shape (..., {self.in_features}), got {tuple(hidden.shape)}")
        return split_coefficients(self.linear(hidden))

    def pdf(self, hidden: Tensor) -> FourierDensity:
        """The densities on [-1, 1] whose quantised form the head returns: samples, quantiles, moments."""
        return FourierDensity(torch.cat(self.coefficients(hidden), -1), validate_args=False)

    def regularization(self, hidden: Tensor | None = None, *, normalized: bool = False) -> Tensor:
        """``gamma · 2 · mean_batch Σ_k 2 π² k² |c_k|²``, to be added to the loss.

        Args:
            hidden: hidden states (…, D). None takes the coefficients of the last forward pass; give the hidden states
                where a training step runs several passes, or under gradient checkpointing.
            normalized: penalise ``c_k / c_0``, the roughness of the density alone. The authors' form, the default,
                also shrinks the scale of the coefficients, which the density does not depend on.

        Raises:
            StateError: no forward pass has been made and ``hidden`` is not given.
        """
        if self.gamma == 0.0:
            return self.linear.weight.new_zeros(())
        if hidden is None and self._last is None:
            raise StateError("regularization() needs a forward pass before it, or the hidden states")
        pair = self._last if hidden is None else self.coefficients(hidden)
        assert pair is not None
        with masks.without_autocast(pair[0]):
            real, imag = (part.to(masks.accumulation_dtype(part.dtype)) for part in pair)
            if normalized:
                return self.gamma * roughness(*normalized_coefficients(*unit_scale_or_uniform(real, imag)))
            return self.gamma * roughness(*autocorrelation(real, imag))

    def extra_repr(self) -> str:
        """The settings, for ``repr``."""
        text = f"num_bins={self.num_bins}, num_frequencies={self.num_frequencies}, gamma={self.gamma}, eps={self.eps}"
        text += ", bin_edges=..." if self._edges is not None else ""
        return text + (", integrate_bins=True" if self.integrate_bins else "")

    def _masses(self, real: Tensor, imag: Tensor) -> Tensor:
        """Probabilities of unequal bins, or exact ones, in the dtype of the tables."""
        pair = unit_scale_or_uniform(real.to(self.cos.dtype), imag.to(self.cos.dtype))
        if self.integrate_bins:
            c_real, c_imag = normalized_coefficients(*pair)
            # the first column of the tables is the mass of the uniform density
            mass = c_real @ self.cos - c_imag @ self.sin
            mass = mass.clamp_min(0.0)  # a difference of distribution functions may round below 0
        else:
            mass = power(*pair, self.cos, self.sin)
        return normalize(mass)

    def _make_tables(self) -> None:
        weight = self.linear.weight
        dtype = masks.accumulation_dtype(weight.dtype)
        if not self.integrate_bins and self._edges is None:
            pair = bin_tables(self.num_bins, self.num_frequencies, dtype, weight.device)
        else:
            pair = self._mass_tables(dtype, weight.device)
        for name, table in zip(("cos", "sin"), pair, strict=True):
            self.register_buffer(name, table, persistent=False)

    def _mass_tables(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """Tables (N + 1, m) for unequal bins, with the roots of the widths in them, or for the masses of bins."""
        edges = (
            torch.linspace(-1.0, 1.0, self.num_bins + 1, dtype=torch.float64) if self._edges is None else self._edges
        )
        widths = edges.diff()
        if not self.integrate_bins:
            cos, sin = tables(0.5 * (edges[1:] + edges[:-1]), self.num_frequencies)
            return (cos * widths.sqrt()).to(device, dtype), (sin * widths.sqrt()).to(device, dtype)
        k = torch.arange(1, self.num_frequencies + 1, dtype=torch.float64)[:, None] * torch.pi
        cos, sin = tables(edges, self.num_frequencies)
        # ∫ cos(πkx) and ∫ sin(πkx) over a bin; half the width for k = 0
        cosines = torch.cat((0.5 * widths[None], sin[1:].diff(dim=1) / k))
        sines = torch.cat((torch.zeros_like(widths[None]), -cos[1:].diff(dim=1) / k))
        return cosines.to(device, dtype), sines.to(device, dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FourierHead:
        """Move or cast; the tables are made anew, so that 16 bits do not round them and nothing leaves them empty."""
        super()._apply(fn, recurse)
        self._make_tables()
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Without the last coefficients: they belong to a graph that can be neither copied nor saved."""
        return {**self.__dict__, "_last": None}


def _unit_edges(edges: Any, num_bins: int) -> Tensor:
    """Edges mapped to [-1, 1], float64 on the CPU."""
    if not isinstance(edges, Tensor | Sequence) or isinstance(edges, str):
        bad_type("bin_edges", edges, "a sequence of numbers or a tensor")
    values = torch.as_tensor(edges, dtype=torch.float64, device="cpu")
    if values.shape != (num_bins + 1,) or not bool(values.isfinite().all()) or not bool((values.diff() > 0.0).all()):
        raise ArgumentValueError(
            f"bin_edges must be {num_bins + 1} finite, strictly increasing numbers, got {tuple(values.shape)}"
        )
    return 2.0 * (values - values[0]) / (values[-1] - values[0]) - 1.0
