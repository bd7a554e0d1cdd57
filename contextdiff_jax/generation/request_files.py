"""Requests in files: JSON lines, {"text": "a red circle"} one a line, which strangers may make."""

from collections.abc import Sequence
from typing import Any

from etils import epath

from contextdiff_jax.arguments import existing_file
from contextdiff_jax.conditions.requests import Request
from contextdiff_jax.system import buckets
from contextdiff_jax.system.atomic_write import written_whole
from contextdiff_jax.system.json_files import read_object_lines
from contextdiff_jax.system.limits import MOST_ENTRIES, check_text
from contextdiff_jax.system.printable import printable_json

_DEEPEST = 16  # lists and objects in a value; Python's own limit is near 1,000


def read_requests(path: epath.PathLike, flag: str) -> list[Request]:
    """Returns the requests of a file, in order, not yet checked against an export's conditions.

    Raises ValueError naming the flag or the line where the file is not there, empty, larger than
    64 MiB, or longer than MOST_ENTRIES lines, where a line is no JSON object, or where it is nested
    too deeply, or a text in it is longer than MOST_CHARACTERS or cannot be written as UTF-8.
    """
    file = existing_file(path, flag)
    with buckets.explained(file, f"be read (--{flag})"):
        found = read_object_lines(file, MOST_ENTRIES)
    if not found:
        raise ValueError(f"--{flag}={path}: holds no request; give one JSON object a line")
    for number, request in enumerate(found, 1):
        for name, value in request.items():
            _check_inside(value, f"--{flag}={path}: line {number}: {name}")
    return found


def _check_inside(value: Any, where: str, depth: int = 0) -> None:
    if isinstance(value, str):
        check_text(value, where)
        try:
            value.encode()
        except UnicodeEncodeError as error:  # JSON can escape halves of a character
            raise ValueError(
                f"{where} = {value[:60]!r}: must be text, it has a lone surrogate"
            ) from error
    elif isinstance(value, (list, dict)):
        if depth == _DEEPEST:
            raise ValueError(f"{where} is nested too deeply: must be at most {_DEEPEST} levels")
        for inner in value.values() if isinstance(value, dict) else value:
            _check_inside(inner, where, depth + 1)


def write_requests(folder: epath.PathLike, requests: Sequence[Request]) -> None:
    """Writes requests.jsonl, as `read_requests` reads it.

    Beside it is prompts.txt with one prompt a line where each request is a prompt of one line.
    """
    folder = epath.Path(folder)
    with written_whole(folder / "requests.jsonl") as file:
        file.write_bytes(lines_of(requests).encode())
    prompts = [request.get("text") or "" for request in requests]
    plain = all(set(request) == {"text"} for request in requests)
    if plain and not any("\n" in prompt for prompt in prompts):
        (folder / "prompts.txt").write_bytes("".join(f"{line}\n" for line in prompts).encode())
    else:
        (folder / "prompts.txt").unlink(missing_ok=True)  # of pictures that were here before


def lines_of(requests: Sequence[Request]) -> str:
    """Returns requests as JSON lines."""
    return "".join(f"{printable_json(dict(request), indent=None)}\n" for request in requests)
