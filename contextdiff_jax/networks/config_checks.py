"""Checks of the networks' configs: messages name the key (`where`.key) and what is allowed."""


def check_choice(config: object, where: str, key: str, allowed: tuple[str, ...]) -> None:
    """Raises ValueError unless the value of `key` is one of `allowed`."""
    value = getattr(config, key)
    if value not in allowed:
        raise ValueError(f"{where}.{key} = {value!r} is not allowed: one of {allowed} is.")


def check_positive(config: object, where: str, *keys: str) -> None:
    """Raises ValueError unless the integers of these keys are >= 1."""
    for key in keys:
        if getattr(config, key) < 1:
            raise ValueError(f"{where}.{key} = {getattr(config, key)} is not allowed: >= 1 is.")


def check_positive_tuple(config: object, where: str, *keys: str) -> None:
    """Raises ValueError unless the tuples of these keys hold integers >= 1, one at least."""
    for key in keys:
        value = getattr(config, key)
        if not value or min(value) < 1:
            raise ValueError(f"{where}.{key} = {value} is not allowed: integers >= 1 are.")


def check_even(where: str, key: str, value: int) -> None:
    """Raises ValueError unless `value` is even."""
    if value % 2:
        raise ValueError(f"{where}.{key} = {value} is not allowed: an even number is.")


def check_divides(where: str, key: str, value: int, number: int, what: str) -> None:
    """Raises ValueError unless `value` divides `number`, which is of `what`."""
    if number % value:
        raise ValueError(
            f"{where}.{key} = {value} is not allowed: a divisor of the {number} {what} is."
        )


def check_multiple(where: str, value: int, factor: int) -> None:
    """Raises ValueError unless `value` is a positive multiple of `factor`; `where` is its key."""
    if value < factor or value % factor:
        raise ValueError(f"{where} = {value} is not allowed: a multiple of {factor} is.")
