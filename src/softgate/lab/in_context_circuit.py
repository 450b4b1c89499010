"""The circuit of a trained in-context layer, as figures and as matrices to be drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from softgate.diagnostics import icl

__all__ = ["circuit_figures", "circuit_matrices", "sorted_frames"]


def circuit_matrices(model: icl.AttentionICL) -> dict[str, Tensor]:
    """KQ and OV of every head: ``kq_1``, …, ``ov_1``, …."""
    merged = (("kq", model.kq()), ("ov", model.ov()))
    return {f"{name}_{h + 1}": matrix for name, matrices in merged for h, matrix in enumerate(matrices)}


def sorted_frames(frames: Mapping[str, Any], model: icl.AttentionICL) -> dict[str, Any]:
    """Recorded :func:`circuit_matrices` with the heads in the order of their scale at the end, in all frames.

    Pictures of two runs are then alike.
    """
    order = model.kq()[:, : model.d, : model.d].diagonal(dim1=-2, dim2=-1).mean(-1).argsort(descending=True).tolist()
    renamed = {f"{name}_{h + 1}": frames[f"{name}_{old + 1}"] for name in ("kq", "ov") for h, old in enumerate(order)}
    return {**frames, **renamed}


def circuit_figures(model: icl.AttentionICL, data: icl.LinearRegressionPrompts) -> dict[str, Any]:
    """The circuit of a trained layer as figures; of an anisotropic one also its step beside the best preconditioner."""
    report = icl.circuit_report(model, data.tasks)
    omega, mu = report.omega, report.mu
    learnt = (model.ov()[:, -1, -1, None, None] * model.kq()[:, : data.d, : data.d]).sum(0).detach()
    signed = (mu * omega).abs() >= 0.05 * (mu * omega).abs().amax(0)
    figures: dict[str, Any] = {
        "eta": float(report.eta.mean()),
        "omega": float(omega.abs()[signed].mean()),
        "omega_sqrt_d": float(omega.abs()[signed].mean()) * data.d**0.5,
        "off_diagonal": report.off_diagonal,
        "homogeneity": report.homogeneity,
        "zero_sum": report.zero_sum,
        "label_row": report.label_row,
        "paired": float(((mu * omega) > 0)[signed].float().mean()),
        "positive_heads": float((omega[signed.any(-1)] > 0).any(-1).sum()),
        "negative_heads": float((omega[signed.any(-1)] < 0).any(-1).sum()),
        "step_diagonal": learnt.diagonal().tolist(),
        # the weaker scale of a head that serves one task; large where heads serve several
        "cross_task": float(omega.abs().amin(-1).max()) if data.n_tasks > 1 else 0.0,
    }
    if data.cov is not None:
        optimum = icl.optimal_preconditioner(data.cov, data.L, data.sigma2)
        ratio = learnt.diagonal() / optimum.diagonal()
        figures |= {
            "best_diagonal": optimum.diagonal().tolist(),
            "preconditioner_error": float((ratio - 1).abs().max()),
        }
        figures["step_off_diagonal"] = float((learnt - learnt.diagonal().diag()).abs().max())
    return figures
