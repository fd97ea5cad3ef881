"""Everything that has not ended: which requests there are, and where each of their sequences waits or runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import takewhile

from scheduler.plan import StepTimes
from scheduler.queue_policy import Line
from scheduler.request import Request
from scheduler.sequence import Sequence


@dataclass(slots=True, kw_only=True)
class LiveRequest:
    """A request with the sequences that have not ended."""

    request: Request
    number: int  # that of its first sequence
    unfinished: dict[int, Sequence] = field(default_factory=dict)  # by sequence id
    held: list[Sequence] = field(default_factory=list)  # of these, the ones kept back until the first has its prompt


class LiveRequests:
    """Keeps every unfinished sequence in exactly one place: held, waiting or running.

    A sequence has run for as long as all steps took between its start and its stop or end. `times` is what they took
    until now; those before its start are taken off first.
    """

    def __init__(self) -> None:
        self.waiting: Line[Sequence] = Line()
        self.running: Line[Sequence] = Line()
        self._by_id: dict[str, LiveRequest] = {}
        self._deadlines: Line[LiveRequest] = Line()
        self.num_held = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, request_id: str) -> LiveRequest | None:
        """The request with this id, unless it has ended."""
        return self._by_id.get(request_id)

    def of(self, sequence: Sequence) -> LiveRequest:
        """The request of an unfinished sequence."""
        return self._by_id[sequence.request.request_id]

    def add(self, request: Request, sequences: list[Sequence], is_holding: bool) -> None:
        """Take in a request; with `is_holding` all sequences but the first are kept back (see `let_go`)."""
        live = LiveRequest(request=request, number=sequences[0].sequence_id)
        live.unfinished = {sequence.sequence_id: sequence for sequence in sequences}
        live.held = sequences[1:] if is_holding else []
        self.num_held += len(live.held)
        self._by_id[request.request_id] = live
        if request.deadline_s is not None:
            self._deadlines.add(request.deadline_s, live.number, live)
        for sequence in sequences[: len(sequences) - len(live.held)]:
            self.wait(sequence)

    def remove(self, sequence: Sequence, times: StepTimes) -> None:
        """Take out a sequence that has ended, and with the last one its request."""
        live = self.of(sequence)
        self.let_go(live)
        if sequence.is_running:
            sequence.ran += times
        line = self.running if sequence.is_running else self.waiting
        line.remove(sequence.turn, sequence.sequence_id)
        del live.unfinished[sequence.sequence_id]
        if not live.unfinished:
            del self._by_id[live.request.request_id]
            if live.request.deadline_s is not None:
                self._deadlines.remove(live.request.deadline_s, live.number)

    def wait(self, sequence: Sequence) -> None:
        """Put a sequence without blocks in line."""
        self.waiting.add(sequence.turn, sequence.sequence_id, sequence)

    def start(self, sequence: Sequence, times: StepTimes) -> None:
        """Move a sequence from waiting to running."""
        sequence.ran -= times
        self.waiting.remove(sequence.turn, sequence.sequence_id)
        self.running.add(sequence.turn, sequence.sequence_id, sequence)

    def stop(self, sequence: Sequence, times: StepTimes) -> None:
        """Move a sequence from running back to waiting."""
        sequence.ran += times
        self.running.remove(sequence.turn, sequence.sequence_id)
        self.wait(sequence)

    def let_go(self, live: LiveRequest) -> None:
        """Put the sequences that were kept back in line."""
        self.num_held -= len(live.held)
        for sequence in live.held:
            self.wait(sequence)
        live.held = []

    def overdue(self, now_s: float) -> list[LiveRequest]:
        """The requests whose deadline has come."""
        return [live for _, live in takewhile(lambda entry: entry[0] <= now_s, self._deadlines.entries())]

    def check(self) -> None:
        """Assert that every unfinished sequence is in its one place."""
        waiting, running = list(self.waiting), list(self.running)
        held = [sequence for live in self._by_id.values() for sequence in live.held]
        placed = sorted(sequence.sequence_id for sequence in (*waiting, *running, *held))
        unfinished = sorted(number for live in self._by_id.values() for number in live.unfinished)
        assert placed == unfinished, f"sequences in line {placed}, unfinished {unfinished}"
        assert len(held) == self.num_held, f"{len(held)} sequences held, {self.num_held} counted"
        assert all(sequence.is_running for sequence in running), "a running sequence has no blocks"
        assert not any(s.is_running or s.num_computed for s in (*waiting, *held)), "a waiting sequence has blocks"
        assert not any(s.finish_reason for s in (*waiting, *running, *held)), "a sequence has ended but is in line"
        num_deadlines = sum(live.request.deadline_s is not None for live in self._by_id.values())
        assert num_deadlines == len(self._deadlines), f"{len(self._deadlines)} deadlines for {num_deadlines} requests"
