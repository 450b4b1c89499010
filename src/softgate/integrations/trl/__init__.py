"""Policy objectives in the trainers of TRL."""

from importlib.util import find_spec

from softgate.errors import MissingExtraError
from softgate.integrations import torchvision_cpu

if find_spec("trl") is None:
    raise MissingExtraError("trl", "rl", "softgate.integrations.trl")
torchvision_cpu.repair()  # trl imports models of transformers, which import torchvision where it is installed

from softgate.integrations.trl.anchored_pairs import AnchoredDPOTrainer as AnchoredDPOTrainer  # noqa: E402
from softgate.integrations.trl.fused_sft import FusedLossSFTTrainer as FusedLossSFTTrainer  # noqa: E402
from softgate.integrations.trl.listwise import ADPOTrainer as ADPOTrainer  # noqa: E402
from softgate.integrations.trl.policy import PolicyBatch as PolicyBatch  # noqa: E402
from softgate.integrations.trl.policy import PolicyObjectiveMixin as PolicyObjectiveMixin  # noqa: E402
from softgate.integrations.trl.policy import SoftGateGRPOTrainer as SoftGateGRPOTrainer  # noqa: E402
from softgate.integrations.trl.soft_thinking import SoftThinkingGRPOTrainer as SoftThinkingGRPOTrainer  # noqa: E402
