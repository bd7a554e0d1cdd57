"""With which network a parameter trains, by its path."""

from typing import Any


def of_adapter(path: tuple[Any, ...]) -> bool:
    """Whether the parameter at this path of jax.tree.map_with_path is the adapter's.

    Those are params["adapter"], and params["conditions"][NAME]["adapter"]: what a condition has for
    the adapter alone.
    """
    keys = [getattr(entry, "key", None) for entry in path[:3]]
    return keys[0] == "adapter" or (keys[0] == "conditions" and keys[2:] == ["adapter"])
