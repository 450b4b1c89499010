"""A small modern GPT, the test bench of attention functions, activations and losses."""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from softgate._checks import check_number
from softgate.attention.cache import KVCache, LayerCache
from softgate.attention.gated_module import GatedAttention
from softgate.attention.multihead import BaseAttention, MultiHeadAttention, QKNorm
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type, bad_value, check_choice

__all__ = ["GPT", "GPTConfig"]

_INIT_STD = 0.02
_TORCH_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": nn.functional.silu,
    "gelu": nn.functional.gelu,
    "relu": nn.functional.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


@dataclass(frozen=True)
class GPTConfig:
    """Sizes and parts of a :class:`GPT`.

    Attributes:
        vocab_size: number of tokens V.
        num_layers: blocks.
        num_heads: query heads.
        embed_dim: width of the residual stream.
        num_kv_heads: key/value heads, ``num_heads`` if None (multi-head), 1 for multi-query attention.
        head_dim: features per head, ``embed_dim / num_heads`` if None.
        hidden_dim: width of the feed-forward layer; None gives 8/3 ``embed_dim`` (``glu``) or 4 ``embed_dim``
            (``mlp``), rounded up to a multiple of 8.
        attention: ``"softmax"``; ``"gated"``; the name of a function ``softgate.attention.<name>_attention``; a
            callable with the signature of ``scaled_dot_product_attention`` that aligns ``is_causal`` bottom-right; or
            a module class, called with (embed_dim, num_heads, num_kv_heads, head_dim, **attention_options), whose
            forward takes hidden states, ``attn_mask`` and (for decoding) ``cache`` as :class:`GatedAttention` does.
        attention_options: further arguments of the attention function, of the module class, or, for ``"gated"``, of
            :class:`GatedAttention`, e.g. ``{"granularity": "headwise"}``.
        ffn: ``"glu"`` computes ``W₃(act(W₁x) ⊙ W₂x)`` (SwiGLU with the default activation), ``"mlp"`` ``W₃ act(W₁x)``.
        activation: ``"silu"``, ``"gelu"``, ``"relu"``, ``"tanh"``, ``"sigmoid"``, a name in ``softgate.activations``,
            a function, or a module class, of which each block gets an instance.
        loss: ``"cross_entropy"``, a name in ``softgate.losses`` (with or without ``_cross_entropy``), or a callable
            with the signature of ``torch.nn.functional.cross_entropy``.
        qk_norm: norm of queries and keys per head: True or ``"rms"``, ``"layer"``, False or ``"none"``.
        rope: base of the rotary positions, None for none.
        learned_positions: number of learned position embeddings, which then bounds the length; None for none.
        bias: biases in the attention and feed-forward layers.
        tied_head: the head shares the embedding's weights.
        dropout: of the embeddings, the attention weights and the output of both halves of a block.
        norm_eps: epsilon of the RMSNorms.
    """

    vocab_size: int
    num_layers: int
    num_heads: int
    embed_dim: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    hidden_dim: int | None = None
    attention: str | Callable[..., Any] = "softmax"
    attention_options: Mapping[str, Any] = field(default_factory=dict)
    ffn: Literal["glu", "mlp"] = "glu"
    activation: str | Callable[..., Any] = "silu"
    loss: str | Callable[..., Tensor] = "cross_entropy"
    qk_norm: QKNorm = False
    rope: float | None = 10000.0
    learned_positions: int | None = None
    bias: bool = False
    tied_head: bool = False
    dropout: float = 0.0
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        optional = ("num_kv_heads", "head_dim", "hidden_dim", "learned_positions")
        for name in ("vocab_size", "num_layers", "num_heads", "embed_dim", *optional):
            value = getattr(self, name)
            if value is None and name in optional:
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                bad_type(name, value, "a positive int")
            if value < 1:
                bad_value(name, value, "a positive int")
        if self.num_heads % (self.num_kv_heads or self.num_heads):
            bad_value("num_kv_heads", self.num_kv_heads, f"a divisor of num_heads={self.num_heads}")
        if self.head_dim is None and self.embed_dim % self.num_heads:
            bad_value(
                "embed_dim", self.embed_dim, f"a multiple of num_heads={self.num_heads}, unless head_dim is given"
            )
        head_dim = self.head_dim or self.embed_dim // self.num_heads
        if self.rope is not None and head_dim % 2:
            bad_value("head_dim", head_dim, "even, as rotary positions need (or set rope=None)")
        check_choice("ffn", self.ffn, ("glu", "mlp"))
        check_number("dropout", self.dropout, low=0.0, high=1.0, high_open=True)
        check_number("norm_eps", self.norm_eps, low=0.0, low_open=True)


