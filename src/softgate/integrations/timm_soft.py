"""Names of the SOFT models in timm's registry: ``timm.create_model("softgate_soft_tiny")``, only when asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from softgate.errors import MissingExtraError
from softgate.integrations import torchvision_cpu
from softgate.models import soft_vit

__all__ = ["register_soft_models"]

_SIZES = ("tiny", "small", "medium", "large", "huge")
#: Arguments that timm hands to every model, under the names of SOFTViTConfig; others of timm's are not known here.
_TRANSLATED = {"img_size": "image_size", "in_chans": "channels", "drop_path_rate": "drop_rate"}
_IGNORED = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")


def register_soft_models() -> list[str]:
    """Register ``softgate_soft_{tiny,…,huge}`` and ``softgate_soft_norm_{…}`` (SOFT and SOFT++) with timm.

    Returns:
        The registered names.

    Raises:
        MissingExtraError: timm is not installed.

    Paper: SOFT, arXiv 2110.11945, table 1.
    """
    torchvision_cpu.repair()
    try:
        from timm.models import register_model
    except ModuleNotFoundError as error:
        raise MissingExtraError("timm", "vision", "registering the SOFT models") from error
    names = []
    for size in _SIZES:
        for normalized in (False, True):
            entry = _entry_point(getattr(soft_vit, f"soft_{size}"), normalized)
            entry.__name__ = f"softgate_soft_{'norm_' if normalized else ''}{size}"
            register_model(entry)
            names.append(entry.__name__)
    return names


def _entry_point(build: Callable[..., soft_vit.SOFTViT], normalized: bool) -> Callable[..., soft_vit.SOFTViT]:
    def create(pretrained: bool = False, **options: Any) -> soft_vit.SOFTViT:
        if pretrained:
            raise ValueError("pretrained must be False: there are no weights for this model")
        for name in _IGNORED:
            options.pop(name, None)
        return build(normalized=normalized, **{_TRANSLATED.get(name, name): v for name, v in options.items()})

    return create
