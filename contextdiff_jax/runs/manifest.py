"""What a folder of results holds, recorded before the first of them: others are not mixed in.

Pictures, edits, features and terms of bits per dimension begin with `begin`; stored embeddings and
latents, whose record tells more than what decides, with `claim`. Whoever gives the same command
again finds the folder theirs and does what is missing.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from contextdiff_jax.config import differences
from contextdiff_jax.parallel import distributed
from contextdiff_jax.system.atomic_write import cleared, written_whole
from contextdiff_jax.system.json_files import read_object

_FILE = "manifest.json"
_MOST_LINES = 6  # of differences in a message


def begin(
    folder: epath.PathLike,
    manifest: Mapping[str, Any],
    what: str,
    subfolders: Sequence[str] = (),
    texts: Mapping[str, str] | None = None,
) -> None:
    """Makes the folder, or checks that it began to hold just that; all processes must call it.

    manifest: what decides about the results, as JSON holds it. what: names them, for messages.
    texts: small files that belong to the manifest, by name; written once, before it. What killed
    writers left in the folder and its subfolders is removed.

    Raises ValueError, naming the differences, where the folder holds something else.
    """
    folder = epath.Path(folder)
    path = folder / _FILE

    def record() -> None:
        for name, text in {**(texts or {}), _FILE: json.dumps(manifest, indent=1)}.items():
            with written_whole(folder / name) as file:
                file.write_text(text)

    if distributed.is_main():
        recorded = read_object(path, finite=False) if path.exists() else None
        claim(folder, manifest, recorded, what, record)
        for name in subfolders:
            cleared(folder / name)
    distributed.wait_for_all(f"{folder} is begun")


def claim(
    folder: epath.Path,
    manifest: Mapping[str, Any],
    recorded: Mapping[str, Any] | None,
    what: str,
    record: Callable[[], None],
) -> None:
    """Checks that a folder is for what the manifest says, clears it, and records that it is.

    recorded: what the folder says of itself, None where it says nothing; then `record` is called.
    One process alone may call it, and no other may be writing there.

    Raises ValueError, naming the differences, where the folder holds something else.
    """
    lines = [] if recorded is None else differences(manifest, recorded, what)
    if lines:
        raise ValueError(
            f"{folder} holds {what} of something else: {'; '.join(lines[:_MOST_LINES])}"
            + (f"; and {len(lines) - _MOST_LINES} more" if len(lines) > _MOST_LINES else "")
            + "; use another --output, or restore the old values"
        )
    cleared(folder)
    if recorded is None:
        record()
