"""The processes of a run, and what they tell each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from lmrecipes.problems import InputError

T = TypeVar("T")


class Ranks:
    """Known through Accelerate; every method that talks must be called on every rank."""

    accelerator: Any

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return int(self.accelerator.num_processes)

    @property
    def rank(self) -> int:
        """This process's number."""
        return int(self.accelerator.process_index)

    @property
    def is_main(self) -> bool:
        """Rank 0: the one that prints and writes."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        return torch.device(self.accelerator.device)

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """Element-wise sum over ranks, on every rank."""
        if self.world_size > 1:
            torch.distributed.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Every rank's picklable object, on every rank."""
        if self.world_size == 1:
            return [value]
        out: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(out, value)
        return out

    def broadcast(self, value: Any) -> Any:
        """Rank 0's picklable object, on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def together(self, action: Callable[[], T]) -> T:
        """What this rank's action gives. Where it raises an InputError on any rank, the first of these is raised on all
        of them: none goes on alone."""
        given: Any = None
        refused: InputError | None = None
        try:
            given = action()
        except InputError as error:
            refused = error
        first = next((found for found in self.gather(refused) if found is not None), None)
        if first is not None:
            raise first
        return cast(T, given)

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            torch.distributed.barrier()
