"""Which samples each data-parallel rank reads: a sampler and a loader for data functions.

An emitted program asks ``function(step, batch_size, rank, size)`` for its share of a step's
global batch; ranks that differ along tp and pp alone ask with the same arguments. Nothing is
remembered between calls: a share follows from its arguments, so a run that goes on from a
checkpoint, on however many ranks, reads what it would have read. Needs torch and nothing of the
planner.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from autopar.errors import UsageError

__all__ = ["Loader", "Sampler"]

# How many of the epochs' orders are kept: a batch may lie across the end of one.
KEPT_ORDERS = 2


class Sampler:
    """The order in which samples are read, epoch after epoch, and each rank's part of it.

    Every sample comes once per epoch. Batches are cut from the endless row of epochs, so one may
    begin in one epoch and end in the next, and nothing is dropped.

    Args:
        samples: how many there are.
        seed: of the shuffling; another one gives another order.
        shuffle: a new order for each epoch (8 bytes per sample), or always 0, 1, 2, ...

    Raises:
        UsageError: there are no samples.
    """

    def __init__(self, samples: int, *, seed: int = 0, shuffle: bool = True) -> None:
        if samples < 1:
            raise UsageError(f"{samples} samples", expected="at least one", where="Sampler")
        self.samples, self.seed, self.shuffle = samples, seed, shuffle
        self._step, self._position = 0, 0
        self._order = lru_cache(KEPT_ORDERS)(self._shuffled)

    def indices(self, step: int, batch_size: int, rank: int = 0, size: int = 1) -> Tensor:
        """The samples of share ``rank`` of ``size`` in the global batch of a step.

        Args:
            step: number of the optimizer step, counted over all restarts.
            batch_size: samples of the share; the global batch has ``size`` times as many.
            rank: which share.
            size: number of shares.

        Returns:
            int64 of shape (batch_size,).

        Raises:
            UsageError: there is no such share, or the step comes before the sampler's start.
        """
        if not 0 <= rank < size:
            raise UsageError(f"share {rank} of {size}", expected="rank from 0 to size - 1",
                             where="Sampler.indices")  # fmt: skip
        first = self.position(step, batch_size * size) + rank * batch_size
        parts = []
        while batch_size > 0:
            epoch, offset = divmod(first, self.samples)
            parts.append(self._order(epoch)[offset : offset + batch_size])
            first, batch_size = first + len(parts[-1]), batch_size - len(parts[-1])
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)

    def position(self, step: int, global_batch_size: int) -> int:
        """How many samples were read before a step, over all epochs.

        Raises:
            UsageError: the step comes before the one that the sampler's state was saved for.
        """
        if step < self._step:
            raise UsageError(f"step {step}", expected=f"{self._step} or later, as loaded",
                             where="Sampler", hint="load the state of an earlier step")  # fmt: skip
        return self._position + (step - self._step) * global_batch_size

    def state_dict(self, step: int, global_batch_size: int) -> dict[str, int]:
        """What a checkpoint holds that was taken before ``step``.

        Only a run that goes on with another global batch needs it.
        """
        position = self.position(step, global_batch_size)
        return {**self._identity(), "step": step, "position": position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on where ``state_dict`` was taken, with whatever global batch comes next.

        Raises:
            UsageError: the state is that of other samples or another order.
        """
        found = {name: state.get(name) for name in self._identity()}
        if found != self._identity():
            raise UsageError(
                f"the state of a sampler with {found}", expected=f"{self._identity()}",
                where="Sampler.load_state_dict", hint="make the sampler as the saved one was made",
            )  # fmt: skip
        self._step, self._position = state["step"], state["position"]

    def _identity(self) -> dict[str, int]:
        return {"samples": self.samples, "seed": self.seed, "shuffle": int(self.shuffle)}

    def _shuffled(self, epoch: int) -> Tensor:
        """The order of an epoch, int64 of shape (samples,)."""
        if not self.shuffle:
            return torch.arange(self.samples)
        # Hashed: if the two were added, seeds that follow each other would share orders.
        digest = hashlib.sha256(f"{self.seed} {epoch}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        return torch.randperm(self.samples, generator=generator)


class Loader:
    """A data function over a dataset with indices: what ``--data`` of an emitted program names.

        batches = Loader(dataset)  # in my_model.py; then: train.py --data my_model.py:batches

    Args:
        dataset: items are tuples whose last part is the target; the others are the inputs.
        sampler: default: all samples of the dataset, shuffled anew in each epoch.
        workers: processes that load ahead; they start again where a step does not follow the last.
        collate: makes a batch of a list of items; default: torch's.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        sampler: Sampler | None = None,
        *,
        workers: int = 0,
        collate: Callable[[list[Any]], Any] = default_collate,
    ) -> None:
        self.dataset, self.workers, self.collate = dataset, workers, collate
        self.sampler = sampler or Sampler(len(dataset))  # type: ignore[arg-type]
        # By share: a rank of a fast device may read several.
        self._loading: dict[tuple[int, ...], tuple[int, Iterator[Any]]] = {}

    def __call__(
        self, step: int, batch_size: int, rank: int = 0, size: int = 1
    ) -> tuple[tuple[Any, ...], Any]:
        """(inputs, target) of one share, as ``Sampler.indices`` chooses them."""
        share = (batch_size, rank, size)
        following, loading = self._loading.get(share, (step, None))
        if loading is None or following != step:
            loading = self._start(step, *share)
        *inputs, target = next(loading)
        self._loading[share] = step + 1, loading
        return tuple(inputs), target

    def _start(self, step: int, batch_size: int, rank: int, size: int) -> Iterator[Any]:
        """Batches from a step on."""
        shares = Shares(self.sampler, step, batch_size, rank, size)
        return iter(
            DataLoader(
                self.dataset,
                batch_sampler=shares,
                num_workers=self.workers,
                collate_fn=self.collate,
                # Of its own: the default one would advance, and with it the masks of dropout.
                generator=torch.Generator(),
            )
        )


class Shares:
    """The shares of one rank, step after step without an end."""

    def __init__(self, sampler: Sampler, step: int, batch_size: int, rank: int, size: int) -> None:
        self.sampler, self.step = sampler, step
        self.share = (batch_size, rank, size)

    def __iter__(self) -> Iterator[list[int]]:
        step = self.step
        while True:
            yield self.sampler.indices(step, *self.share).tolist()
            step += 1
