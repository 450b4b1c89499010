"""Heads, densities and measures for ordered bins, from truncated Fourier series.

FourierHead: log-probabilities of bins from hidden states; FourierDensity: the continuous distribution behind them;
fourier_pmf, fourier_log_pmf: the functions; pmf_smoothness: how jagged a distribution over bins is.
"""

from __future__ import annotations

from softgate.losses.fourier.density import FourierDensity
from softgate.losses.fourier.head import FourierHead
from softgate.losses.fourier.pmf import fourier_log_pmf, fourier_pmf
from softgate.losses.fourier.smoothness import pmf_smoothness

__all__ = ["FourierDensity", "FourierHead", "fourier_log_pmf", "fourier_pmf", "pmf_smoothness"]
