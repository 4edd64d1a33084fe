"""Run one function in a fresh, budgeted, watched process; the caller always survives.

caller (your kernel)  ->  supervisor (watches memory and time)  ->  worker (runs the function)
"""

from helpers.sandbox.caller import ChildError, ChildResult, Outcome, report, run

__all__ = ["ChildError", "ChildResult", "Outcome", "report", "run"]
