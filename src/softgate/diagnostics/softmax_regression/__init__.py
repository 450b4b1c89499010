"""Softmax regression: the query whose softmax over given rows is a prescribed distribution.

from softgate.diagnostics import softmax_regression as sr

x, info = sr.SoftmaxRegression().fit(A, b)       # min ½‖softmax(A x) - b‖²
sr.grad(A, x, b), sr.hessian(A, x, b)            # in closed form
sr.shift_bound(A, x, dx=dx)                      # how far the softmax can move
"""

from __future__ import annotations

from softgate.diagnostics.softmax_regression.estimator import FitInfo as FitInfo
from softgate.diagnostics.softmax_regression.estimator import SoftmaxRegression
from softgate.diagnostics.softmax_regression.objective import grad as grad
from softgate.diagnostics.softmax_regression.objective import grad_A as grad_A
from softgate.diagnostics.softmax_regression.objective import hessian as hessian
from softgate.diagnostics.softmax_regression.objective import softmax_regression_loss
from softgate.diagnostics.softmax_regression.shifts import shift_bound, target_shift
from softgate.diagnostics.softmax_regression.solvers import gradient_descent as gradient_descent

__all__ = ["SoftmaxRegression", "shift_bound", "softmax_regression_loss", "target_shift"]

#: The short name, for use behind the module's: ``softmax_regression.loss``.
loss = softmax_regression_loss
