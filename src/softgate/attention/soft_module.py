"""Softmax-free attention as a layer over a map of tokens, with landmarks from a strided convolution."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softgate.attention.relu_linear import check_key_padding
from softgate.attention.soft import gaussian_kernel, newton_residual, newton_schulz_pinv, softmax_free_attention
from softgate.attention.soft.newton import Alpha, check_newton
from softgate.attention.soft.reference import INVERSES, Inverse
from softgate.errors import ArgumentValueError, bad_type, bad_value, check_choice

__all__ = ["SoftmaxFreeAttention"]


class SoftmaxFreeAttention(nn.Module):
    """Multi-head softmax-free attention (SOFT, SOFT++) over a height x width map of tokens, in linear time.

    Queries, which are the keys as well, are divided by d^(1/4). Landmarks are a convolution of them with kernel and
    stride ``ratio``, shared by all heads, then LayerNorm and GELU; m = floor(height/ratio) · floor(width/ratio). A
    depth-wise convolution of the values (one filter per head) is added to the output.

    Args:
        embed_dim: width of the tokens.
        num_heads: heads; must divide ``embed_dim``.
        ratio: side of the patch of tokens that a landmark stands for, at least 1.
        conv_size: side of the depth-wise filters, odd; 0 leaves the convolution out. The paper takes 9, 5 and 3 in its
            stages 1, 2 and 3.
        normalized: SOFT++ if True, SOFT if False.
        newton_iters: steps of Newton's iteration.
        inverse: ``"newton"``, ``"cholesky"`` or ``"pinv"``; may be changed later, for instance for inference.
        ridge: added to the diagonal before inverting. SOFT's code has 0.01, SOFT++'s none.
        alpha: step size of Newton's iteration; SOFT's code has ``"per_matrix"``, SOFT++'s ``"global"``.
        implicit_grad: gradient of the inverse in closed form, as in SOFT's code; SOFT++'s differentiates the steps.

    Shapes: (B, height · width, embed_dim) with the size of the map, or (B, embed_dim, height, width); the same out.

    Raises:
        ArgumentValueError: sizes or numbers that do not fit.
        ArgumentTypeError: wrong types.

    Example:
        >>> import torch
        >>> layer = SoftmaxFreeAttention(32, 2, ratio=4)
        >>> layer(torch.randn(2, 14 * 14, 32), 14, 14).shape
        torch.Size([2, 196, 32])

    Paper: SOFT, arXiv 2110.11945, section 3; SOFT++, arXiv 2207.03341.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        ratio: int,
        conv_size: int = 3,
        normalized: bool = True,
        newton_iters: int = 20,
        *,
        inverse: Inverse = "newton",
        ridge: float = 0.01,
        alpha: Alpha = "per_matrix",
        implicit_grad: bool = True,
    ) -> None:
        super().__init__()
        _check_sizes(embed_dim, num_heads, ratio, conv_size)
        if not isinstance(normalized, bool):
            bad_type("normalized", normalized, "a bool")
        check_choice("inverse", inverse, INVERSES)
        check_newton(newton_iters, ridge, alpha, implicit_grad, iters_name="newton_iters")
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, embed_dim // num_heads
        self.ratio, self.conv_size, self.normalized, self.inverse = ratio, conv_size, normalized, inverse
        self.newton_iters, self.ridge, self.alpha, self.implicit_grad = newton_iters, ridge, alpha, implicit_grad
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.v_proj = nn.Linear(embed_dim, embed_dim)
        self.o_proj = nn.Linear(embed_dim, embed_dim)
        self.landmark_conv = nn.Conv2d(self.head_dim, self.head_dim, ratio, stride=ratio, bias=False)
        self.landmark_norm = nn.LayerNorm(self.head_dim)
        self.value_conv: nn.Conv2d | None = None
        if conv_size:
            self.value_conv = nn.Conv2d(
                num_heads, num_heads, conv_size, padding=conv_size // 2, groups=num_heads, bias=False
            )

    def forward(
        self,
        x: Tensor,
        height: int | None = None,
        width: int | None = None,
        *,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        cache: Any = None,
    ) -> Tensor:
        """Mix the tokens of a map.

        Args:
            x: (B, height · width, embed_dim), row by row, or (B, embed_dim, height, width).
            height: rows of the map; not needed for a four-dimensional ``x``.
            width: columns of the map; likewise.
            key_padding_mask: bool (B, height · width), True = real token. Padded tokens get the output projection's
                bias plus what the depth-wise convolution brings from their neighbours; they themselves count nowhere.
            attn_mask: None; anything else raises.
            is_causal: False; True raises.
            cache: None; anything else raises, there is no decoding step by step.

        Raises:
            ArgumentValueError: shapes that do not fit, or a map smaller than ``ratio``.
        """
        if cache is not None:
            raise ArgumentValueError(
                "cache must be None: landmarks pool all positions, so there is no decoding step by step; take a causal "
                "layer, such as softgate.attention.GatedAttention"
            )
        tokens, height, width = self._tokens(x, height, width)
        q_BHND, landmarks_BHMD = self._query_and_landmarks(tokens, height, width, key_padding_mask)
        v_BNE = self.v_proj(tokens)
        if key_padding_mask is not None:
            v_BNE = v_BNE.masked_fill(~key_padding_mask[..., None], 0.0)
        y_BHND = softmax_free_attention(
            q_BHND,
            self._heads(v_BNE),
            landmarks_BHMD,
            normalized=self.normalized,
            inverse=self.inverse,
            newton_iters=self.newton_iters,
            ridge=self.ridge,
            alpha=self.alpha,
            implicit_grad=self.implicit_grad,
            key_padding_mask=key_padding_mask,
            attn_mask=attn_mask,
            is_causal=is_causal,
        )
        y_BNE = y_BHND.transpose(1, 2).flatten(2)
        if self.value_conv is not None:
            y_BNE = y_BNE + self._local(self.value_conv, v_BNE, height, width)
        y_BNE = self.o_proj(y_BNE)
        return y_BNE.mT.unflatten(-1, (height, width)) if x.ndim == 4 else y_BNE

    @torch.no_grad()
    def newton_residual(self, x: Tensor, height: int | None = None, width: int | None = None) -> Tensor:
        """How far Newton's iteration is from an inverse on these tokens; see ``softgate.attention.newton_residual``.

        Returns:
            (B, num_heads); 1 or more says that ``newton_iters`` is too small for how close the landmarks lie.
        """
        _, landmarks_BHMD = self._query_and_landmarks(*self._tokens(x, height, width), None)
        gram_BHMM = gaussian_kernel(landmarks_BHMD.float(), landmarks_BHMD.float())
        inverse_BHMM = newton_schulz_pinv(gram_BHMM, self.newton_iters, self.ridge, self.alpha)
        return newton_residual(gram_BHMM, inverse_BHMM, ridge=self.ridge)

    def _tokens(self, x: Tensor, height: int | None, width: int | None) -> tuple[Tensor, int, int]:
        """Tokens (B, N, E) and the size of their map, after checking that they fit."""
        if not isinstance(x, Tensor):
            bad_type("x", x, "a torch.Tensor")
        if x.ndim == 4:
            height = x.shape[2] if height is None else height
            width = x.shape[3] if width is None else width
        for name, size in (("height", height), ("width", width)):
            if isinstance(size, bool) or not isinstance(size, int | torch.SymInt):
                bad_type(name, size, "an int, the size of the map (or x of four dimensions)")
            if size < self.ratio:
                bad_value(name, size, f"at least ratio={self.ratio}")
        assert height is not None and width is not None
        fits = x.shape[1:] == (height * width, self.embed_dim) or x.shape[1:] == (self.embed_dim, height, width)
        if not fits:
            raise ArgumentValueError(
                f"x must have shape (batch, height * width = {height * width}, {self.embed_dim}) or (batch, "
                f"{self.embed_dim}, {height}, {width}), got {tuple(x.shape)}"
            )
        return (x.flatten(2).mT if x.ndim == 4 else x), height, width

    def _query_and_landmarks(
        self, tokens: Tensor, height: int, width: int, keep: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Scaled queries (B, H, N, D) and landmarks (B, H, M, D); padded tokens enter the convolution as zeros."""
        q_BHND = self._heads(self.q_proj(tokens)) * self.head_dim**-0.25
        if keep is not None:
            keep = check_key_padding(keep, q_BHND)
            q_BHND = q_BHND.masked_fill(~keep[:, None, :, None], 0.0)
        map_BDHW = q_BHND.reshape(-1, height, width, self.head_dim).permute(0, 3, 1, 2)
        pooled_BMD = self.landmark_conv(map_BDHW).flatten(2).mT
        landmarks_BMD = F.gelu(self.landmark_norm(pooled_BMD))
        return q_BHND, landmarks_BMD.reshape(*q_BHND.shape[:2], *landmarks_BMD.shape[1:]).to(q_BHND.dtype)

    def _heads(self, flat: Tensor) -> Tensor:
        return flat.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _local(self, conv: nn.Conv2d, v_BNE: Tensor, height: int, width: int) -> Tensor:
        """The head's filter on each of its features; a filter per head, not per feature."""
        map_BEHW = v_BNE.unflatten(1, (height, width)).permute(0, 3, 1, 2)
        filters = conv.weight.repeat_interleave(self.head_dim, 0)
        return F.conv2d(map_BEHW, filters, padding=conv.padding, groups=self.embed_dim).flatten(2).mT  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        """Show the sizes and the kind."""
        return (
            f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, ratio={self.ratio}, conv_size={self.conv_size}, "
            f"normalized={self.normalized}, newton_iters={self.newton_iters}, inverse={self.inverse!r}, "
            f"ridge={self.ridge}"
        )


def _check_sizes(embed_dim: Any, num_heads: Any, ratio: Any, conv_size: Any) -> None:
    for name, size in (("embed_dim", embed_dim), ("num_heads", num_heads), ("ratio", ratio), ("conv_size", conv_size)):
        if isinstance(size, bool) or not isinstance(size, int):
            bad_type(name, size, "an int")
        if name != "conv_size" and size < 1:
            bad_value(name, size, "at least 1")
    if conv_size != 0 and (conv_size < 0 or conv_size % 2 == 0):
        bad_value("conv_size", conv_size, "a positive odd int, or 0 for none")
    if embed_dim % num_heads:
        bad_value("embed_dim", embed_dim, f"a multiple of num_heads={num_heads}")
