"""Requests from the command line: flags for pictures of one condition, a file for all."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from contextdiff_jax.conditions.requests import Asked, Request, check_requests, names, of_captions
from contextdiff_jax.generation.request_files import read_requests

FLAGS = {"text": "--prompt", "label": "--label", "layout": "--layout"}
"""By the condition that they are values of."""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What flags ask for.

    requests: one per picture. edits: other values of their captioned condition, as many or none.
    file: that the requests are from, "" where they are of a flag.
    """

    requests: list[Request]
    edits: tuple[str, ...] = ()
    file: str = ""

    def check(self, conditions: Asked | None) -> None:
        """Raises ValueError where an export with these conditions cannot draw them.

        conditions: None where they are not known before it is loaded.
        """
        if conditions is None:
            return
        where = f"--requests={self.file}: line"
        if not self.file:
            [name], known = self.requests[0], names(conditions)
            if known != [name]:
                flag = FLAGS.get(known[0]) if len(known) == 1 else None
                raise ValueError(
                    f"{FLAGS[name]} gives {name!r}, this export's pictures are of "
                    f"{' and '.join(known) or 'no condition'}: give {flag or '--requests=FILE'}"
                )
            where = f"{FLAGS[name]} number"
        check_requests(self.requests, conditions, where)
        check_requests(self.edited(conditions), conditions, "--edit number")

    def edited(self, conditions: Asked) -> list[Request]:
        """Returns the requests with the values of `edits`, [] where there are none."""
        if not self.edits:
            return []
        edits = of_captions(self.edits, conditions)
        return [{**request, **edit} for request, edit in zip(self.requests, edits, strict=True)]


def wanted(
    given: Mapping[str, Sequence[str]], file: str | None, edits: Sequence[str] = ()
) -> Wanted:
    """Returns what the flags ask for; one of those of FLAGS and --requests must be given.

    given: values by condition. Raises ValueError where none is, or several are, and as
    `read_requests` does.
    """
    requests: dict[str, list[Any]] = {
        FLAGS[name]: [{name: value} for value in values] for name, values in given.items()
    }
    requests["--requests"] = [] if file is None else read_requests(file, "requests")
    used = [flag for flag, found in requests.items() if found]
    if not used:
        raise ValueError(
            "no requests: give --prompt=TEXT, --prompts=FILE, --label=NAME, --layout=BOXES or "
            "--requests=FILE"
        )
    if len(used) > 1:
        raise ValueError(f"{' and '.join(used)} are given: must be one of them")
    return Wanted(requests[used[0]], tuple(edits), file or "")
