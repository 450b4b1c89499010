"""Instruction-aware prompt tuning: soft prompts that are computed from the instruction, before every layer."""

from __future__ import annotations

from softgate.models.iapt.config import IAPTConfig
from softgate.models.iapt.generator import PromptGenerator, SelfAttentionPool
from softgate.models.iapt.model import IAPTModel, get_iapt_model

__all__ = ["IAPTConfig", "IAPTModel", "PromptGenerator", "SelfAttentionPool", "get_iapt_model"]
