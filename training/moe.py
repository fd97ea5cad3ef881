"""The mixture-of-experts block, batched for training: rows sorted by expert, one GEMM per expert."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from training.shape import Shape

ROW_STEP = 64  # expert ranges are padded to this, so that few GEMM shapes occur: oneDNN builds a kernel per new shape


def choose_experts(logits: Tensor, expert_bias: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
    """Pick K experts per row by group-limited sigmoid top-k.

    logits [T, E] fp32, expert_bias [E] fp32 (selection only); returns ids [T, K] int64, weights [T, K] fp32 that sum
    to `routed_scaling_factor` and carry the gradient. Source: model-spec §2.6.
    """
    scores = torch.sigmoid(logits)
    biased = (scores + expert_bias).detach().view(len(logits), shape.n_group, -1)
    group_scores = biased.topk(2, dim=-1).values.sum(-1)
    kept = group_scores.topk(shape.topk_group, dim=-1).indices
    is_dropped = torch.ones_like(group_scores, dtype=torch.bool).scatter_(1, kept, False)
    biased = biased.masked_fill(is_dropped.unsqueeze(-1), float("-inf")).flatten(1)
    ids = biased.topk(shape.num_experts_per_tok, dim=-1).indices
    weights = scores.gather(1, ids)
    return ids, weights / (weights.sum(-1, keepdim=True) + 1e-20) * shape.routed_scaling_factor


def sort_by_expert(ids: Tensor, num_experts: int) -> tuple[Tensor, Tensor, list[int]]:
    """Lay the T·K choices out expert by expert, each range padded to a multiple of ROW_STEP.

    ids [T, K]; returns token [R] (source row; 0 on padding), inverse [T·K] (where each choice went), rows per expert.
    """
    flat = ids.flatten()
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat, minlength=num_experts)
    padded = (counts + ROW_STEP - 1) // ROW_STEP * ROW_STEP
    gap_before = (padded - counts).cumsum(0) - (padded - counts)
    position = torch.arange(len(flat)) + gap_before[flat[order]]
    token = torch.zeros(int(padded.sum()), dtype=torch.int64)
    token[position] = order // ids.shape[1]
    inverse = torch.empty_like(order)
    inverse[order] = position
    return token, inverse, padded.tolist()


def pieces(t: Tensor, counts: list[int]) -> Sequence[Tensor]:
    """Views of the experts' row ranges."""
    views: Sequence[Tensor] = t.split(counts)
    return views


