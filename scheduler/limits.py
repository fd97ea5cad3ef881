"""What one scheduler can take: its configuration, and the requests that could never run under it."""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.draft_costs import DraftedStep
from scheduler.request import DraftMethod, Request, RequestRefused

_MAX_TOKEN_ID = 2**31 - 1  # the widest id that the batch and the block keys can hold


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Fixed for the life of a scheduler. Raises ValueError where the numbers cannot work together."""

    num_blocks: int
    block_size: int  # positions per block
    max_rows_per_step: int  # the budget of all sequences together
    max_sequences: int  # that hold blocks at the same time
    max_context: int  # tokens of one sequence, prompt and output
    eos_token_ids: tuple[int, ...] = ()
    prefix_cache: bool = True
    ageing_s: float = 30.0  # waiting that lifts a request by one priority
    max_waiting: int = 1024  # sequences
    vocab_size: int | None = None  # None: the upper end of token ids goes unchecked
    draft_method: DraftMethod = DraftMethod.NONE  # of requests that name none
    model_method: DraftMethod = DraftMethod.NONE  # the kind of draft model that is loaded, if any
    max_drafts: int = 0  # tokens drafted at a time
    draft_context: int | None = None  # positions that the draft model is meant for; None: all
    adaptive_drafts: bool = True  # else always `max_drafts`
    measured: tuple[DraftedStep, ...] = ()  # what steps cost on this machine, as far as it is known at the start

    def __post_init__(self) -> None:
        for name in ("num_blocks", "block_size", "max_rows_per_step", "max_sequences", "max_context", "ageing_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, must be positive")
        if self.max_rows_per_step < self.max_sequences:
            # Every running sequence must get its row in every step, or decodes would starve.
            raise ValueError(
                f"max_rows_per_step is {self.max_rows_per_step}, must be at least max_sequences ({self.max_sequences})"
            )

        if self.max_drafts < 0:
            raise ValueError(f"max_drafts is {self.max_drafts}, must not be negative")
        if self.draft_method.has_kv and self.draft_method is not self.model_method:
            raise ValueError(f"draft_method is {self.draft_method.value}, loaded is {self.model_method.value}")

    @property
    def context_limit(self) -> int:
        """Tokens that one sequence can reach here: a sequence must fit into the pool when it is alone."""
        return min(self.max_context, self.num_blocks * self.block_size)


def refuse_impossible(request: Request, config: SchedulerConfig) -> None:
    """Raise RequestRefused for a request that could not run even on an idle rank."""
    sampling = request.sampling
    if not request.prompt:
        raise RequestRefused("prompt", "is empty")
    if request.num_sequences < 1:
        raise RequestRefused("sampling.n", f"is {request.num_sequences}, must be at least 1")
    if request.resumed and request.num_sequences > 1:
        raise RequestRefused("resumed", f"goes with one sequence, not with {request.num_sequences}")
    if sampling.max_tokens < 0 or (sampling.max_tokens == 0 and sampling.num_prompt_logprobs is None):
        raise RequestRefused("sampling.max_tokens", f"is {sampling.max_tokens}, must be at least 1")
    if not 0 <= sampling.min_tokens <= sampling.max_tokens:
        raise RequestRefused("sampling.min_tokens", f"is {sampling.min_tokens}, must be 0 to {sampling.max_tokens}")
    _refuse_strange_drafting(request, config)
    for field, token_ids in (("prompt", request.prompt), ("resumed", request.resumed)):
        _refuse_strange_ids(field, token_ids, config.vocab_size)
    _refuse_too_long(request, config)


def _refuse_strange_drafting(request: Request, config: SchedulerConfig) -> None:
    method = request.draft_method
    if method is not None and method.has_kv and method is not config.model_method:
        raise RequestRefused("draft_method", f"{method.value} is not loaded; {config.model_method.value} is")
    if request.max_drafts is not None and request.max_drafts < 0:
        raise RequestRefused("max_drafts", f"is {request.max_drafts}, must not be negative")


def _refuse_strange_ids(field: str, token_ids: tuple[int, ...], vocab_size: int | None) -> None:
    end = vocab_size if vocab_size is not None else _MAX_TOKEN_ID
    if token_ids and (min(token_ids) < 0 or max(token_ids) >= end):
        where = next(i for i, token_id in enumerate(token_ids) if not 0 <= token_id < end)
        raise RequestRefused(field, f"token id {token_ids[where]} at position {where} is not in [0, {end})")


def _refuse_too_long(request: Request, config: SchedulerConfig) -> None:
    """A prompt needs room for one token more, unless it is only scored. A resumed output may have filled it up."""
    room = config.context_limit - (1 if request.sampling.max_tokens else 0)
    if len(request.prompt) > room:
        raise RequestRefused(
            "prompt", f"has {len(request.prompt)} tokens, at most {room} fit (context of {config.context_limit})"
        )
    if len(request.prompt) + len(request.resumed) > config.context_limit:
        raise RequestRefused("resumed", f"ends beyond the context of {config.context_limit} tokens")
