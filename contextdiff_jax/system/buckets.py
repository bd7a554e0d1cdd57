"""What is wrong with a bucket, whichever library says so (gcsfs, s3fs, TensorFlow, ...)."""

import contextlib
import os
from collections.abc import Iterator

from etils import epath

# Root modules of the exceptions those libraries raise beside OSError.
_LIBRARIES = ("tensorflow", "google", "gcsfs", "s3fs", "botocore", "aiobotocore", "aiohttp")
_CODES = {"401", "403", "404"}
_NAMES = {
    *("PermissionDeniedError", "UnauthenticatedError", "NotFoundError"),  # TensorFlow
    *("Forbidden", "Unauthorized", "NotFound"),  # google.api_core
    *("DefaultCredentialsError", "RefreshError", "NoCredentialsError", "NoSuchBucket"),
}
# gcsfs says so in an OSError without a number.
_SENTENCES = ("Forbidden", "Unauthorized", "Access Denied", "AccessDenied", "Invalid Credentials")


class Unavailable(OSError):
    """A bucket did not answer as it should; trying again may help."""


def in_bucket(path: epath.PathLike) -> bool:
    """Whether a path is one of a bucket (gs://, s3://), not of this machine."""
    return "://" in os.fspath(path)


def of_bucket(error: BaseException) -> bool:
    """Whether an exception is one that a bucket's library raises."""
    if isinstance(error, OSError):
        return error.errno is None or isinstance(error, (PermissionError, FileNotFoundError))
    return type(error).__module__.partition(".")[0] in _LIBRARIES


def is_permanent(error: BaseException) -> bool:
    """Whether rights are missing, or the thing itself: trying again cannot help."""
    code = getattr(error, "code", None)
    return (
        isinstance(error, (PermissionError, FileNotFoundError))
        or str(getattr(error, "status_code", code)) in _CODES
        or type(error).__name__ in _NAMES
        or str(error).startswith(_SENTENCES)
    )


@contextlib.contextmanager
def explained(path: epath.PathLike, cannot: str) -> Iterator[None]:
    """Turns a bucket's errors into one sentence; `cannot` says what failed, "be read".

    Raises ValueError where trying again cannot help, else Unavailable. Other paths' errors stay.
    """
    try:
        yield
    except Exception as error:  # each library has types of its own
        if isinstance(error, Unavailable) or not (in_bucket(path) and of_bucket(error)):
            raise
        sentence = f"{path} cannot {cannot}: {first_line(error)}"
        if is_permanent(error):
            raise ValueError(
                f"{sentence} (does it exist, and does this account have the rights?)"
            ) from error
        raise Unavailable(f"{sentence} (the same command tries again)") from error


def first_line(error: BaseException) -> str:
    """Returns the first line of what an exception says, or its name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
