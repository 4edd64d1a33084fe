"""What every lesson needs but does not teach. Importing this package imports no framework."""

import os
import sys

_PROGRAM = sys.argv[0] if sys.argv else ""  # "-m" while python -m helpers.NAME looks for NAME
if _PROGRAM == "-m" or os.path.dirname(os.path.dirname(os.path.abspath(_PROGRAM))) == os.path.dirname(__path__[0]):
    from helpers.quiet import quiet_interrupts

    quiet_interrupts()
