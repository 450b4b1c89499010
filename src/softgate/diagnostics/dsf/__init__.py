"""The Dynamical Systems Framework: every causal token mixer as a linear time-varying system, to compare them exactly.

from softgate.diagnostics import dsf

linear = dsf.from_linear_attention(q, k, v)
softmax = dsf.from_softmax(q, k, v, order=4)
print(dsf.compare(linear, softmax))
"""

from __future__ import annotations

from softgate.diagnostics.dsf.builders import (
    from_linear_attention,
    from_normalized_attention,
    from_qlstm,
    from_rglru,
    from_s6,
    from_softmax,
    from_ssd,
    taylor_weights,
)
from softgate.diagnostics.dsf.comparison import Comparison, compare_systems
from softgate.diagnostics.dsf.comparison import effective_rank as effective_rank
from softgate.diagnostics.dsf.comparison import memory_length as memory_length
from softgate.diagnostics.dsf.identities import identities as identities
from softgate.diagnostics.dsf.system import System, SystemState

__all__ = [
    "Comparison",
    "System",
    "SystemState",
    "compare_systems",
    "from_linear_attention",
    "from_normalized_attention",
    "from_qlstm",
    "from_rglru",
    "from_s6",
    "from_softmax",
    "from_ssd",
    "taylor_weights",
]

#: The short name, for use behind the module's: ``dsf.compare``. In the room it is called ``compare_systems``.
compare = compare_systems
