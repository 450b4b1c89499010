from .gpt import GPT as GPT
from .gpt import GPTConfig as GPTConfig
from .mlp import MLP as MLP
from .nalaformer import NALAFORMER_CONFIGS as NALAFORMER_CONFIGS
from .nalaformer import NaLaFormer as NaLaFormer
from .nalaformer import NaLaFormerConfig as NaLaFormerConfig
from .vit import ViT as ViT
from .vit import ViTConfig as ViTConfig
