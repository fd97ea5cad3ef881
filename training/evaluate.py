"""Held-out loss and greedy sample answers."""

import math
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer

from training.chat import EOS, ROLE_END, prompt
from training.corpus import Group, Sampler
from training.loss import next_token_loss
from training.net import Net, causal_mask

PROBES = (
    "What is diabetes?",
    "What are the symptoms of asthma?",
    "How is high blood pressure treated?",
    "hello",
    "what is a migraine?",
    "When should I see a doctor for a fever?",
)


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Mean loss per answer token in nats, and bits per byte of answer text."""

    nats: float
    bits: float


@torch.no_grad()
def held_out_loss(net: Net, group: Group, *, row: int, max_rows: int | None = None) -> HeldOut:
    """Loss on the answers of a group, each document once (as far as `max_rows` reaches)."""
    sampler = Sampler({"heldout": group}, row=row, pad=0, seed=0)
    total, count = 0.0, 0
    num_rows = max_rows or math.ceil(len(group.tokens) / row)
    for begin in range(0, num_rows, 8):
        rows = sampler.batch(min(8, num_rows - begin), {"heldout": 1.0})
        hidden = net.hidden(rows.inputs, causal_mask(rows.segments))
        wanted = int(rows.is_answer.sum())
        total += float(next_token_loss(hidden, net.head, rows.targets, rows.is_answer)) * wanted
        count += wanted
    nats = total / count
    answer_tokens = int((group.tokens >= 0x8000).sum())
    return HeldOut(nats, nats * answer_tokens / group.num_bytes / math.log(2))


@torch.no_grad()
def answer_greedily(net: Net, tokenizer: Tokenizer, question: str, max_tokens: int, system: str = "") -> str:
    """The most likely answer, token by token (no cache: a few probes, not a server)."""
    ids = tokenizer.encode(prompt(question, system)).ids
    stop = {tokenizer.token_to_id(EOS), tokenizer.token_to_id(ROLE_END)}
    begin = len(ids)
    while len(ids) < begin + max_tokens:
        tokens = torch.tensor([ids])
        hidden = net.hidden(tokens, causal_mask(torch.zeros_like(tokens)))
        best = int(net.logits(hidden[0, -1]).argmax())
        if best in stop:
            break
        ids.append(best)
    answer: str = tokenizer.decode(ids[begin:])
    return answer
