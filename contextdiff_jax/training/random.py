"""Random streams: fold_in(seed, stream name, step), so a restart draws the same numbers."""

import zlib

import jax


def stream_key(seed: int, stream: str, step: int | jax.Array = 0) -> jax.Array:
    """Returns the key of `stream` at `step`. Names are hashed with CRC-32, the same everywhere."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(stream.encode()))
    return jax.random.fold_in(key, step)
