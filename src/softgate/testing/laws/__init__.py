"""Laws: named statements about an op that are tried on generated inputs.

A law is a function ``(op, draw)`` that raises if the law does not hold for that draw; the first line of its docstring
states it. Laws marked ``always`` are policies of the library and run for every op of their families; the others run
for ops whose record names them in ``laws``.
"""

from softgate.testing.laws._law import LAWS as LAWS
from softgate.testing.laws._law import Law as Law
from softgate.testing.laws._law import law as law
from softgate.testing.laws._law import law_checks as law_checks
from softgate.testing.laws.attention import *  # noqa: F403
from softgate.testing.laws.losses import *  # noqa: F403
from softgate.testing.laws.policies import *  # noqa: F403
from softgate.testing.laws.rows import *  # noqa: F403
