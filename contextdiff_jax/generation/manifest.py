"""What a folder of results holds, recorded before the first of them: others are not mixed in."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from contextdiff_jax.config import differences
from contextdiff_jax.parallel import distributed
from contextdiff_jax.system.atomic_write import cleared, written_whole
from contextdiff_jax.system.json_files import read_object

_FILE = "manifest.json"


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
    if distributed.is_main():
        begun = _is_begun(folder, manifest, what)
        for path in (folder, *(folder / name for name in subfolders)):
            cleared(path)
        if not begun:
            for name, text in {**(texts or {}), _FILE: json.dumps(manifest, indent=1)}.items():
                with written_whole(folder / name) as file:
                    file.write_text(text)
    distributed.wait_for_all(f"{folder} is begun")


def _is_begun(folder: epath.Path, manifest: Mapping[str, Any], what: str) -> bool:
    path = folder / _FILE
    if not path.exists():
        return False
    lines = differences(manifest, read_object(path, finite=False), what)
    if lines:
        raise ValueError(
            f"{folder} holds {what} of something else: {'; '.join(lines[:6])}"
            + (f"; and {len(lines) - 6} more" if len(lines) > 6 else "")
            + "; use another --output, or give back the old values"
        )
    return True
