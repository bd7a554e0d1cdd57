"""Which seeds there are."""

LARGEST_SEED = 2**32 - 1


def check_seed(seed: int, where: str) -> int:
    """Returns the seed, or raises ValueError naming it unless it is in 0..2^32 - 1.

    JAX takes a seed modulo 2^32, so that two beyond this range could silently be one.
    """
    if not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"{where} = {seed}: must be a seed in 0..{LARGEST_SEED}")
    return seed
