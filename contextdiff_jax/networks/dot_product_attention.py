"""Scaled dot-product attention: one function, three implementations that agree.

  xla    plain einsums: any platform, any dtype, and the only one that shows the weights.
  cudnn  cuDNN's fused attention, NVIDIA GPUs from Ampere on, 16-bit only.
  flash  JAX's Pallas kernel for TPUs (splash attention).

The fused ones never write the (B, heads, Q, K) logits to memory. Plain attention moves some 16
bytes per logit (float32 written and read by the softmax, 16-bit weights written and read) for 4 D
operations, 16 per byte at D = 64, where a TPU v5e needs 240 and an H100 295 to be kept busy: memory
binds it at any length. Below `LONG` queries "auto" stays with it all the same: there the TPU kernel
pads to blocks of 128 and spends on starting a block about what the block saves, cuDNN's keys are
put in order first, and attention is a small part of the step. This is arithmetic, not measurement.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from contextdiff_jax.networks import axes

Implementation = Literal["auto", "xla", "cudnn", "flash"]

MASKED = -1e30
LONG = 256  # queries from which "auto" takes a fused implementation
_PRODUCTS = "bhqd,bhkd->bhqk"
_LANES = 128  # the flash kernel's blocks are multiples of this
_LARGEST_BLOCK = 640  # of float32 logits, 640 x 640 x 4 bytes; VMEM holds several


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None = None,
    implementation: Implementation = "auto",
    real_keys: int = 0,
) -> jax.Array:
    """Scaled dot-product attention, softmax in float32.

    Args:
      query: (B, Q, heads, D).
      key: (B, K, heads, D).
      value: (B, K, heads, D).
      mask: (B, K) bool, True for keys that may be attended. A row without any such key yields
        zeros, so the content of padding can never leak.
      implementation: see the module; "auto" decides by platform, dtype and length.
      real_keys: how many of the first keys mask has True for in every row, as far as the caller
        knows; cuDNN then has fewer to put in order.

    Returns:
      The attended values (B, Q, heads, D) in value's dtype.

    Raises:
      ValueError: for an implementation that the platform or the dtype does not have.
    """
    check_implementation(implementation, platform(), query.dtype)
    chosen = implementation if implementation != "auto" else _automatic(query)
    if chosen == "cudnn":
        return cudnn_attention(query, key, value, mask, real_keys)
    if chosen == "flash":
        return flash_attention(query, key, value, mask)
    return weighted_sum(attention_weights(query, key, mask), value)


def attention_weights(query: jax.Array, key: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Returns the weights (B, heads, Q, K) float32; arguments are those of attend."""
    # Batch axes first: on CPU the products are a fifth faster than with heads in between.
    logits = _logits(query.swapaxes(1, 2), key.swapaxes(1, 2)) * query.shape[-1] ** -0.5
    if mask is None:
        return jax.nn.softmax(logits, axis=-1)
    mask = mask[:, None, None, :]
    # The second `where` matters only for rows with no key at all, where softmax is uniform.
    weights = jax.nn.softmax(jnp.where(mask, logits, MASKED), axis=-1)
    return jnp.where(mask, weights, 0.0)


@jax.custom_jvp
def _logits(query: jax.Array, key: jax.Array) -> jax.Array:
    """Products (B, heads, Q, K) float32 of (B, heads, Q, D) and (B, heads, K, D).

    Their gradient is rounded to the inputs' dtype before it is multiplied on, as in the kernels:
    JAX's own rule would multiply it in float32, many times slower than bfloat16.
    """
    return jnp.einsum(_PRODUCTS, query, key, preferred_element_type=jnp.float32)


