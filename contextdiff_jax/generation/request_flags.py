"""Requests from the command line: flags for pictures of one condition, a file for all."""

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from contextdiff_jax.conditions.requests import Asked, Request, check_requests, names, of_captions
from contextdiff_jax.generation.request_files import read_requests

FLAGS = {
    **{"text": "--prompt", "label": "--label", "layout": "--layout"},
    **{"context": "--context", "query": "--query"},
}
"""By the condition that they are values of."""
_IN_CONTEXT = {"text", "context", "query"}  # which flags give together, each of them or not


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
            given, known = list(self.requests[0]), names(conditions)
            name = given[0]
            if set(known) != set(self.completed(conditions)[0]):
                flag = FLAGS.get(known[0]) if len(known) == 1 else None
                wrong = next((each for each in given if each not in known), name)
                raise ValueError(
                    f"{FLAGS[wrong]} gives {wrong!r}, this export's pictures are of "
                    f"{' and '.join(known) or 'no condition'}: give {flag or '--requests=FILE'}"
                )
            where = f"{FLAGS[name]} number"
        check_requests(self.completed(conditions), conditions, where)
        check_requests(self.edited(conditions), conditions, "--edit number")

    def completed(self, conditions: Asked) -> list[Request]:
        """Returns the requests, those of flags with None for what in-context exports have more."""
        if self.file or set(names(conditions)) != _IN_CONTEXT:
            return self.requests
        return [dict.fromkeys(names(conditions)) | dict(request) for request in self.requests]

    def edited(self, conditions: Asked) -> list[Request]:
        """Returns the requests with the values of `edits`, [] where there are none."""
        if not self.edits:
            return []
        edits, requests = of_captions(self.edits, conditions), self.completed(conditions)
        return [{**request, **edit} for request, edit in zip(requests, edits, strict=True)]


def wanted(
    given: Mapping[str, Sequence[str]],
    file: str | None,
    edits: Sequence[str] = (),
    pictures: Mapping[str, Any] = MappingProxyType({}),
) -> Wanted:
    """Returns what the flags ask for; one of those of FLAGS and --requests must be given.

    given: values by condition, one condition's alone. pictures: of in-context conditions, the same
    for every prompt, or for one request without; None or [] is not given. Raises
    ValueError where nothing is given, or several that do not go together, and as `read_requests`
    does.
    """
    pictures = {name: value for name, value in pictures.items() if value not in (None, [])}
    requests: dict[str, list[Any]] = {
        FLAGS[name]: [{name: value} for value in values] for name, values in given.items()
    }
    if pictures:
        prompts = requests.pop("--prompt", [])
        flags = ["--prompt"] * bool(prompts) + [FLAGS[name] for name in pictures]
        requests = {
            " and ".join(flags): [{**prompt, **pictures} for prompt in prompts or [{}]],
            **requests,
        }
    requests["--requests"] = [] if file is None else read_requests(file, "requests")
    used = [flag for flag, found in requests.items() if found]
    if not used:
        raise ValueError(
            "no requests: give --prompt=TEXT, --prompts=FILE, --label=NAME, --layout=BOXES, "
            "--context=PICTURE, --query=PICTURE or --requests=FILE"
        )
    if len(used) > 1:
        raise ValueError(f"{' and '.join(used)} are given: must be one of them")
    return Wanted(requests[used[0]], tuple(edits), file or "")
