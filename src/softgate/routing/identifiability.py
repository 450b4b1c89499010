"""Whether a gate's parameters, its temperature above all, are determined by the gate at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from softgate.errors import ArgumentTypeError, ArgumentValueError
from softgate.routing._activations import activation_of
from softgate.routing.mixing_measure import MixingMeasure

__all__ = ["GateReport", "gate_identifiability"]

Array = NDArray[np.float64]

#: Smallest singular value over the largest below which a direction counts as undetermined.
FLAT = 1e-8


@dataclass(frozen=True)
class GateReport:
    """What the gate's log-odds say about its parameters.

    Attributes:
        singular_values: of the Jacobian with columns of unit length, largest first.
        ratio: smallest over largest; 0 where the Jacobian has more columns than rows, or there is one expert.
        temperature_identified: False if a direction that changes the temperature leaves every weight as it is.
        gate_identified: False if any direction does.
        flat_direction: name -> component of the flattest direction, in the parameters' own units; empty if none is.
        message: the same in a sentence.
    """

    singular_values: Array
    ratio: float
    temperature_identified: bool
    gate_identified: bool
    flat_direction: dict[str, float]
    message: str


def gate_identifiability(model: Any, X: ArrayLike) -> GateReport:
    """Rank of the Jacobian of the gate's log-odds by (β1, β0, log temperature), the last expert pinned.

    With an affine gate, and with every positively homogeneous activation (ReLU, leaky ReLU, |·|), the parameters
    (cβ1, cβ0, cτ) give the same weights for every c > 0, so the temperature means nothing.

    Args:
        model: a :class:`MixingMeasure` or a fitted :class:`GaussianMoE`. All experts are taken as selected.
        X: (n, d) inputs; n (k - 1) should be at least the number of parameters.

    Returns:
        A :class:`GateReport`. Columns are scaled to unit length, so that units of x do not matter.

    Raises:
        ArgumentTypeError: ``model`` is no measure.
        ArgumentValueError: X has the wrong shape.

    Example:
        >>> import numpy as np
        >>> measure = MixingMeasure([-0.3, 0], [2, 0], [0, 0], [0, 0], [1, 1], temperature=0.5)
        >>> gate_identifiability(measure, np.linspace(-3, 3, 50)[:, None]).message
        'temperature not identified'
        >>> tanh = measure.with_options(activation="tanh")
        >>> gate_identifiability(tanh, np.linspace(-3, 3, 50)[:, None]).message
        'all parameters of the gate are identified'

    Paper: Is Temperature Sample Efficient for Softmax Gaussian Mixture of Experts?, arXiv 2401.13875, section 2.
    """
    measure = getattr(model, "measure_", model)
    if not isinstance(measure, MixingMeasure):
        raise ArgumentTypeError(f"model must be a MixingMeasure or a fitted GaussianMoE, got {type(model).__name__}")
    x = np.array(X, dtype=np.float64)
    if x.ndim != 2 or x.shape[1] != measure.n_features or len(x) == 0:
        raise ArgumentValueError(f"X must have shape (n, {measure.n_features}) with n at least 1, got {x.shape}")
    if measure.n_experts == 1:
        message = "the gate of one expert is 1: temperature not identified"
        return GateReport(np.zeros(1), 0.0, False, False, {"log_temperature": 1.0}, message)
    names, jacobian = _jacobian(measure, torch.from_numpy(x))
    norms = np.sqrt((jacobian**2).sum(0))
    scale = np.divide(1.0, norms, out=np.ones_like(norms), where=norms > 0)
    values, right = np.linalg.svd(jacobian * scale, full_matrices=True)[1:]
    values = np.concatenate([values, np.zeros(len(names) - len(values))])
    flat = right[values < FLAT * values[0]]
    moves_temperature = bool((np.abs(flat[:, -1]) > 1e-6).any())
    flat = flat * scale  # back to the parameters' own units
    direction = dict(zip(names, flat[-1].tolist(), strict=True)) if len(flat) else {}
    message = "all parameters of the gate are identified"
    if moves_temperature:
        message = "temperature not identified"
    elif len(flat):
        message = "temperature identified, other parameters of the gate are not"
    return GateReport(values, float(values[-1] / values[0]), not moves_temperature, not len(flat), direction, message)


def _jacobian(measure: MixingMeasure, x: Tensor) -> tuple[list[str], Array]:
    """Parameter names, and the derivatives of all log w_i - log w_k by them, (n (k - 1), parameters)."""
    sigma = activation_of(measure.activation)
    k, d = measure.beta1.shape
    beta1, beta0 = torch.from_numpy(measure.beta1), torch.from_numpy(measure.beta0)
    log_temperature = torch.tensor(float(np.log(measure.temperature)), dtype=torch.float64)

    def log_odds(free1: Tensor, free0: Tensor, log_t: Tensor) -> Tensor:
        slopes, biases = torch.cat([free1, beta1[-1:]]), torch.cat([free0, beta0[-1:]])
        logits = (sigma(x @ slopes.mT) + biases) / log_t.exp()
        return (logits[:, :-1] - logits[:, -1:]).flatten()

    parts = torch.func.jacfwd(log_odds, argnums=(0, 1, 2))(beta1[:-1], beta0[:-1], log_temperature)
    names = [f"beta1[{i},{j}]" for i in range(k - 1) for j in range(d)] + [f"beta0[{i}]" for i in range(k - 1)]
    columns = [part.reshape(len(x) * (k - 1), -1) for part in parts]
    return [*names, "log_temperature"], torch.cat(columns, 1).numpy()
