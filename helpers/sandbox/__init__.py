"""Run one function in a fresh, budgeted, watched process; the caller always survives.

caller (your kernel)  ->  supervisor (watches memory and time)  ->  worker (runs the function)
"""

from helpers.sandbox.caller import ChildError, ChildResult, report, run
from helpers.sandbox.outcome import Outcome

__all__ = ["ChildError", "ChildResult", "Outcome", "report", "run"]
