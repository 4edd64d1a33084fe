"""How a command of this folder ends when a signal asks it to: in order, and without a traceback."""

import signal
import sys
from collections.abc import Callable

__all__ = ["run_command"]

_ASKING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


def run_command(main: Callable[[], int]) -> int:
    """Call `main` with KeyboardInterrupt for Ctrl-C and SystemExit for SIGTERM and SIGHUP, so that ``finally`` holds.

    Before, while its imports run, and afterwards, Ctrl-C may just kill the process. What it was started to ignore, as
    SIGHUP under ``nohup``, stays ignored.
    """
    for number in _ASKING:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _leave)
    is_heard = signal.getsignal(signal.SIGINT) != signal.SIG_IGN
    try:
        if is_heard:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return main()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        if is_heard:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _leave(number: int, frame: object) -> None:
    for other in _ASKING:
        signal.signal(other, signal.SIG_IGN)  # a second one must not stop what `finally` does
    sys.exit(128 + number)
