"""What the entry points share: errors as one sentence, and documented exit codes.

0 done; 2 the config, data, weights or arguments were refused; 3 the loss was not finite; 4 a
checkpoint could not be written or read; 75 stopped on request, saved, the same command goes on.
"""

import logging as std_logging
import os
import sys
from collections.abc import Callable

import jax
from absl import app, logging
from etils import epath

from contextdiff_jax.training.checkpoints import CheckpointError
from contextdiff_jax.training.failure import NotFinite
from contextdiff_jax.training.interruption import EXIT_INTERRUPTED, Interrupted

EXIT_REFUSED, EXIT_NOT_FINITE, EXIT_CHECKPOINT = 2, 3, 4


def keep_compiled_programs(folder: epath.PathLike) -> None:
    """Stores compiled programs in `folder`, so that a restart compiles nothing again.

    JAX_COMPILATION_CACHE_DIR, where set, goes first.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(folder))


def run(command: Callable[[], None]) -> None:
    """Parses the flags, runs `command`, and ends the process with the code of what it raised.

    --verbosity=1 shows the traceback of what was refused.
    """

    def main(argv: list[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unexpected argument {argv[1]!r}")
        if logging.get_verbosity() < logging.DEBUG:
            logging.get_absl_logger().addFilter(_is_ours)
        try:
            command()
        except Interrupted as stop:
            _end(stop, EXIT_INTERRUPTED)
        except NotFinite as error:
            _end(error, EXIT_NOT_FINITE)
        except CheckpointError as error:
            _end(error, EXIT_CHECKPOINT)
        except (ValueError, FileNotFoundError) as error:
            _end(error, EXIT_REFUSED)

    app.run(main)


def _is_ours(record: std_logging.LogRecord) -> bool:
    """Keeps Orbax's and grain's own progress, tens of lines a checkpoint, out of the log."""
    ours = "contextdiff_jax" in record.pathname
    return ours or record.levelno >= std_logging.ERROR


def _end(error: Exception, code: int) -> None:
    logging.debug("ended by", exc_info=error)
    print(f"contextdiff_jax: {error}", file=sys.stderr)
    sys.exit(code)
