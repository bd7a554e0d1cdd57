"""What the entry points share: errors as one sentence, documented exit codes, flags to join others.

0 done; 2 the config, data, weights or arguments were refused, such as a folder that holds no export
or no checkpoint; 3 the loss was not finite; 4 a checkpoint or export is damaged, or could not be
written; 75 stopped on request (SIGTERM, SIGHUP, Ctrl-C), saved if there was anything to save: the
same command goes on; 134 (SIGABRT) a library ended the process: another process did not join or was
lost, or C++ was refused memory, and the last line says which; 1 anything else, such as a bucket
that did not answer, or too little memory: the same command may go on.
"""

import contextlib
import logging as std_logging
import os
import sys
from collections.abc import Callable
from typing import NoReturn

import jax
from absl import app, flags, logging
from etils import epath

from contextdiff_jax import command_line
from contextdiff_jax.parallel import abort_reasons, distributed
from contextdiff_jax.parallel.device_errors import out_of_memory
from contextdiff_jax.system import buckets, notices
from contextdiff_jax.system.atomic_write import probe, sweep
from contextdiff_jax.system.host_memory import keep_freed_memory
from contextdiff_jax.system.interruption import Interrupted
from contextdiff_jax.system.notices import EXIT_INTERRUPTED
from contextdiff_jax.system.printable import printable_lines
from contextdiff_jax.system.seeds import LARGEST_SEED
from contextdiff_jax.training.checkpoints import CheckpointError
from contextdiff_jax.training.failure import NotFinite

flags.disclaim_key_flags()  # --help shows the flags defined here as those of the entry point

EXIT_OTHER, EXIT_REFUSED, EXIT_NOT_FINITE, EXIT_CHECKPOINT = 1, 2, 3, 4


def define_process_flags() -> Callable[[], distributed.Processes]:
    """Defines the flags of runs of several processes; returns the function that reads them."""
    mode = flags.DEFINE_enum(
        "distributed",
        "auto",
        distributed.MODES,
        "auto: the processes of --coordinator, else of the cluster JAX detects (Cloud TPU, GKE, "
        "SLURM), else one. explicit: as --coordinator, --num_processes and --process_id say. "
        "none: one process.",
    )
    coordinator = flags.DEFINE_string(
        "coordinator", None, "HOST:PORT where process 0 listens; the same for every process."
    )
    num_processes = flags.DEFINE_integer("num_processes", None, "Number of processes.")
    process_id = flags.DEFINE_integer("process_id", None, "Number of this process, from 0.")
    join_timeout = flags.DEFINE_integer(
        "join_timeout_s", 300, "Seconds until every process must have joined."
    )
    heartbeat_timeout = flags.DEFINE_integer(
        "heartbeat_timeout_s", 100, "Seconds without a sign of life until a process counts as lost."
    )
    return lambda: distributed.Processes(
        mode.value,
        coordinator.value,
        num_processes.value,
        process_id.value,
        join_timeout.value,
        heartbeat_timeout.value,
    )


def define_seed(name: str, default: int | None, text: str) -> flags.FlagHolder:
    """Defines a flag for a seed, which must be in 0..2^32 - 1."""
    return flags.DEFINE_integer(name, default, text, lower_bound=0, upper_bound=LARGEST_SEED)


def define_augmentation() -> flags.FlagHolder:
    """Defines --augmentation, None where it is left out."""
    return flags.DEFINE_float(
        *("augmentation", None),
        "Noise level of the low-resolution condition: 0 is clean, 1 is noise; the export's "
        "samples.augmentation by default.",
        lower_bound=0.0,
        upper_bound=1.0,
    )


def join(processes: distributed.Processes) -> None:
    """Starts the run's processes; must come before any use of devices.

    Process 0 speaks for all: of the others only warnings and errors are logged.
    """
    notices.doing("joining the other processes")
    distributed.start(processes)
    notices.doing("checking what was asked for")
    if not distributed.is_main() and logging.get_verbosity() < logging.DEBUG:
        logging.set_verbosity(logging.WARNING)


