"""Softmax, its logarithm and log-sum-exp along one axis, exact and fast on CPUs.

Paper: Dukhan, Ablavatski, "The Two-Pass Softmax Algorithm", arXiv 2001.04438. The kernels are C++ (``native/``), the
references plain torch (:mod:`.reference`); both compute the same function to rounding.
"""

from softgate.normalizers.two_pass.functions import log_softmax as log_softmax
from softgate.normalizers.two_pass.functions import logsumexp as logsumexp
from softgate.normalizers.two_pass.functions import softmax as softmax
from softgate.normalizers.two_pass.module import Softmax as Softmax
from softgate.normalizers.two_pass.pairs import logsumexp_pair as logsumexp_pair
from softgate.normalizers.two_pass.pairs import merge_pairs as merge_pairs

__all__ = ["Softmax", "log_softmax", "logsumexp", "logsumexp_pair", "merge_pairs", "softmax"]
