from .gpt import GPT as GPT
from .gpt import GPTConfig as GPTConfig
from .mlp import MLP as MLP
from .vit import ViT as ViT
from .vit import ViTConfig as ViTConfig
