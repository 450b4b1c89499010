"""For ``actor_rollout_ref.model.external_lib`` of verl: importing this module makes ``softgate_sapo`` known.

Workers of verl import the module that their configuration names; ``examples/verl/sapo_qwen3_30b.yaml`` names this one.
It needs verl.

Paper: SAPO, arXiv 2511.20347.
"""

from __future__ import annotations

from softgate.integrations.verl import register

__all__ = ["LOSS_MODE"]

#: What ``actor_rollout_ref.actor.policy_loss.loss_mode`` must say.
LOSS_MODE = register()
