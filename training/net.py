"""A differentiable BailingMoeV2 with its MTP layer, in plain torch: fp32 parameters, bf16 (or any) compute."""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from training.moe import DenseFfn, MoeFfn
from training.shape import Shape


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale and normalise: w · cast(x · rsqrt(mean(x²) + eps)), statistics in fp32 (model-spec §2.2)."""
    u = x.float()
    u = u * torch.rsqrt(u.square().mean(-1, keepdim=True) + eps)
    return weight.to(x.dtype) * u.to(x.dtype)


class Rotation:
    """Cosines and sines of the rotated half of a head, for positions [0, num_positions)."""

    def __init__(self, shape: Shape, num_positions: int, dtype: torch.dtype) -> None:
        half = shape.rotary_dim // 2
        inv_freq = shape.rope_theta ** (-torch.arange(half, dtype=torch.float32) / half)
        angles = torch.arange(num_positions, dtype=torch.float32)[:, None] * inv_freq
        self.cos, self.sin = angles.cos().to(dtype)[:, None], angles.sin().to(dtype)[:, None]
        self.half = half

    def __call__(self, z: Tensor) -> Tensor:
        """Turn z [B, S, A, D] into the same, first `2·half` dimensions rotated, the rest passed through."""
        a, b, rest = torch.split(z, [self.half, self.half, z.shape[-1] - 2 * self.half], dim=-1)
        return torch.cat([a * self.cos - b * self.sin, b * self.cos + a * self.sin, rest], dim=-1)


class Attention(nn.Module):
    """Grouped-query attention with per-head QK-norm and partial rotary embedding."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        hidden, heads_width = shape.hidden_size, shape.num_attention_heads * shape.head_dim
        self.shape = shape
        self.qkv = nn.Parameter(torch.randn(shape.qkv_rows, hidden) * hidden**-0.5)
        self.query_norm = nn.Parameter(torch.ones(shape.head_dim))
        self.key_norm = nn.Parameter(torch.ones(shape.head_dim))
        self.out = nn.Parameter(torch.randn(hidden, heads_width) * (0.3 * heads_width**-0.5))

    def forward(self, x: Tensor, rotation: Rotation, mask: Tensor) -> Tensor:
        """Map x [B, S, H] → [B, S, H]; mask [B, 1, S, S], additive or boolean."""
        s = self.shape
        heads, kv_heads = s.num_attention_heads, s.num_key_value_heads
        qkv = (x @ self.qkv.to(x.dtype).t()).view(*x.shape[:2], heads + 2 * kv_heads, s.head_dim)
        qk, v = torch.split(qkv, [heads + kv_heads, kv_heads], dim=2)
        # one norm over Q and K heads together: half the passes over memory
        weight = torch.cat([self.query_norm.expand(heads, -1), self.key_norm.expand(kv_heads, -1)])
        qk = rotation(rms_norm(qk, weight, s.rms_norm_eps))
        q, k = torch.split(qk, [heads, kv_heads], dim=2)
        k, v = (t.repeat_interleave(heads // kv_heads, dim=2) for t in (k, v))
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        out = scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return out.transpose(1, 2).flatten(2) @ self.out.to(x.dtype).t()


class Layer(nn.Module):
    """One pre-norm decoder layer."""

    def __init__(self, shape: Shape, *, is_dense: bool) -> None:
        super().__init__()
        self.eps = shape.rms_norm_eps
        self.input_norm = nn.Parameter(torch.ones(shape.hidden_size))
        self.attention = Attention(shape)
        self.post_norm = nn.Parameter(torch.ones(shape.hidden_size))
        self.ffn = DenseFfn(shape.hidden_size, shape.intermediate_size) if is_dense else MoeFfn(shape)

    def forward(self, x: Tensor, rotation: Rotation, mask: Tensor) -> Tensor:
        """Map x [B, S, H] → [B, S, H]."""
        x = x + self.attention(rms_norm(x, self.input_norm, self.eps), rotation, mask)
        rows: Tensor = self.ffn(rms_norm(x, self.post_norm, self.eps).flatten(0, 1))
        return x + rows.view_as(x)


class Mtp(nn.Module):
    """The next-token-prediction layer: from (token i+1, hidden i) to the hidden that predicts token i+2."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        hidden = shape.hidden_size
        self.eps = shape.rms_norm_eps
        self.embed_norm = nn.Parameter(torch.ones(hidden))
        self.hidden_norm = nn.Parameter(torch.ones(hidden))
        self.eh_proj = nn.Parameter(torch.randn(hidden, 2 * hidden) * (2 * hidden) ** -0.5)
        self.layer = Layer(shape, is_dense=False)
        self.final_norm = nn.Parameter(torch.ones(hidden))

    def forward(self, embedded: Tensor, hidden: Tensor, rotation: Rotation, mask: Tensor) -> Tensor:
        """From embedded, hidden [B, S, H] (hidden is post-final-norm) → h' [B, S, H] (model-spec §5)."""
        parts = (rms_norm(embedded, self.embed_norm, self.eps), rms_norm(hidden, self.hidden_norm, self.eps))
        z = torch.cat(parts, dim=-1) @ self.eh_proj.to(hidden.dtype).t()
        return rms_norm(self.layer(z, rotation, mask), self.final_norm, self.eps)


class Net(nn.Module):
    """Trunk, head and MTP layer. `dtype` is the activations' type; parameters stay fp32."""

    def __init__(self, shape: Shape, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.shape, self.dtype = shape, dtype
        self.embed = nn.Parameter(torch.randn(shape.vocab_size, shape.hidden_size) * 0.3)
        self.layers = nn.ModuleList(
            Layer(shape, is_dense=n < shape.first_k_dense_replace) for n in range(shape.num_hidden_layers)
        )
        self.norm = nn.Parameter(torch.ones(shape.hidden_size))
        self.head = nn.Parameter(torch.randn(shape.vocab_size, shape.hidden_size) * 0.01)
        self.mtp = Mtp(shape)

    def hidden(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """From tokens [B, S], mask [B, 1, S, S] → final-normed hidden states [B, S, H]."""
        rotation = Rotation(self.shape, tokens.shape[1], self.dtype)
        x = nn.functional.embedding(tokens, self.embed).to(self.dtype)
        for layer in self.layers:
            x = layer(x, rotation, mask)
        return rms_norm(x, self.norm, self.shape.rms_norm_eps)

    def draft_hidden(self, tokens: Tensor, hidden: Tensor, mask: Tensor) -> Tensor:
        """Hidden states of the MTP layer; `tokens` [B, S] are the row's own, shifted here, the last one being 0."""
        shifted = torch.cat([tokens[:, 1:], torch.zeros_like(tokens[:, :1])], dim=1)
        embedded = nn.functional.embedding(shifted, self.embed).to(self.dtype)
        drafted: Tensor = self.mtp(embedded, hidden, Rotation(self.shape, tokens.shape[1], self.dtype), mask)
        return drafted

    def logits(self, hidden: Tensor) -> Tensor:
        """Map hidden [..., H] to fp32 logits [..., V]."""
        return (hidden @ self.head.to(hidden.dtype).t()).float()

    def moe_blocks(self) -> list[MoeFfn]:
        """Every mixture-of-experts block, the MTP layer's last."""
        return [m for m in self.modules() if isinstance(m, MoeFfn)]


def causal_mask(segments: Tensor) -> Tensor:
    """From segments [B, S] (document number of each position): boolean mask [B, 1, S, S], causal, within a document."""
    same = segments.unsqueeze(2) == segments.unsqueeze(1)
    return same.tril().unsqueeze(1)