class GPT(nn.Module):
    """Decoder-only transformer: pre-norm RMSNorm, rotary positions, grouped-query attention, SwiGLU.

    Weights start from N(0, 0.02²); the two layers of a block that write into the residual stream start smaller by
    ``sqrt(2 num_layers)``, so that the stream's variance does not grow with depth.

    Args:
        config: sizes and parts.

    Shapes: tokens (B, T) -> logits (B, T, vocab_size).

    Example:
        >>> import torch
        >>> model = GPT(GPTConfig(vocab_size=16, num_layers=1, num_heads=2, embed_dim=8, attention="gated"))
        >>> logits, loss = model(torch.zeros(1, 4, dtype=torch.long), targets=torch.ones(1, 4, dtype=torch.long))
        >>> logits.shape, loss.shape
        (torch.Size([1, 4, 16]), torch.Size([]))
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.embed_dim)
        self.positions = None
        if config.learned_positions is not None:
            self.positions = nn.Embedding(config.learned_positions, config.embed_dim)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.embed_dim, eps=config.norm_eps)
        self.head = nn.Linear(config.embed_dim, config.vocab_size, bias=False)
        if config.tied_head:
            self.head.weight = self.embedding.weight
        self._loss = _loss_function(config.loss)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all matrices anew; attention modules other than softgate's keep their own initialisation."""
        for embedding in (self.embedding, self.positions):
            if embedding is not None:
                nn.init.normal_(embedding.weight, std=_INIT_STD)
        if not self.config.tied_head:
            nn.init.normal_(self.head.weight, std=_INIT_STD)
        residual_std = _INIT_STD / math.sqrt(2 * self.config.num_layers)
        for block in self.blocks:
            assert isinstance(block, _Block)
            block.ffn.reset_parameters(residual_std)
            if isinstance(block.attention, BaseAttention):
                block.attention.reset_parameters()
                nn.init.normal_(block.attention.o_proj.weight, std=residual_std)

    @overload
    def forward(
        self,
        tokens: Tensor,
        targets: None = None,
        cache: Sequence[LayerCache] | None = None,
        *,
        attn_mask: Tensor | None = None,
    ) -> Tensor: ...
    @overload
    def forward(
        self,
        tokens: Tensor,
        targets: Tensor,
        cache: Sequence[LayerCache] | None = None,
        *,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]: ...
    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        cache: Sequence[LayerCache] | None = None,
        *,
        attn_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits of every next token, and the loss if ``targets`` are given.

        Args:
            tokens: (B, T) integers in [0, vocab_size).
            targets: (B, T) integers, -100 where a position does not count.
            cache: from :meth:`new_cache`; ``tokens`` then continue those seen before.
            attn_mask: broadcastable to (B, H, T, S), in addition to the causal mask.

        Returns:
            logits (B, T, V), or (logits, loss).
        """
        if tokens.ndim != 2 or tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
            raise ArgumentValueError(
                f"tokens must be integers of shape (B, T), got {tuple(tokens.shape)} {tokens.dtype}"
            )
        if targets is not None and targets.shape != tokens.shape:
            raise ArgumentValueError(
                f"targets must have the shape of tokens {tuple(tokens.shape)}, got {tuple(targets.shape)}"
            )
        if cache is not None and len(cache) != len(self.blocks):
            raise ArgumentValueError(
                f"cache must have one entry for each of {len(self.blocks)} layers, got {len(cache)}"
            )
        x = self.embedding(tokens)
        if self.positions is not None:
            x = x + self._position_embeddings(tokens, cache)
        x = self.dropout(x)
        for index, block in enumerate(self.blocks):
            x = block(x, None if cache is None else cache[index], attn_mask)
        logits = self.head(self.norm(x))
        if targets is None:
            return logits
        return logits, self._loss(logits.flatten(0, 1), targets.flatten())

    def _position_embeddings(self, tokens: Tensor, cache: Sequence[LayerCache] | None) -> Tensor:
        assert self.positions is not None
        start = cache[0].length if cache else 0
        end = start + tokens.shape[1]
        if end > self.positions.num_embeddings:
            raise ArgumentValueError(
                f"tokens must end within the {self.positions.num_embeddings} learned positions, got length {end}"
            )
        return self.positions.weight[start:end]

    def new_cache(self, capacity: int = 64) -> list[LayerCache]:
        """An empty cache for each layer, of the kind that its attention module makes (``new_cache``) if it does."""
        modules: list[Any] = [block.attention for block in self.blocks]
        return [m.new_cache(capacity) if hasattr(m, "new_cache") else KVCache(capacity) for m in modules]

    @torch.no_grad()
    def generate(
        self,
        tokens: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
        *,
        cache: Literal["kv", "none"] = "kv",
    ) -> Tensor:
        """Continue ``tokens``.

        Args:
            tokens: (B, T) prompts, T ≥ 1.
            max_new_tokens: how many tokens to add.
            temperature: divides the logits; 0 takes the most probable token.
            top_k: draw among the k most probable tokens only.
            generator: source of randomness.
            cache: ``"kv"`` computes only the new token in each step, ``"none"`` everything anew.

        Returns:
            (B, T + max_new_tokens).
        """
        check_number("temperature", temperature, low=0.0)
        check_choice("cache", cache, ("kv", "none"))
        if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 0:
            bad_value("max_new_tokens", max_new_tokens, "a non-negative int")
        if top_k is not None and (
            isinstance(top_k, bool) or not isinstance(top_k, int) or not 1 <= top_k <= self.config.vocab_size
        ):
            bad_value("top_k", top_k, f"None or an int between 1 and vocab_size={self.config.vocab_size}")
        if tokens.ndim != 2 or tokens.shape[1] == 0:
            bad_value("tokens", tuple(tokens.shape), "of shape (B, T) with T >= 1")
        caches = self.new_cache(tokens.shape[1] + max_new_tokens) if cache == "kv" else None
        training = self.training
        self.eval()
        try:
            new = tokens
            for _ in range(max_new_tokens):
                logits = self(tokens if caches is None else new, cache=caches)[:, -1].float()
                new = _draw(logits, temperature, top_k, generator)
                tokens = torch.cat((tokens, new), dim=1)
        finally:
            self.train(training)
        return tokens

    def num_parameters(self, *, embeddings: bool = True) -> int:
        """Number of parameters, tied ones once; optionally without the token embedding (and a tied head)."""
        count = sum(p.numel() for p in self.parameters())
        return count if embeddings else count - self.embedding.weight.numel()


class _Block(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.embed_dim, eps=config.norm_eps)
        self.attention = _attention_module(config)
        self.ffn_norm = nn.RMSNorm(config.embed_dim, eps=config.norm_eps)
        self.ffn = _FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, cache: LayerCache | None, attn_mask: Tensor | None) -> Tensor:
        options: dict[str, Any] = {} if cache is None else {"cache": cache}
        x = x + self.dropout(self.attention(self.attention_norm(x), attn_mask=attn_mask, is_causal=True, **options))
        return x + self.dropout(self.ffn(self.ffn_norm(x)))


class _FeedForward(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        ratio = 8 / 3 if config.ffn == "glu" else 4
        hidden = config.hidden_dim or 8 * math.ceil(ratio * config.embed_dim / 8)
        self.w_in = nn.Linear(config.embed_dim, hidden, bias=config.bias)
        self.w_gate = nn.Linear(config.embed_dim, hidden, bias=config.bias) if config.ffn == "glu" else None
        self.w_out = nn.Linear(hidden, config.embed_dim, bias=config.bias)
        self.activation = _activation(config.activation)

    def forward(self, x: Tensor) -> Tensor:
        if self.w_gate is None:
            return self.w_out(self.activation(self.w_in(x)))
        return self.w_out(self.activation(self.w_gate(x)) * self.w_in(x))

    def reset_parameters(self, residual_std: float) -> None:
        for layer in (self.w_in, self.w_gate, self.w_out):
            if layer is not None:
                nn.init.normal_(layer.weight, std=residual_std if layer is self.w_out else _INIT_STD)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)


def _attention_module(config: GPTConfig) -> nn.Module:
    options = dict(config.attention_options)
    sizes = (config.embed_dim, config.num_heads, config.num_kv_heads, config.head_dim)
    if _makes_module(config.attention):
        return config.attention(*sizes, **options)  # type: ignore[operator]
    if not isinstance(config.attention, str) and not callable(config.attention):
        bad_type("attention", config.attention, "a name, a callable or a module class")
    shared: dict[str, Any] = {
        "qk_norm": config.qk_norm,
        "rope": config.rope,
        "bias": config.bias,
        "dropout": config.dropout,
    }
    if config.attention == "gated":
        return GatedAttention(*sizes, **{**shared, **options})
    return MultiHeadAttention(*sizes, attention=config.attention, attention_options=options, **shared)


def _makes_module(part: Any) -> bool:
    """Whether ``part`` is a module class, bare or with arguments bound by ``functools.partial``."""
    if isinstance(part, functools.partial):
        return _makes_module(part.func)
    return isinstance(part, type) and issubclass(part, nn.Module)


def _activation(activation: str | Callable[..., Any]) -> Callable[[Tensor], Tensor]:
    if isinstance(activation, str):
        if activation in _TORCH_ACTIVATIONS:
            return _TORCH_ACTIVATIONS[activation]
        activation = _from_room("activation", "activations", activation, [activation], tuple(_TORCH_ACTIVATIONS))
    if not callable(activation):
        raise ArgumentTypeError(f"activation must be a name or a callable, got {type(activation).__name__}")
    return activation() if _makes_module(activation) else activation


def _loss_function(loss: str | Callable[..., Tensor]) -> Callable[..., Tensor]:
    if loss == "cross_entropy":
        return nn.functional.cross_entropy
    if isinstance(loss, str):
        return _from_room("loss", "losses", loss, [loss, f"{loss}_cross_entropy"], ("cross_entropy",))
    if not callable(loss):
        raise ArgumentTypeError(f"loss must be a name or a callable, got {type(loss).__name__}")
    made: Callable[..., Tensor] = loss() if _makes_module(loss) else loss  # type: ignore[assignment]
    return made


def _from_room(
    argument: str, room: str, name: str, candidates: list[str], known: tuple[str, ...]
) -> Callable[..., Any]:
    """The public object of ``softgate.<room>`` called like one of ``candidates``."""
    try:
        package = importlib.import_module(f"softgate.{room}")
    except ModuleNotFoundError as error:
        if error.name != f"softgate.{room}":
            raise
        return bad_value(argument, name, "one of " + ", ".join(map(repr, known)))
    public = [candidate for candidate in candidates if candidate in package.__all__]
    if not public:
        bad_value(argument, name, "one of " + ", ".join(map(repr, [*known, *package.__all__])))
    return getattr(package, public[0])


def _draw(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None) -> Tensor:
    """One token per row of ``logits`` (B, V), as (B, 1)."""
    if temperature == 0.0:
        return logits.argmax(-1, keepdim=True)
    if top_k is not None:
        smallest = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    return torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
