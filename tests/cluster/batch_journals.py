"""Journals with answers in them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from cluster.batch_journal import Journal
from cluster.batch_places import Place

ANSWERS = [7, 0, 25, 3, 90, 1, 12, 40, 5, 18]  # lengths


def text(index: int, length: int) -> str:
    """The output line of a line."""
    return f"{index}:{length * 'x'}"


def filled(place: Path | str, lengths: Sequence[int], seed: int = 0) -> Journal:
    """Open, with an answer for each line, which came in an order of the seed's."""
    journal = Journal.open(Place.of("--output", str(place)), {})
    order = list(range(len(lengths)))
    random.Random(seed).shuffle(order)
    for index in order:
        journal.write(index, 1, text(index, lengths[index]), is_error=index % 3 == 0)
    journal.sync()
    return journal
