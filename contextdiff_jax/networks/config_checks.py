"""Checks of the networks' configs: messages name the key (`where`.key) and what is allowed."""


def check_choice(config: object, where: str, key: str, allowed: tuple[str | None, ...]) -> None:
    """Raises ValueError unless the value of `key` is one of `allowed`."""
    value = getattr(config, key)
    if value not in allowed:
        raise ValueError(
            f"{where}.{key} = {value!r}: must be one of {', '.join(map(str, allowed))}"
        )


def check_positive(config: object, where: str, *keys: str) -> None:
    """Raises ValueError unless the integers of these keys are >= 1."""
    for key in keys:
        if getattr(config, key) < 1:
            raise ValueError(f"{where}.{key} = {getattr(config, key)}: must be at least 1")


def check_positive_tuple(config: object, where: str, *keys: str) -> None:
    """Raises ValueError unless the tuples of these keys hold integers >= 1, one at least."""
    for key in keys:
        value = getattr(config, key)
        if not value or min(value) < 1:
            raise ValueError(f"{where}.{key} = {value}: must be integers of at least 1")


def check_even(where: str, key: str, value: int) -> None:
    """Raises ValueError unless `value` is even."""
    if value % 2:
        raise ValueError(f"{where}.{key} = {value}: must be even")


def check_divides(where: str, key: str, value: int, number: int, what: str) -> None:
    """Raises ValueError unless `value` divides `number`, which is of `what`."""
    if number % value:
        raise ValueError(f"{where}.{key} = {value}: must divide the {number} {what}")


def check_multiple(where: str, value: int, factor: int) -> None:
    """Raises ValueError unless `value` is a positive multiple of `factor`; `where` is its key."""
    if value < factor or value % factor:
        raise ValueError(f"{where} = {value}: must be a multiple of {factor}")
