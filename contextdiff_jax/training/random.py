"""Random streams: fold_in(seed, stream name, step), so a restart draws the same numbers."""

import zlib

import jax

from contextdiff_jax.system.seeds import check_seed


def stream_key(seed: int, stream: str, step: int | jax.Array = 0) -> jax.Array:
    """Returns the key of `stream` at `step`. Names are hashed with CRC-32, the same everywhere.

    Raises ValueError for a seed outside 0..2^32 - 1.
    """
    key = jax.random.key(check_seed(seed, "seed"))
    key = jax.random.fold_in(key, zlib.crc32(stream.encode()))
    return jax.random.fold_in(key, step)
