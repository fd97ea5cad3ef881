"""What a rank has of a client's request: all its sequences as a rule, or one.

They go one by one where they may have to be cancelled one by one (stop strings), and where they were moved.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from cluster.assignment import Assigned
from cluster.sequence_stream import SequenceStream
from cluster.stream import RequestStream
from scheduler.request import Request


@dataclass(slots=True, kw_only=True, eq=False)
class Part:
    """Sequences of one request on one rank."""

    request: Request
    stream: RequestStream
    client_id: str  # the request's id as the client knows it
    deadline: float | None  # on the switchboard's clock
    assigned: Assigned
    since: float = 0.0  # when the rank got it, on the switchboard's clock
    num_moves: int = 0
    num_losses: int = 0  # ranks that died with it
    has_begun: bool = False  # something of it came back
    is_cancelled: bool = False

    @property
    def sequences(self) -> tuple[SequenceStream, ...]:
        """Its sequences' streams."""
        first = self.request.first_sequence_index
        return self.stream.sequences[first : first + self.request.num_sequences]

    @property
    def is_background(self) -> bool:
        """Whether it gives way to others."""
        return self.request.priority < 0

    def owns(self, sequence_index: int) -> bool:
        """Whether the sequence belongs to this part."""
        first = self.request.first_sequence_index
        return first <= sequence_index < first + self.request.num_sequences


def split(request: Request, *, one_by_one: bool) -> list[Request]:
    """What to submit for a request. Sequences keep their numbers, which are part of their seeds."""
    if request.num_sequences == 1 or not one_by_one:
        return [request]
    unscored = dataclasses.replace(request.sampling, num_prompt_logprobs=None)
    return [
        dataclasses.replace(
            request,
            request_id=f"{request.request_id}/{index}",
            sampling=unscored if index else request.sampling,
            num_sequences=1,
            first_sequence_index=index,
        )
        for index in range(request.num_sequences)
    ]


def resumed(part: Part, sequence: SequenceStream) -> Request:
    """One sequence's request for its next rank."""
    sampling = part.request.sampling
    if sequence.index or sequence.has_prompt_logprobs:
        sampling = dataclasses.replace(sampling, num_prompt_logprobs=None)
    return dataclasses.replace(
        part.request,
        request_id=f"{part.client_id}/{sequence.index}.{part.num_moves + 1}",
        sampling=sampling,
        num_sequences=1,
        first_sequence_index=sequence.index,
        resumed=tuple(sequence.token_ids),
    )
