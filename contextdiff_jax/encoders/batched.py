"""Many texts through frozen text encoders: full batches of like length, on all devices."""

import collections
import copy
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from contextdiff_jax.encoders.frozen import TextEncoder

_SHORTEST = 16  # tokens a program is compiled for; longer ones double up to max_length
_IN_FLIGHT = 2  # batches on the devices before the first is fetched


class BatchedTextEncoder:
    """A text encoder on all local devices, whose batches are no longer than their texts need.

    batch_size is rounded up to a multiple of the devices; dtype is that of the tokens returned.
    Safe to call from several threads.
    """

    def __init__(self, encoder: TextEncoder, batch_size: int, dtype: Any):
        mesh = Mesh(np.asarray(jax.local_devices(), dtype=object), ("data",))
        self.encoder = encoder
        self.batch_size = -(-batch_size // mesh.size) * mesh.size
        self._rows = NamedSharding(mesh, PartitionSpec("data"))
        self._params = jax.device_put(encoder.params, NamedSharding(mesh, PartitionSpec()))
        self._program = jax.jit(
            lambda params, ids, mask: encoder.encode(params, ids, mask)[0].astype(dtype)
        )

    def __call__(self, texts: Sequence[str]) -> tuple[list[np.ndarray], int]:
        """Returns each text's tokens (length, width) without padding, and how many were cut."""
        tokenizer = copy.copy(self.encoder.tokenizer)  # with a count of its own
        tokenizer.truncated = 0
        ids, mask = tokenizer(texts)
        lengths = mask.sum(axis=1)
        order = np.argsort(lengths, kind="stable")
        tokens: list[Any] = [None] * len(texts)
        waiting: collections.deque[tuple[np.ndarray, jax.Array]] = collections.deque()

        def fetch() -> None:
            rows, encoded = waiting.popleft()
            for row, padded in zip(rows, np.asarray(encoded), strict=False):
                tokens[row] = padded[: lengths[row]].copy()

        for begin in range(0, len(texts), self.batch_size):
            rows = order[begin : begin + self.batch_size]
            waiting.append((rows, self._encode(ids, mask, rows, lengths[rows[-1]])))
            if len(waiting) > _IN_FLIGHT:
                fetch()
        while waiting:
            fetch()
        return tokens, tokenizer.truncated

    def _encode(self, ids: np.ndarray, mask: np.ndarray, rows: np.ndarray, longest: int) -> Any:
        length = _SHORTEST
        while length < longest:
            length *= 2
        length = min(length, self.encoder.max_length)
        filled = np.resize(rows, self.batch_size)  # a last batch is filled up by its own rows
        part = jax.device_put((ids[filled, :length], mask[filled, :length]), self._rows)
        return self._program(self._params, *part)
