"""How a command ends: bad input in one sentence with exit code 2, and quietly where nobody reads on."""

import atexit
import gc
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence

from splade_lit.command_line.threads import set_waiting
from splade_lit.core.distributed import rank
from splade_lit.core.errors import UserError


def run_command(main: Callable[[Sequence[str] | None], None], arguments: Sequence[str] | None = None) -> None:
    """Run a command; bad input ends with one sentence on stderr and exit code 2.

    Args:
        main: takes the arguments of the command line, None for the real ones.
        arguments: what to give it.
    """
    set_waiting()
    atexit.register(gc.freeze)  # or Python, as it ends, looks through all that torch and its like have made: seconds
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("splade_lit").setLevel(logging.INFO if rank() == 0 else logging.ERROR)
    quiet_libraries()
    warnings.filterwarnings("ignore", module=r"lightning\..*|torch\..*|jsonargparse\..*")
    _tolerate_any_text()
    try:
        main(arguments)
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def quiet_libraries() -> None:
    """Hear no more of which devices there are, what else to install, and the like.

    Lightning resets its levels when it is imported: commands that import it late call this again.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # bm25s sets its level too; a filter of its one logger stays.
    logging.getLogger("bm25s").addFilter(_is_warning)


def _is_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


def _tolerate_any_text() -> None:
    """Output shows `?` where its encoding lacks a character, and input keeps bytes of another for a `Mender`."""
    for stream, errors in ((sys.stdout, "replace"), (sys.stdin, "surrogateescape")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