class GroupedExperts(torch.autograd.Function):
    """Σ_k w_k · SwiGLU_{id_k}(x) with a hand-written backward.

    Autograd through per-expert slices would copy every slice; here each GEMM writes into its own range of one buffer.
    The row weight is applied to the I-wide activation, before the down projection, where it is cheapest.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        """From x [T, H], ids [T, K], weights [T, K] fp32, gate_up [E, 2I, H], down [E, H, I]: [T, H]."""
        num_rows, top_k = ids.shape
        token, inverse, counts = sort_by_expert(ids, len(gate_up))
        rows = x.index_select(0, token)
        hidden = torch.empty(len(token), gate_up.shape[1], dtype=x.dtype)
        for part, src, w in zip(pieces(hidden, counts), pieces(rows, counts), gate_up, strict=True):
            torch.mm(src, w.t(), out=part)
        gate, up = hidden.chunk(2, dim=-1)
        w_sorted = torch.zeros(len(token), 1, dtype=x.dtype)  # padding rows keep weight 0 and so no gradient
        w_sorted[inverse, 0] = weights.flatten().to(x.dtype)
        silu = nn.functional.silu(gate)
        weighted = silu * up * w_sorted
        out = torch.empty_like(rows)
        for part, src, w in zip(pieces(out, counts), pieces(weighted, counts), down, strict=True):
            torch.mm(src, w.t(), out=part)
        ctx.save_for_backward(rows, hidden, silu, weighted, w_sorted, token, inverse, gate_up, down)
        ctx.counts, ctx.top_k = counts, top_k
        return out.index_select(0, inverse).view(num_rows, top_k, -1).sum(1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor, Tensor, Tensor]:
        """Gradients of x, weights, gate_up, down, in the order of `forward`."""
        rows, hidden, silu, weighted, w_sorted, token, inverse, gate_up, down = ctx.saved_tensors
        counts, top_k = ctx.counts, ctx.top_k
        grad_out = grad.index_select(0, token)
        grad_act = torch.empty_like(weighted)
        grad_down = torch.empty_like(down)
        ranges = [pieces(t, counts) for t in (grad_act, grad_out, weighted)]
        for g_act, g_out, act, w, g_w in zip(*ranges, down, grad_down, strict=True):
            torch.mm(g_out, w, out=g_act)
            torch.mm(g_out.t(), act, out=g_w)
        gate, up = hidden.chunk(2, dim=-1)
        plain = silu * up
        grad_w = (grad_act * plain).sum(-1, dtype=torch.float32)[inverse].view(-1, top_k)
        grad_act *= w_sorted
        sig = torch.sigmoid(gate)
        grad_hidden = torch.empty_like(hidden)
        grad_gate, grad_up = grad_hidden.chunk(2, dim=-1)
        torch.mul(grad_act, silu, out=grad_up)
        torch.mul(grad_act * up, sig + silu * (1 - sig), out=grad_gate)
        grad_rows = torch.empty_like(rows)
        grad_gate_up = torch.empty_like(gate_up)
        ranges = [pieces(t, counts) for t in (grad_rows, grad_hidden, rows)]
        for g_rows, g_hid, src, w, g_w in zip(*ranges, gate_up, grad_gate_up, strict=True):
            torch.mm(g_hid, w, out=g_rows)
            torch.mm(g_hid.t(), src, out=g_w)
        grad_x = grad_rows.index_select(0, inverse).view(-1, top_k, rows.shape[1]).sum(1)
        return grad_x, None, grad_w, grad_gate_up, grad_down


@torch.compiler.disable  # type: ignore[untyped-decorator]
def routed_experts(x: Tensor, choice: tuple[Tensor, Tensor], gate_up: Tensor, down: Tensor) -> Tensor:
    """`GroupedExperts`, kept out of compiled graphs: its GEMM sizes depend on the data."""
    out: Tensor = GroupedExperts.apply(x, *choice, gate_up, down)  # type: ignore[no-untyped-call]
    return out


class DenseFfn(nn.Module):
    """SwiGLU feed-forward: the dense layer's, and the shared expert's."""

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.randn(2, width, hidden_size) * hidden_size**-0.5)
        self.down = nn.Parameter(torch.randn(hidden_size, width) * (0.3 * width**-0.5))

    def forward(self, x: Tensor) -> Tensor:
        """Map x [T, H] → [T, H]."""
        gate, up = (x @ self.gate_up.flatten(0, 1).to(x.dtype).t()).chunk(2, dim=-1)
        return (nn.functional.silu(gate) * up) @ self.down.to(x.dtype).t()


class MoeFfn(nn.Module):
    """Router, routed experts and the shared expert; `load` counts the rows each expert got in the last forward."""

    expert_bias: Tensor
    load: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        hidden, width, experts = shape.hidden_size, shape.moe_intermediate_size, shape.num_experts
        self.shape = shape
        self.router = nn.Parameter(torch.randn(experts, hidden) * hidden**-0.5)
        self.gate_up = nn.Parameter(torch.randn(experts, 2, width, hidden) * hidden**-0.5)
        self.down = nn.Parameter(torch.randn(experts, hidden, width) * (0.3 * width**-0.5))
        self.shared = DenseFfn(hidden, width)
        self.register_buffer("expert_bias", torch.zeros(experts))
        self.register_buffer("load", torch.zeros(experts), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [T, H] → [T, H]; routing in fp32 whatever x is."""
        choice = choose_experts(x.float() @ self.router.t(), self.expert_bias, self.shape)
        self._count(choice[0])
        gate_up, down = self.gate_up.flatten(1, 2).to(x.dtype), self.down.to(x.dtype)
        shared: Tensor = self.shared(x)
        routed: Tensor = routed_experts(x, choice, gate_up, down)
        return routed + shared

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _count(self, ids: Tensor) -> None:
        self.load = torch.bincount(ids.flatten(), minlength=self.shape.num_experts).float()