@_logits.defjvp
def _logits_tangent(inputs: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    # Rounded here, so that what reverse mode makes of it rounds the gradient, too.
    (query, key), (query_dot, key_dot) = inputs, tangents
    dot = jnp.einsum(_PRODUCTS, query_dot, key) + jnp.einsum(_PRODUCTS, query, key_dot)
    return _logits(query, key), dot.astype(jnp.float32)


def weighted_sum(weights: jax.Array, value: jax.Array) -> jax.Array:
    """Returns (B, Q, heads, D) in value's dtype, of weights (B, heads, Q, K)."""
    value = value.swapaxes(1, 2)
    attended = jnp.einsum("bhqk,bhkd->bhqd", weights.astype(value.dtype), value)
    return attended.swapaxes(1, 2)


def cudnn_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None = None,
    real_keys: int = 0,
    backend: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """attend by jax.nn.dot_product_attention, which splits over a mesh by itself.

    backend: its implementation; "xla" runs the same preparation anywhere.
    """
    queries, keys = query.shape[1], key.shape[1]
    lengths = None
    if mask is not None:
        # cuDNN skips keys beyond a length; any other mask it reads as a (B, heads, Q, K) bias. The
        # order of keys is free, so the real ones move to the front.
        order = jnp.argsort(~mask[:, real_keys:], axis=1, stable=True)
        key, value = (
            jnp.concatenate([x[:, :real_keys], _permuted(x[:, real_keys:], order)], axis=1)
            for x in (key, value)
        )
        lengths = jnp.maximum(mask.sum(1, dtype=jnp.int32), 1)
    elif keys % 2:
        lengths = jnp.full(key.shape[:1], keys, jnp.int32)
    # JAX refuses odd lengths in training.
    query = _padded(query, queries + queries % 2)
    key, value = (_padded(x, keys + keys % 2) for x in (key, value))
    attended = jax.nn.dot_product_attention(
        query, key, value, key_value_seq_lengths=lengths, implementation=backend
    )
    return _zero_without_keys(attended[:, :queries], mask)


def flash_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None = None,
    interpret: bool = False,
) -> jax.Array:
    """attend by the TPU kernel; on the ambient mesh each device does its examples and heads.

    interpret: emulate the kernel, on any platform.
    """

    def local(query: jax.Array, key: jax.Array, value: jax.Array, mask: Any = None) -> jax.Array:
        attended = _splash(query, key, value, mask, interpret)
        return _zero_without_keys(attended, mask)

    arguments = (query, key, value) if mask is None else (query, key, value, mask)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return local(*arguments)
    # XLA cannot split a kernel by itself.
    batch, heads = _mesh_axes(mesh, *query.shape[::2])
    tokens = PartitionSpec(batch, None, heads, None)
    specs = (tokens, tokens, tokens, PartitionSpec(batch, None))[: len(arguments)]
    return jax.shard_map(local, in_specs=specs, out_specs=tokens, check_vma=False)(*arguments)


def _mesh_axes(mesh: Any, batch: int, heads: int) -> tuple[Any, Any]:
    """Mesh axes that divide the batch and the heads; None for what stays whole (e.g. in init)."""
    split = [name for name in axes.BATCH_MESH_AXES if name in mesh.axis_names]
    number = 1
    for name in split:
        number *= mesh.shape[name]
    tensor = mesh.shape.get(axes.HEADS_MESH_AXIS, 1)
    return (
        tuple(split) if batch % number == 0 else None,
        axes.HEADS_MESH_AXIS if tensor > 1 and heads % tensor == 0 else None,
    )


