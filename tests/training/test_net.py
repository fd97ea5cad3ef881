"""The training network beside oracles: transformers' Glm4Moe, and the formulas of model-spec in plain loops."""

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from training.export import checkpoint_tensors
from training.loss import next_token_loss
from training.moe import choose_experts, routed_experts, sort_by_expert
from training.net import Net, causal_mask, rms_norm
from training.shape import Shape


def glm4_moe(net: Net) -> nn.Module:
    """The same weights in transformers' class (renames of model-spec §3); the MTP layer has no place there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import Glm4MoeConfig, Glm4MoeForCausalLM
    s = net.shape
    config = Glm4MoeConfig(
        vocab_size=s.vocab_size, hidden_size=s.hidden_size, num_hidden_layers=s.num_hidden_layers,
        intermediate_size=s.intermediate_size, moe_intermediate_size=s.moe_intermediate_size,
        num_attention_heads=s.num_attention_heads, num_key_value_heads=s.num_key_value_heads, head_dim=s.head_dim,
        n_routed_experts=s.num_experts, num_experts_per_tok=s.num_experts_per_tok, n_shared_experts=1,
        n_group=s.n_group, topk_group=s.topk_group, routed_scaling_factor=s.routed_scaling_factor,
        norm_topk_prob=True, first_k_dense_replace=s.first_k_dense_replace, use_qk_norm=True, attention_bias=False,
        rms_norm_eps=s.rms_norm_eps, hidden_act="silu", tie_word_embeddings=False, max_position_embeddings=128,
        rope_parameters={"rope_type": "default", "rope_theta": s.rope_theta,
                         "partial_rotary_factor": s.partial_rotary_factor},
        pad_token_id=0, attn_implementation="eager",
    )  # fmt: skip
    model: nn.Module = Glm4MoeForCausalLM(config).eval()
    model.load_state_dict(glm4_names(net), strict=True)
    return model


def glm4_names(net: Net) -> dict[str, Tensor]:
    s, out = net.shape, {}
    tensors = {k: v for k, v in fp32_tensors(net).items() if f"layers.{s.num_hidden_layers}." not in k}
    widths = [s.num_attention_heads * s.head_dim] + 2 * [s.num_key_value_heads * s.head_dim]
    for name, t in tensors.items():
        if name.endswith("query_key_value.weight"):
            stem = name.replace("attention.query_key_value.weight", "self_attn.")
            for letter, part in zip("qkv", torch.split(t, widths), strict=True):
                out[f"{stem}{letter}_proj.weight"] = part
        elif ".experts." not in name:
            for ours, theirs in (("word_embeddings", "embed_tokens"), ("attention.dense", "self_attn.o_proj"),
                                 ("attention.query_layernorm", "self_attn.q_norm"),
                                 ("attention.key_layernorm", "self_attn.k_norm"),
                                 ("expert_bias", "e_score_correction_bias")):  # fmt: skip
                name = name.replace(ours, theirs)
            out[name] = t
    for n in range(s.first_k_dense_replace, s.num_hidden_layers):
        stem = f"model.layers.{n}.mlp.experts"
        gate, up, down = (
            torch.stack([tensors[f"{stem}.{e}.{part}_proj.weight"] for e in range(s.num_experts)])
            for part in ("gate", "up", "down")
        )
        out |= {f"{stem}.gate_up_proj": torch.cat([gate, up], 1), f"{stem}.down_proj": down}
    return out


def fp32_tensors(net: Net) -> dict[str, Tensor]:
    """`checkpoint_tensors` without its rounding: round the network first, so that both sides hold the same numbers."""
    return {k: v.float() for k, v in checkpoint_tensors(net).items()}


@torch.no_grad()
def round_to_bf16(net: Net) -> None:
    for p in net.parameters():
        p.copy_(p.bfloat16())


def test_trunk_equals_transformers(random_net: Net) -> None:
    round_to_bf16(random_net)
    tokens = torch.randint(0, 512, (2, 37))
    with torch.no_grad():
        ours = random_net.logits(random_net.hidden(tokens, causal_mask(torch.zeros_like(tokens))))
        theirs = glm4_moe(random_net)(tokens).logits
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def test_documents_in_one_row_do_not_see_each_other(random_net: Net) -> None:
    tokens = torch.randint(0, 512, (1, 30))
    segments = (torch.arange(30) >= 13).long()[None]
    with torch.no_grad():
        packed = random_net.hidden(tokens, causal_mask(segments))[0, 13:]
        alone = random_net.hidden(tokens[:, 13:], causal_mask(segments[:, 13:]))[0]
    torch.testing.assert_close(packed, alone, atol=2e-5, rtol=1e-4)


def swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return (nn.functional.silu(x @ gate.t()) * (x @ up.t())) @ down.t()


def moe_by_formula(x: Tensor, tensors: dict[str, Tensor], name: str, s: Shape) -> Tensor:
    """Model-spec §2.6, row by row and group by group."""
    out = torch.zeros_like(x)
    weights = [[tensors[f"{name}.experts.{e}.{p}_proj.weight"] for p in ("gate", "up", "down")]
               for e in range(s.num_experts)]  # fmt: skip
    shared = [tensors[f"{name}.shared_experts.{p}_proj.weight"] for p in ("gate", "up", "down")]
    for t, row in enumerate(x):
        score = torch.sigmoid(row.float() @ tensors[f"{name}.gate.weight"].t())
        biased = (score + tensors[f"{name}.gate.expert_bias"]).view(s.n_group, -1)
        kept = biased.sort(descending=True).values[:, :2].sum(-1).argsort(descending=True)[: s.topk_group].tolist()
        biased = torch.stack([g if n in kept else torch.full_like(g, -torch.inf) for n, g in enumerate(biased)])
        chosen = biased.flatten().argsort(descending=True)[: s.num_experts_per_tok].tolist()
        total = sum(score[e] for e in chosen) + 1e-20
        out[t] = sum(score[e] / total * s.routed_scaling_factor * swiglu(row, *weights[e]) for e in chosen)
        out[t] += swiglu(row, *shared)
    return out


def test_mtp_layer_equals_its_formulas(random_net: Net) -> None:
    """z = W_eh [norm(E[t_{i+1}]), norm(g_i)], one MoE layer, final norm (model-spec §5)."""
    s = random_net.shape
    round_to_bf16(random_net)
    tensors = fp32_tensors(random_net)
    tokens, eps = torch.randint(0, 512, (1, 11)), s.rms_norm_eps
    hidden, mask = torch.randn(1, 11, s.hidden_size), causal_mask(torch.zeros(1, 11))
    name = f"model.layers.{s.num_hidden_layers}"
    with torch.no_grad():
        ours = random_net.draft_hidden(tokens, hidden, mask)
        following = torch.tensor([*tokens[0, 1:].tolist(), 0])
        embedded = tensors["model.word_embeddings.weight"][following]
        halves = (rms_norm(embedded, tensors[f"{name}.enorm.weight"], eps),
                  rms_norm(hidden[0], tensors[f"{name}.hnorm.weight"], eps))  # fmt: skip
        z = torch.cat(halves, -1) @ tensors[f"{name}.eh_proj.weight"].t()
        z = z + attention_by_formula(rms_norm(z, tensors[f"{name}.input_layernorm.weight"], eps), tensors, name, s)
        after = rms_norm(z, tensors[f"{name}.post_attention_layernorm.weight"], eps)
        z = z + moe_by_formula(after, tensors, f"{name}.mlp", s)
        expected = rms_norm(z, tensors[f"{name}.final_layernorm.weight"], eps)
    torch.testing.assert_close(ours[0], expected, atol=2e-5, rtol=1e-4)


def attention_by_formula(x: Tensor, tensors: dict[str, Tensor], name: str, s: Shape) -> Tensor:
    """Model-spec §2.4, head by head, with complex numbers for the rotation."""
    q_rows, kv_rows = s.num_attention_heads * s.head_dim, s.num_key_value_heads * s.head_dim
    qkv = x @ tensors[f"{name}.attention.query_key_value.weight"].t()
    half = s.rotary_dim // 2
    angle = torch.outer(torch.arange(len(x)).double(), s.rope_theta ** (-torch.arange(half).double() / half))

    def prepared(begin: int, norm: str) -> Tensor:
        z = rms_norm(qkv[:, begin : begin + s.head_dim], tensors[f"{name}.attention.{norm}.weight"], s.rms_norm_eps)
        turned = torch.complex(z[:, :half], z[:, half : 2 * half]) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat([turned.real.float(), turned.imag.float(), z[:, 2 * half :]], -1)

    heads = []
    for h in range(s.num_attention_heads):
        kv = h // (s.num_attention_heads // s.num_key_value_heads)
        q = prepared(h * s.head_dim, "query_layernorm")
        k = prepared(q_rows + kv * s.head_dim, "key_layernorm")
        v = qkv[:, q_rows + kv_rows + kv * s.head_dim :][:, : s.head_dim]
        scores = (q @ k.t() / s.head_dim**0.5).masked_fill(torch.ones(len(x), len(x)).triu(1).bool(), -torch.inf)
        heads.append(scores.softmax(-1) @ v)
    return torch.cat(heads, -1) @ tensors[f"{name}.attention.dense.weight"].t()


@pytest.mark.parametrize("num_rows", [1, 7, 130])
def test_grouped_experts_gradients_equal_autograd(num_rows: int) -> None:
    torch.manual_seed(1)
    shape = Shape(hidden_size=12, moe_intermediate_size=6)
    leaves = [torch.randn(num_rows, 12), torch.randn(num_rows, 16), torch.randn(16, 12, 12), torch.randn(16, 12, 6)]
    results = []
    for is_ours in (True, False):
        x, logits, gate_up, down = (t.clone().requires_grad_() for t in leaves)
        ids, weights = choose_experts(logits, torch.zeros(16), shape)
        if is_ours:
            y = routed_experts(x, (ids, weights), gate_up, down)
        else:
            gate, up = (x @ gate_up.flatten(0, 1).t()).view(num_rows, 16, 2, 6).unbind(2)
            every = torch.einsum("tei,ehi->teh", nn.functional.silu(gate) * up, down)
            y = (every.gather(1, ids[..., None].expand(-1, -1, 12)) * weights[..., None]).sum(1)
        (y * torch.arange(12)).sum().backward()
        results.append([y.detach(), *(t.grad for t in (x, logits, gate_up, down))])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_rows_are_sorted_and_padded() -> None:
    ids = torch.tensor([[3, 0], [3, 1], [0, 3]])
    token, inverse, counts = sort_by_expert(ids, 5)
    assert counts == [64, 64, 0, 64, 0]
    assert inverse.tolist() == [128, 0, 129, 64, 1, 130]
    assert token[inverse].tolist() == [0, 0, 1, 1, 2, 2]


def test_chunked_cross_entropy_equals_torch() -> None:
    torch.manual_seed(2)
    hidden, head = torch.randn(1100, 8), torch.randn(50, 8)
    targets = torch.randint(0, 50, (1100,))
    results = []
    for is_ours in (True, False):
        h, w = hidden.clone().requires_grad_(), head.clone().requires_grad_()
        if is_ours:
            loss = next_token_loss(h[None], w, targets[None], torch.ones(1, 1100, dtype=torch.bool))
        else:
            loss = cross_entropy(h @ w.t(), targets)
        (2 * loss).backward()
        results.append([loss.detach(), h.grad, w.grad])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


def test_loss_counts_only_wanted_positions() -> None:
    hidden, head, targets = torch.randn(1, 4, 8), torch.randn(20, 8), torch.tensor([[1, 2, 3, 4]])
    wanted = torch.tensor([[False, True, False, True]])
    loss = next_token_loss(hidden, head, targets, wanted)
    torch.testing.assert_close(loss, cross_entropy(hidden[wanted] @ head.t(), targets[wanted]))
