"""What a rank tells its executor, from the rank's own words to the executor's."""

from __future__ import annotations

import os
import platform

from cluster.executor import GroupInfo, RankStatus
from engine.rank import Rank, RankFacts


def rank_info(facts: RankFacts, num_ranks: int) -> GroupInfo:
    """The group's facts as far as one rank knows them: its own KV cache stands for everyone's."""
    return GroupInfo(
        num_ranks=num_ranks,
        max_context=facts.max_context,
        vocab_size=facts.vocab_size,
        kv_tokens_per_rank=facts.kv_tokens,
        draft_model=facts.draft_model,
    )


def rank_status(rank: Rank) -> RankStatus:
    """The rank now, with the process and host it lives in, which must be this one."""
    facts, now = rank.facts, rank.status()
    return RankStatus(
        rank=facts.rank,
        device=facts.device,
        host=platform.node(),
        pid=os.getpid(),
        is_alive=not rank.end_reason,
        experts=facts.experts,
        stats=now.stats,
        num_steps=now.num_steps,
        num_tokens=now.num_tokens,
        weight_bytes=facts.weight_bytes,
        kv_bytes=facts.kv_bytes,
        expert_tokens=now.expert_tokens,
        kernels=facts.kernels,
    )


def failure(error: Exception) -> str:
    """One line that says why a rank could not start."""
    return f"{type(error).__name__}: {error}"
