"""Classification by an infinitely wide and arbitrarily, or infinitely, deep network."""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from softgate._checks import check_number
from softgate._estimators.hilbert import effective_dim
from softgate._estimators.limits import log_limit, log_nngp, scaled_ntk
from softgate._estimators.voting import KernelVote, weighted_mean
from softgate.activations.dual import DualActivation, dual_activation
from softgate.activations.taxonomy import classify_activation, design_activation
from softgate.errors import ArgumentValueError, StateError, bad_type, check_choice

KERNELS = ("nngp", "ntk")


class DeepKernelClassifier(KernelVote):
    r"""The classifier that an infinitely wide fully connected network is when trained to the end.

    At finite depth it interpolates with the kernel of that depth, ``y^T K^{-1} k(x)``. With ``depth=math.inf`` nothing
    is solved: the kernel, divided by ``a^L``, tends to a weight that is infinite at distance 0, and the network to the
    vote ``Σ_i y_i w(x_i, x)``. With the activation designed for the dimension of the data, the default, that vote is
    consistent: its error tends to the smallest possible one as the data grows. Nothing has to be tuned.

    Args:
        activation: ``"auto"`` (:func:`softgate.activations.design_activation` for ``dim``), or anything that
            :func:`softgate.activations.dual_activation` takes.
        depth: number of hidden layers, at least 1, or ``math.inf``.
        kernel: ``"nngp"``, training the last layer only, or ``"ntk"``, training all. Both have the same limit; at
            finite depth the NTK comes near it later. A deep NTK underflows where the NNGP kernel keeps logarithms.
        normalize: scale the points to the unit sphere. False: they must lie on it.
        reg: added to the diagonal of the kernel, whose entries there are 1; no effect at infinite depth.
        dim: number of coordinates that the data needs, for ``activation="auto"``; None: those it has. Reduce redundant
            coordinates first, for example with PCA in a pipeline.

    Attributes:
        classes_: the labels.
        points_: distinct training points (n, D), and one more coordinate if there are zero rows.
        votes_: mean one-hot label of each (n, classes).
        dual_: the dual activation.
        coefficients_: ``K^{-1} y`` (n, classes), at finite depth.

    Raises:
        ArgumentTypeError: an option has the wrong type (when fitting).
        ArgumentValueError: an option is out of range; rows off the sphere without ``normalize``; infinite depth with an
            activation whose mean is not 0: its limit is the majority vote, without weights.
        StateError: a deep NTK underflows.

    Warns:
        UserWarning: rows of zeros, which have no direction (they count as orthogonal to all others); equal points with
            different labels; a kernel matrix that is singular in float64.

    Example:
        >>> import numpy as np
        >>> from softgate.losses import DeepKernelClassifier
        >>> X = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
        >>> DeepKernelClassifier().fit(X, ["a", "b", "b"]).predict([[1.0, 0.1], [0.1, 1.0]])
        array(['a', 'b'], dtype='<U1')

    Paper: Radhakrishnan, Belkin, Uhler, Wide and deep neural networks achieve optimality for classification,
    arXiv 2204.14126.
    """

    def __init__(
        self,
        activation: str | Sequence[float] | nn.Module | DualActivation = "auto",
        depth: int | float = math.inf,
        kernel: str = "nngp",
        normalize: bool = True,
        reg: float = 0.0,
        dim: int | None = None,
    ) -> None:
        self.activation = activation
        self.depth = depth
        self.kernel = kernel
        self.normalize = normalize
        self.reg = reg
        self.dim = dim

    def _fit(self) -> None:
        check_choice("kernel", self.kernel, KERNELS)
        check_number("reg", self.reg, low=0.0, high_open=True)
        self._check_depth()
        dim = effective_dim(self.dim, self.n_features_in_)
        auto = isinstance(self.activation, str) and self.activation == "auto"
        # on the two points of the sphere in one dimension any activation will do
        self.dual_ = dual_activation(design_activation(max(dim, 2)) if auto else self.activation)
        self._check_sphere(torch.from_numpy(self.points_))
        if self.depth == math.inf:
            self.kind_ = classify_activation(self.dual_).kind
            if self.kind_ == "majority":
                raise ArgumentValueError(
                    f"depth must be finite for activation={self.activation!r}, whose mean is not 0: the limit is the "
                    "majority vote over the training labels"
                )
            return
        self.coefficients_ = self._solve().numpy()

    def _check_depth(self) -> None:
        if isinstance(self.depth, bool) or not isinstance(self.depth, numbers.Real):
            bad_type("depth", self.depth, "an int or math.inf")
        if self.depth != math.inf and (not isinstance(self.depth, numbers.Integral) or self.depth < 1):
            raise ArgumentValueError(f"depth must be an int of at least 1, or math.inf, got {self.depth!r}")

    def _check_sphere(self, points: Tensor) -> None:
        if not self.normalize and bool(((points.square().sum(1) - 1.0).abs() > 1e-6).any()):
            raise ArgumentValueError("X must lie on the unit sphere with normalize=False")

    def _solve(self) -> Tensor:
        """``(K + reg I)^{-1} votes``; a matrix that is singular in float64 is solved by least squares."""
        points, votes = torch.from_numpy(self.points_), torch.from_numpy(self.votes_)
        log_size, sign = self._log_kernel(points)
        matrix = sign * log_size.exp()
        matrix.fill_diagonal_(1.0 + self.reg)  # exactly: the rounding of a point with itself grows with depth
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if not bool(failed):
            return torch.cholesky_solve(votes, factor)
        warnings.warn("the kernel matrix is singular in float64; reg > 0 or more depth avoids it", stacklevel=4)
        return torch.linalg.lstsq(matrix, votes, driver="gelsd").solution

    def _log_kernel(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithm and sign of the kernel, with a diagonal of 1, between ``points`` and the training points."""
        xi = (points @ torch.from_numpy(self.points_).mT).clamp_(-1.0, 1.0)
        if self.depth == math.inf:
            return log_limit(xi, self.dual_)
        if self.kernel == "nngp":
            return log_nngp(xi, self.dual_, int(self.depth))
        kernel = scaled_ntk(xi, self.dual_, int(self.depth))
        if self.dual_.constant == 0.0 and bool(((kernel == 0.0) & (xi != 0.0)).all(1).any()):
            raise StateError(f"the NTK of depth={self.depth} underflows; use depth=math.inf, which has the same limit")
        return kernel.abs().log(), kernel.sign()

    def _score_tile(self, points: Tensor) -> Tensor:
        self._check_sphere(points)
        votes = torch.from_numpy(self.votes_)
        if self.depth == math.inf and self.kind_ == "1-nn":
            xi = points @ torch.from_numpy(self.points_).mT
            return votes[xi.argmax(1)]
        values = votes if self.depth == math.inf else torch.from_numpy(self.coefficients_)
        return weighted_mean(*self._log_kernel(points), values, votes.mean(0))