def keep_compiled_programs(folder: epath.PathLike) -> None:
    """Stores compiled programs in `folder`, so that a restart compiles nothing again.

    JAX_COMPILATION_CACHE_DIR, where set, goes first.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(folder))


def check_writable(folder: epath.PathLike, flag: str) -> None:
    """Makes `folder` and writes to it, so that missing rights show before any long work.

    Raises ValueError, naming the flag and the path, when that fails; buckets.Unavailable where a
    bucket may work the next time.
    """
    path = epath.Path(folder)
    try:
        with buckets.explained(folder, f"be written to (--{flag})"):
            path.mkdir(parents=True, exist_ok=True)
            probe(path)
            sweep(path)
    except buckets.Unavailable:
        raise
    except (OSError, ImportError) as error:  # ImportError: the bucket's library is not installed
        raise ValueError(f"--{flag}={folder}: cannot be written to: {error}") from error


def run(command: Callable[..., None], takes_rest: bool = False) -> None:
    """Parses the flags, runs `command`, and ends the process with the code of what it raised.

    takes_rest: `command` is given the arguments after a lone --, or [].
    --verbosity=1 shows the traceback of what was refused.
    """

    def main(argv: list[str]) -> None:
        if len(argv) > 1 and not takes_rest:
            _end(f"{argv[1]!r}: unexpected argument; flags begin with --", EXIT_REFUSED)
        hide_libraries()
        logging.get_absl_handler().setFormatter(_Printable())
        notices.doing("checking what was asked for")
        try:
            command(*([argv[1:]] if takes_rest else []))
        except Interrupted as stop:
            _end(stop, EXIT_INTERRUPTED)
        except NotFinite as error:
            _end(error, EXIT_NOT_FINITE)
        except CheckpointError as error:
            _end(error, EXIT_CHECKPOINT)
        except (ValueError, FileNotFoundError) as error:
            _end(error, EXIT_REFUSED)
        except jax.errors.JaxRuntimeError as error:
            sentence = out_of_memory(error)
            if sentence is None:
                raise
            _end(f"{sentence} A smaller batch needs less of it.", EXIT_REFUSED)
        except BaseException as error:  # what Rust panics with is no Exception
            sentence = abort_reasons.of_memory(error)
            if sentence is not None:
                _end_now(sentence, EXIT_OTHER)
            if not buckets.of_bucket(error):
                raise
            _end(error, EXIT_REFUSED if buckets.is_permanent(error) else EXIT_OTHER)

    keep_freed_memory()
    app.run(main, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    """Parses the flags for absl, whose own answer to a wrong one ends with 1."""
    try:
        return command_line.parse(argv)
    except command_line.Mistake as mistake:
        _end(mistake, EXIT_REFUSED)
    except SystemExit:  # absl's, after --help
        sys.exit(0)


def hide_libraries() -> None:
    """Keeps Orbax's and grain's own progress out of the log, unless everything is asked for."""
    if logging.get_verbosity() < logging.DEBUG:
        logging.get_absl_logger().addFilter(_is_ours)


def _is_ours(record: std_logging.LogRecord) -> bool:
    """Keeps Orbax's and grain's own progress, tens of lines a checkpoint, out of the log."""
    ours = "contextdiff_jax" in record.pathname
    return ours or record.levelno >= std_logging.ERROR


class _Printable(logging.PythonFormatter):
    """Shows what a terminal would obey as escapes: names and captions come from strangers."""

    def format(self, record: std_logging.LogRecord) -> str:
        return printable_lines(super().format(record))


def _end(error: BaseException | str, code: int) -> NoReturn:
    _say(error)
    sys.exit(code)


def _end_now(error: Exception | str, code: int) -> None:
    """Ends the process without waiting for threads: refused memory, some would never end."""
    _say(error)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _say(error: BaseException | str) -> None:
    notices.doing("ending")
    logging.debug("ended by", exc_info=True)
    with contextlib.suppress(OSError):  # nobody reads it any more: the code still says what it was
        print(f"contextdiff_jax: {printable_lines(error)}", file=sys.stderr)
