"""What every lesson needs but does not teach. Importing this package imports no framework."""

import contextlib
import os
import sys


def _is_a_command() -> bool:
    """Tell whether this program is a command of the course: a script of it, or ``python -m helpers.NAME``."""
    program = sys.argv[0] if sys.argv else ""  # "-m" while python -m looks for NAME
    with contextlib.suppress(OSError):  # the working directory is gone
        return program == "-m" or os.path.dirname(os.path.dirname(os.path.abspath(program))) == os.path.dirname(
            __path__[0]
        )
    return False


if _is_a_command():
    from helpers.quiet import quiet_interrupts

    quiet_interrupts()
