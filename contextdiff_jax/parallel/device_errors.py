"""What JAX says when a device's memory does not suffice."""

import jax


def out_of_memory(error: BaseException) -> str | None:
    """Returns the sentence for an exception of that kind, at compiling or at running, else None."""
    if not isinstance(error, jax.errors.JaxRuntimeError) or "RESOURCE_EXHAUSTED" not in str(error):
        return None
    line = next(line for line in str(error).splitlines() if "RESOURCE_EXHAUSTED" in line)
    return f"the memory of a device does not suffice: {line.strip().rstrip('.')}."
