"""What a folder of results holds, recorded before the first of them: others are not mixed in."""

import json
from typing import Any

from etils import epath

from contextdiff_jax.config import differences
from contextdiff_jax.data.atomic_write import written_whole

_FILE = "manifest.json"


def is_begun(folder: epath.PathLike, manifest: dict[str, Any], what: str) -> bool:
    """Returns whether the folder has begun to hold just that; `what` names it, for messages.

    Raises ValueError, naming the differences, where it holds something else.
    """
    path = epath.Path(folder) / _FILE
    if not path.exists():
        return False
    lines = differences(manifest, json.loads(path.read_text()), what)
    if lines:
        raise ValueError(
            f"{folder} holds {what} of something else: {'; '.join(lines[:6])}"
            + (f"; and {len(lines) - 6} more" if len(lines) > 6 else "")
            + "; use another --output, or give back the old values"
        )
    return True


def record(folder: epath.PathLike, manifest: dict[str, Any]) -> None:
    """Writes the manifest, JSON values, whole."""
    with written_whole(epath.Path(folder) / _FILE) as file:
        file.write_text(json.dumps(manifest, indent=1))
