"""Soft prompts from the instruction in any causal language model of transformers."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError, bad_type
from softgate.models.iapt.adapter import PromptAdapter, prompts_of
from softgate.models.iapt.config import IAPTConfig
from softgate.models.iapt.prefix import bind, cache_name, insert, is_prefixed, parameter_names, unbind
from softgate.models.iapt.selection import Selection, adapters_of_rows, instruction_of, select
from softgate.models.iapt.selftest import prove
from softgate.models.iapt.storage import read, write

__all__ = ["IAPTModel", "get_iapt_model"]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")


def get_iapt_model(model: nn.Module, config: IAPTConfig | None = None, adapter_name: str = "default") -> IAPTModel:
    """Freeze a causal language model and give it soft prompts that are computed from the instruction.

    Before every layer a small generator pools the hidden states of the instruction into a few vectors; they stand
    before the tokens, every token of the layer sees them, and the next layer gets its own. They are computed once per
    sequence and stay in the key-value cache, so that decoding costs what it costs without, plus ``num_tokens`` keys.
    The model keeps its weights and names; what is added lives in the returned wrapper.

    Args:
        model: a causal language model of transformers, which is changed in place (hooks, no gradients);
            :meth:`IAPTModel.unload` takes it back.
        config: sizes and parts; :class:`IAPTConfig` for the defaults.
        adapter_name: name of the first set of prompts.

    Returns:
        The wrapper, called like the model.

    Raises:
        ArgumentTypeError: ``model`` is no such model, or ``config`` no configuration.
        ArgumentValueError: ``adapter_name`` is no name, or ``config`` names layers that are not there.
        StateError: the model has prompts already, or its layers cannot take any.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> import torch
        >>> llama = LlamaForCausalLM(LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24,
        ...                                      num_hidden_layers=2, num_attention_heads=2))
        >>> model = get_iapt_model(llama, IAPTConfig(bottleneck=4))
        >>> model.generate(torch.tensor([[3, 4, 5]]), max_new_tokens=2, do_sample=False).shape
        torch.Size([1, 5])

    Paper: Zhu et al., IAPT: Instruction-Aware Prompt Tuning for Large Language Models, arXiv 2405.18203, sec. 3.
    """
    return IAPTModel(model, IAPTConfig() if config is None else config, adapter_name)


class IAPTModel(nn.Module):
    """A frozen causal language model with named sets of instruction-aware prompts; made by :func:`get_iapt_model`.

    Call it like the model. Two more arguments are understood, by :meth:`forward` and :meth:`generate`:
    ``instruction_mask`` (B, T), 1 where a token belongs to the instruction, and ``adapter_names``, one name (or None
    for no prompts) per row, for batches of different tasks. Without ``instruction_mask`` the instruction is what stands
    before the first label that counts or, without labels, every token that is attended to.

    Args:
        model: the language model.
        config: of the first adapter.
        adapter_name: name of the first adapter.

    Attributes:
        model: the language model; called directly it uses the prompts as well.
        adapters: the adapters by name.
        active: name of the adapter used where a call names none.
        enabled: False after :meth:`disable`.

    Paper: arXiv 2405.18203, sec. 3.
    """

    def __init__(self, model: nn.Module, config: IAPTConfig, adapter_name: str = "default") -> None:
        super().__init__()
        if not hasattr(model, "generate") or not hasattr(model, "config") or not isinstance(model, nn.Module):
            bad_type("model", model, "a causal language model of transformers")
        if hasattr(model, "_softgate_iapt"):
            raise StateError(f"{type(model).__name__} has prompts already: use add_adapter, or unload() first")
        self.model, self.adapters = model, nn.ModuleDict()
        self.active, self.enabled = adapter_name, True
        self._selection: Selection | None = None
        self._inside = False
        self._asked: dict[str, Any] = {}
        layers = _decoder_layers(model)
        self._num_layers = len(layers)
        self.add_adapter(adapter_name, config)
        self._learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in self._learned:
            parameter.requires_grad_(False)
        self._handles = [
            model.register_forward_pre_hook(self._before_model, with_kwargs=True),
            model.register_forward_hook(self._after_model, always_call=True),
        ]
        for index, layer in enumerate(layers):
            before = functools.partial(self._before_layer, index)
            self._handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
        model._softgate_iapt = True  # type: ignore[assignment]
        try:
            prove(self)
        except Exception:
            self.unload()
            raise

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the language model returns, with prompts; see the class for the two further arguments."""
        return self.model(*args, **kwargs)

    def generate(
        self,
        *args: Any,
        instruction_mask: Tensor | None = None,
        adapter_names: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> Any:
        """``generate`` of the language model; the prompts are computed from what it is given to continue.

        Args:
            *args: as the model's ``generate``.
            instruction_mask: (B, T), 1 where a token belongs to the instruction; by default all that are attended to.
            adapter_names: one adapter name or None per row.
            **kwargs: as the model's ``generate``.
        """
        self._asked = {"instruction_mask": instruction_mask, "adapter_names": adapter_names}
        try:
            return self.model.generate(*args, **kwargs)  # type: ignore[operator]
        finally:
            self._asked = {}

    def add_adapter(self, name: str, config: IAPTConfig) -> None:
        """Add a set of prompts for another task, on the device of the model, in float32 at least."""
        if not isinstance(config, IAPTConfig):
            bad_type("config", config, "an IAPTConfig")
        if not isinstance(name, str) or not _NAME.fullmatch(name) or hasattr(nn.ModuleDict, name):
            raise ArgumentValueError(f"adapter_name must be a name of letters, digits, - and _, got {name!r}")
        if name in self.adapters:
            raise StateError(f"there is an adapter called {name!r} already")
        like = next(self.model.parameters())
        dtype = torch.promote_types(like.dtype if like.is_floating_point() else torch.float32, torch.float32)
        adapter = PromptAdapter(config, self.model.config.hidden_size, self._num_layers)  # type: ignore[union-attr,arg-type]
        self.adapters[name] = adapter.to(like.device, dtype).train(self.training)

    def delete_adapter(self, name: str) -> None:
        """Remove a set of prompts; the active one cannot be removed."""
        self._check_known(name)
        if name == self.active:
            raise StateError(f"adapter {name!r} is active: set_adapter to another one first")
        del self.adapters[name]

    def set_adapter(self, name: str) -> None:
        """Choose the adapter of calls that name none."""
        self._check_known(name)
        self.active = name

    def enable(self) -> None:
        """Use prompts again."""
        self.enabled = True

    def disable(self) -> None:
        """Use no prompts: the language model computes to the bit what it computed before there were any."""
        self.enabled = False

    def learn(self, part: str = "all", adapter: str | None = None) -> None:
        """Choose what gets gradients.

        Args:
            part: ``"all"``; ``"generator"``, without the coefficients of the activations; ``"activation"``, these
                alone; ``"none"``. Alternating the two on two halves of the data is the paper's bi-level training.
            adapter: whose parameters; the active adapter's if None.
        """
        chosen = self.adapters[self._check_known(self.active if adapter is None else adapter)]
        assert isinstance(chosen, PromptAdapter)
        chosen.learn(part)

    def num_parameters(self, adapter: str | None = None) -> int:
        """Parameters of one adapter (the active one if None), shared ones once."""
        chosen = self.adapters[self._check_known(self.active if adapter is None else adapter)]
        return sum(parameter.numel() for parameter in chosen.parameters())

    def unload(self) -> nn.Module:
        """Take the prompts out of the language model and return it as it was."""
        for handle in self._handles:
            handle.remove()
        for parameter in self._learned:
            parameter.requires_grad_(True)
        self._handles, self._learned = [], []
        if hasattr(self.model, "_softgate_iapt"):
            del self.model._softgate_iapt
        return self.model

    def save_pretrained(self, folder: str | Path, adapters: Sequence[str] | None = None) -> None:
        """Write adapters, not the language model: ``iapt.json`` and one safetensors file per adapter.

        Args:
            folder: created if needed.
            adapters: names; all if None.
        """
        names = list(self.adapters) if adapters is None else [self._check_known(name) for name in adapters]
        chosen: dict[str, Any] = {name: self.adapters[name] for name in names}
        write(Path(folder), chosen, self._shape())

    @classmethod
    def from_pretrained(cls, model: nn.Module, folder: str | Path, adapters: Sequence[str] | None = None) -> IAPTModel:
        """Put saved adapters into a language model; the first one is active.

        Args:
            model: a model of the width and depth that they were made for.
            folder: what :meth:`save_pretrained` wrote.
            adapters: names; all if None.

        Raises:
            ArgumentValueError: a name is not there.
            StateError: a file is missing or damaged, or the model has other sizes.
        """
        saved = read(Path(folder), adapters)
        first, *_ = saved.adapters
        wrapped = cls(model, saved.adapters[first].config, first)
        saved.check(wrapped._shape())
        for name, entry in saved.adapters.items():
            if name != first:
                wrapped.add_adapter(name, entry.config)
            entry.fill(wrapped.adapters[name])
        return wrapped

    def load_adapter(self, folder: str | Path, name: str) -> None:
        """Add one saved adapter; errors as those of :meth:`from_pretrained`."""
        saved = read(Path(folder), [name])
        saved.check(self._shape())
        self.add_adapter(name, saved.adapters[name].config)
        saved.adapters[name].fill(self.adapters[name])

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":
                raise
            return getattr(self.model, name)  # config, device, gradient_checkpointing_enable, …

    def _shape(self) -> dict[str, int]:
        return {"width": self.model.config.hidden_size, "layers": self._num_layers}  # type: ignore[union-attr,dict-item]

    def _check_known(self, name: str) -> str:
        if name not in self.adapters:
            raise ArgumentValueError(f"adapter must be one of {sorted(self.adapters)}, got {name!r}")
        return name

    def _before_model(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Note what this pass asks for; the layers read it."""
        asked = {name: kwargs.pop(name, None) for name in ("instruction_mask", "adapter_names")}
        asked = {name: self._asked.get(name) if value is None else value for name, value in asked.items()}
        self._inside, self._selection = True, None
        if self.enabled:
            given = inspect.signature(type(model).forward).bind(model, *args, **kwargs).arguments
            self._selection = self._select({**given, **given.get("kwargs", {})}, asked)
        return args, kwargs

    def _select(self, given: dict[str, Any], asked: dict[str, Any]) -> Selection | None:
        tokens = given.get("input_ids") if given.get("inputs_embeds") is None else given["inputs_embeds"]
        if not isinstance(tokens, Tensor):
            raise ArgumentTypeError("input_ids or inputs_embeds must be a tensor")
        names = adapters_of_rows(asked["adapter_names"], self.active, self.adapters.keys(), len(tokens))
        cache = given.get("past_key_values")
        if cache is not None and cache.get_seq_length() > 0:
            if not is_prefixed(cache) and any(names):
                raise StateError("the cache was filled without prompts: start with the instruction, or disable() them")
            return None  # the prompts stand in the cache: they are made from the instruction, once
        mask = asked["instruction_mask"]
        selection = select(instruction_of(mask, given.get("attention_mask"), given.get("labels"), tokens), names)
        if selection is not None:
            self._check_window(tokens.shape[1], selection)
        return selection

    def _check_window(self, length: int, selection: Selection) -> None:
        window = getattr(self.model.config, "max_position_embeddings", None)
        adapters: list[Any] = [self.adapters[name] for name, _ in selection.groups]
        count = max(adapter.config.num_tokens for adapter in adapters)
        if isinstance(window, int) and length + count > window:
            raise ArgumentValueError(
                f"input_ids must fit the model's window of {window} together with {count} prompts, got length {length}"
            )

    def _after_model(self, model: nn.Module, args: Any, output: Any) -> None:
        self._inside, self._selection = False, None

    def _before_layer(
        self, index: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Put the prompts before the keys and values of a layer."""
        if not self._inside and self.enabled:
            raise StateError("a layer was called outside of the language model: call the model that has the prompts")
        given = bind(layer, args, kwargs)
        prompts: Tensor | None = None
        visible: Tensor | None = None
        names = parameter_names(type(layer))
        if self._selection is not None:
            prompts, visible = prompts_of(self.adapters, index, given[names[0]], self._selection)
        implementation = str(getattr(self.model.config, "_attn_implementation", ""))
        if not insert(layer, index, given, prompts, visible, implementation):
            return None
        return unbind(given, names, len(args))


def _decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The layers of the decoder: the first list of modules of the length that the configuration names."""
    config: Any = model.config
    count = getattr(config, "num_hidden_layers", None)
    if getattr(config, "is_encoder_decoder", False):
        raise ArgumentTypeError(f"model must be a decoder, got the encoder-decoder {type(model).__name__}")
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            kind = type(module[0])
            if not cache_name(kind) or "attention_mask" not in parameter_names(kind):
                raise StateError(f"{kind.__name__} takes no cache and mask: it cannot have prompts")
            return module
    raise StateError(f"{type(model).__name__} has no list of {count} decoder layers")
