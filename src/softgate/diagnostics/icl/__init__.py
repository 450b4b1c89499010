"""In-context linear regression: an exactly solvable transformer, its theory, and the circuit that training finds.

from softgate.diagnostics import icl

prompts = icl.LinearRegressionPrompts(d=5, L=40, sigma2=0.1)
tokens, target = prompts(256)
model = icl.AttentionICL(d=5, n_heads=2)         # or attention="linear", or any score normaliser f(scores, dim)
loss = (model(tokens) - target).square().mean()  # train it …
print(icl.circuit_report(model))                 # … and read which predictor it has become
"""

from __future__ import annotations

from softgate.diagnostics.icl import predictors as predictors
from softgate.diagnostics.icl.attention import AttentionICL, icl_attention
from softgate.diagnostics.icl.circuit import CircuitReport, circuit_report
from softgate.diagnostics.icl.prompts import LinearRegressionPrompts
from softgate.diagnostics.icl.theory import BayesRisk as BayesRisk
from softgate.diagnostics.icl.theory import Optimum as Optimum
from softgate.diagnostics.icl.theory import bayes_risk_mc as bayes_risk_mc
from softgate.diagnostics.icl.theory import gd_step_size as gd_step_size
from softgate.diagnostics.icl.theory import optimal_multi_head as optimal_multi_head
from softgate.diagnostics.icl.theory import optimal_preconditioner as optimal_preconditioner
from softgate.diagnostics.icl.theory import optimal_single_head as optimal_single_head
from softgate.diagnostics.icl.theory import risk as risk

__all__ = ["AttentionICL", "CircuitReport", "LinearRegressionPrompts", "circuit_report", "icl_attention"]