def _splash(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None, interpret: bool
) -> jax.Array:
    from jax.experimental.pallas.ops.tpu import splash_attention  # slow to import

    batch, queries, heads, width = query.shape
    query_length, query_block = _padding(queries)
    key_length, key_block = _padding(key.shape[1])
    if mask is None and key_length > key.shape[1]:
        mask = jnp.ones(key.shape[:2], bool)
    segments = None
    if mask is not None:
        # A query attends the keys of its own segment, which is number 1.
        segments = splash_attention.SegmentIds(
            q=jnp.ones((batch, query_length), jnp.int32),
            kv=_padded(mask, key_length).astype(jnp.int32),
        )
    kernel = splash_attention.make_splash_mha_single_device(
        splash_attention.MultiHeadMask(
            [splash_attention.FullMask((query_length, key_length))] * heads
        ),
        block_sizes=splash_attention.BlockSizes(
            block_q=query_block,
            block_kv=key_block,
            block_q_dkv=query_block,
            block_kv_dkv=key_block,
            block_q_dq=query_block,
            block_kv_dq=key_block,
        ),
        interpret=interpret,
    )
    query = query * jnp.asarray(width**-0.5, query.dtype)  # the kernel does not scale
    inputs = ((query, query_length), (key, key_length), (value, key_length))
    attended = jax.vmap(kernel)(*(_padded(x, n).swapaxes(1, 2) for x, n in inputs), segments)
    return attended.swapaxes(1, 2)[:, :queries]


def _permuted(x: jax.Array, order: jax.Array) -> jax.Array:
    """Takes x (B, L, ...) in the order (B, L), a permutation in each row.

    Its gradient writes every element once; that of take_along_axis adds them up atomically.
    """
    return jax.vmap(
        lambda row, taken: row.at[taken].get(unique_indices=True, mode="promise_in_bounds")
    )(x, order)


def _padded(x: jax.Array, length: int) -> jax.Array:
    """Fills axis 1 up with zeros."""
    return jnp.pad(x, [(0, 0), (0, length - x.shape[1])] + [(0, 0)] * (x.ndim - 2))


def _padding(length: int) -> tuple[int, int]:
    """Returns the length rounded up to whole lanes, and the largest block that divides it."""
    padded = -(-length // _LANES) * _LANES
    blocks = range(_LANES, _LARGEST_BLOCK + 1, _LANES)
    return padded, max(block for block in blocks if padded % block == 0)


def _zero_without_keys(attended: jax.Array, mask: jax.Array | None) -> jax.Array:
    if mask is None:
        return attended
    return jnp.where(mask.any(1)[:, None, None, None], attended, 0)


def platform() -> str:
    """Returns "cpu", "gpu" or "tpu": that of the ambient mesh, or else of the process."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def check_implementation(
    name: str, platform: str, dtype: Any, where: str = "attention_implementation"
) -> None:
    """Raises ValueError, naming the key `where`, for what this platform or dtype does not have."""
    if name == "flash" and platform != "tpu":
        raise ValueError(
            f"{where} = 'flash': must be 'auto' or 'xla' on {platform}, flash is a TPU kernel"
        )
    if name != "cudnn":
        return
    if platform != "gpu" or not _ampere():
        raise ValueError(
            f"{where} = 'cudnn': must be 'auto' or 'xla' on this {platform}, cudnn needs an "
            "NVIDIA GPU of compute capability 8.0 or more"
        )
    if jnp.dtype(dtype).itemsize != 2:
        raise ValueError(
            f"{where} = 'cudnn': must be 'auto' or 'xla' with dtype {jnp.dtype(dtype).name}, "
            "cudnn takes bfloat16"
        )


def _automatic(query: jax.Array) -> str:
    _, queries, _, width = query.shape
    if queries < LONG or query.dtype != jnp.bfloat16:
        return "xla"
    here = platform()
    if here == "gpu" and _ampere() and width % 8 == 0 and width <= 128:
        return "cudnn"
    # Without an ambient mesh nobody could tell the kernel how to split.
    known = not jax.sharding.get_abstract_mesh().empty or jax.device_count() == 1
    return "flash" if here == "tpu" and known else "xla"


def _ampere() -> bool:
    """Whether this process's first GPU has fused attention: NVIDIA's do from Ampere on.

    Without a GPU, one that is not there is compiled for: each of parallel/absent_gpus.py has it.
    """
    device = jax.local_devices()[0]
    if device.platform != "gpu":
        return True
    if "nvidia" not in device.device_kind.lower():
        return False
    return int(device.compute_capability.split(".")[0]) >= 8
