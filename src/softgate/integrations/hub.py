"""The Hugging Face hub from a command: one short question first, so that a machine without network is told at once.

Left to itself a lookup retries every file for half a minute, and then says only that it could not connect.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["hub_or_cache"]

#: How long the hub may take to answer whether it has a model, in seconds.
TIMEOUT_SECONDS = 8.0


@contextmanager
def hub_or_cache(repository: str) -> Iterator[str]:
    """Ask the hub for ``repository``; where it does not answer, whatever the block loads comes from the cache alone.

    Args:
        repository: ``owner/name`` or the name of a model without an owner.

    Yields:
        Why the model can come from the cache alone and what to do if it is not there; empty where the hub has it.
    """
    from huggingface_hub import constants

    advice = _why_offline(constants.HF_HUB_OFFLINE, repository)
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = bool(advice)  # read at every request; an argument would have to pass three libraries
    try:
        yield advice
    finally:
        constants.HF_HUB_OFFLINE = before


def _why_offline(switched_off: bool, repository: str) -> str:
    """Why the hub cannot be used and what to do instead, empty if it can."""
    instead = "give a local folder, or load the model once on a machine with network and copy the cache (HF_HOME)"
    if switched_off:
        return f"HF_HUB_OFFLINE=1 is set and the model is not in the cache: unset it, or {instead}"
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        _ask(repository)
    except (RepositoryNotFoundError, HFValidationError):
        return (
            "the hub shows no such model, and it is not in the cache: correct the name, sign in with `hf auth login` "
            "if the model is private or gated, or give a local folder"
        )
    except Exception as error:  # no network has many names: those of three HTTP libraries, OSError, a proxy's HTML
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        return (
            f"the hub did not answer ({text}), and the model is not in the cache: {instead}; HF_HUB_OFFLINE=1 skips "
            "the question"
        )
    return ""


def _ask(repository: str) -> Any:
    from huggingface_hub import HfApi

    return HfApi().model_info(repository, timeout=TIMEOUT_SECONDS)
