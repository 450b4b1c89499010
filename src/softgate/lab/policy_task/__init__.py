"""A small verifiable-reward task on which policy objectives are compared, and its tabular twin."""

from softgate.lab.policy_task.addition import ReversedAddition as ReversedAddition
from softgate.lab.policy_task.addition import pretrain as pretrain
from softgate.lab.policy_task.loop import RLConfig as RLConfig
from softgate.lab.policy_task.loop import mismatch as mismatch
from softgate.lab.policy_task.loop import train_policy as train_policy
from softgate.lab.policy_task.model import TinyLM as TinyLM
from softgate.lab.policy_task.rollout import PolicyTask as PolicyTask
from softgate.lab.policy_task.rollout import Rollout as Rollout
from softgate.lab.policy_task.tabular import TabularTask as TabularTask
