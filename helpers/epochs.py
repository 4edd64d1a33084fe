"""What a pipeline returns whose epochs are generators. Stands on the ground: it imports nothing else of the course."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

__all__ = ["Epochs"]


class Epochs:
    """Something to loop over again and again; each pass is the next epoch."""

    def __init__(self, epoch: Callable, file_count: int, batch_size: int, skipped: Mapping | None = None):
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: give at least 1")
        self.epoch, self.length, self.next_number = epoch, -(-file_count // batch_size), 0
        self.skipped = skipped

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator:
        self.next_number += 1
        return self.epoch(self.next_number - 1) if self.length else iter(())
