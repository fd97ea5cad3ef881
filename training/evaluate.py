"""Held-out loss, draft agreement and sample answers: `python -m training.evaluate --model FOLDER --data FOLDER`."""

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from training.chat import EOS, ROLE_END, prompt
from training.corpus import ANSWER_BIT, Group, Rows, Sampler, load_group
from training.export import load_exported
from training.loss import next_token_loss
from training.net import Net, causal_mask
from training.optim import load_skew
from training.tokenizer import load_tokenizer, token_id

PROBES = (
    "What is diabetes?",
    "What are the symptoms of asthma?",
    "How is high blood pressure treated?",
    "hello",
    "what is a migraine?",
    "When should I see a doctor for a fever?",
)
ROWS_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Mean loss per answer token in nats, and bits per byte of answer text."""

    nats: float
    bits: float


def batches(group: Group, *, row: int, max_rows: int | None) -> Iterator[Rows]:
    """A group's documents once over (as far as `max_rows` reaches), in packed rows."""
    sampler = Sampler({"only": group}, row=row, pad=0, seed=0)
    num_rows = max_rows or math.ceil(len(group.tokens) / row)
    for begin in range(0, num_rows, ROWS_AT_ONCE):
        yield sampler.batch(min(ROWS_AT_ONCE, num_rows - begin), {"only": 1.0})


@torch.no_grad()
def held_out_loss(net: Net, group: Group, *, row: int, max_rows: int | None = None) -> HeldOut:
    """Loss of the trunk on the answers of a group."""
    total, count = 0.0, 0
    for rows in batches(group, row=row, max_rows=max_rows):
        hidden = net.hidden(rows.inputs, causal_mask(rows.segments))
        wanted = int(rows.is_answer.sum())
        total += float(next_token_loss(hidden, net.head, rows.targets, rows.is_answer)) * wanted
        count += wanted
    nats = total / count
    answer_tokens = int(((group.tokens & ANSWER_BIT) != 0).sum())
    return HeldOut(nats, nats * answer_tokens / group.num_bytes / math.log(2))


@torch.no_grad()
def draft_agreement(net: Net, group: Group, *, row: int, max_rows: int | None = None) -> float:
    """How often the MTP layer's best token is the trunk's own best token at the same place, within answers."""
    agreed, count = 0, 0
    for rows in batches(group, row=row, max_rows=max_rows):
        mask = causal_mask(rows.segments)
        hidden = net.hidden(rows.inputs, mask)
        drafted = net.draft_hidden(rows.inputs, hidden, mask)[:, :-1]
        wanted = rows.is_answer[:, 1:]
        ours, trunks = (net.logits(h[wanted]).argmax(-1) for h in (drafted, hidden[:, 1:]))
        agreed += int((ours == trunks).sum())
        count += len(ours)
    return agreed / count


@torch.no_grad()
def answer_greedily(net: Net, tokenizer: Tokenizer, question: str, max_tokens: int, system: str = "") -> str:
    """The most likely answer, token by token (no cache: a few probes, not a server)."""
    ids = tokenizer.encode(prompt(question, system)).ids
    stop = {token_id(tokenizer, EOS), token_id(tokenizer, ROLE_END)}
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


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: the figures and answers of the model card."""
    parser = argparse.ArgumentParser(description="Measure an exported model on the held-out entities.")
    parser.add_argument("--model", type=Path, required=True, help="a folder written by training.export")
    parser.add_argument("--data", type=Path, required=True, help="a folder written by training.data")
    parser.add_argument("--ask", nargs="*", default=list(PROBES), help="questions to answer greedily")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    net, tokenizer = load_exported(args.model), load_tokenizer(args.model)
    for name, max_rows in (("heldout", None), ("own", 64), ("talk", 64), ("chats", 64)):
        group = load_group(args.data, name)
        loss = held_out_loss(net, group, row=256, max_rows=max_rows)
        agreement = draft_agreement(net, group, row=256, max_rows=max_rows)
        print(
            f"group={name} answer_nats={loss.nats:.3f} bits_per_byte={loss.bits:.3f} "
            f"mtp_agreement={agreement:.1%} load_max_over_mean={load_skew(net.moe_blocks()[:-1]):.2f}",
            flush=True,
        )
    for question in args.ask:
        print(f"question={question!r} answer={answer_greedily(net, tokenizer, question, 100)!r}", flush=True)


if __name__ == "__main__":
    main()
