"""Bounds on the Lipschitz constant of a network that come with a proof.

:func:`lipschitz_bound` reads a model (``reading``), describes each activation by what is known of its increments
(``increments``), and puts both into one matrix inequality (``networks``, ``forms``), which an interior-point method
(``barrier``) or, layer by layer, a descent on scaled norms (``chain``) solves. What comes out is a certificate
(``certificate``): multipliers that prove the bound without the solver.
"""

from __future__ import annotations

from softgate.diagnostics.lipschitz.bounding_network import lipschitz_bound
from softgate.diagnostics.lipschitz.certificate import LipschitzCertificate
from softgate.diagnostics.lipschitz.reading import ImplicitModel

__all__ = ["ImplicitModel", "LipschitzCertificate", "lipschitz_bound"]
