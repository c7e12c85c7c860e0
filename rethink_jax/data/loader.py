"""Batches of a streamed set, decoded in threads and laid on the devices ahead of their use.

grain reads, keeps the order and prefetches. It does so with threads: Pillow lets go of the
interpreter while it decodes and resizes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from rethink_jax.data.streamed import StreamedDataset

AHEAD = 2  # Chunks that wait on the devices, and as many on the host.


class _Batches:
    """The batches of a pass over a split, by their number: what grain reads."""

    def __init__(self, dataset: StreamedDataset, split: str, ids_SxB: np.ndarray):
        self._dataset, self._split, self._ids_SxB = dataset, split, ids_SxB
        labels = dataset.train_labels if split == "train" else dataset.test_labels
        self._count = len(labels)

    def __len__(self) -> int:
        return len(self._ids_SxB)

    def __getitem__(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        ids_B = self._ids_SxB[step]
        images_BxHxWxC = np.zeros((len(ids_B), *self._dataset.image_shape), np.uint8)
        for row, index in enumerate(ids_B):
            if index < self._count:
                images_BxHxWxC[row] = self._dataset.read(self._split, int(index))
        return images_BxHxWxC, ids_B


def _chunk(size: int, batches: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, ...]:
    """Batches one after another; a last chunk that is too short repeats its last batch."""
    batches = [*batches, *[batches[-1]] * (size - len(batches))]
    return tuple(np.stack(parts) for parts in zip(*batches, strict=True))


def chunks(
    dataset: StreamedDataset,
    split: str,
    ids_SxB: np.ndarray,
    size: int,
    threads: int,
    sharding: Any,
) -> Any:
    """An iterator over chunks of batches, in order, that works ahead; close() ends its threads.

    Args:
      split: "train" or "test".
      ids_SxB: int32, the images of every batch. An index past the last image gives a black one.
      size: batches of a chunk. The last one is filled up with batches that are not to be used.
      threads: decode at once, each a batch.
      sharding: where the chunks are put.

    Yields:
      images uint8[size, B, H, W, C] and ids int32[size, B], on the devices.

    Raises:
      UserError: an image cannot be read (when its chunk would be next).
    """
    import grain
    from grain import experimental

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + size)
    batches = grain.MapDataset.source(_Batches(dataset, split, ids_SxB)).to_iter_dataset(options)
    stacked = batches.batch(size, batch_fn=functools.partial(_chunk, size))
    ahead = experimental.device_put(
        stacked, sharding, cpu_buffer_size=AHEAD, device_buffer_size=AHEAD
    )
    return iter(ahead)
