from .advantages import group_advantages as group_advantages
from .aggregation import AGGREGATIONS as AGGREGATIONS
from .aggregation import aggregate as aggregate
from .kl import KL_KINDS as KL_KINDS
from .kl import kl_estimate as kl_estimate
from .stats import PolicyStats as PolicyStats
