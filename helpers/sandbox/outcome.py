"""How a child process ends."""

from enum import StrEnum


class Outcome(StrEnum):
    """How a function ended in its child process. The members print and compare like plain strings."""

    FINISHED = "finished"
    OUT_OF_MEMORY = "out of memory"  # an allocation was refused, or the budget was passed and the tree killed
    KILLED = "killed"  # it died of a signal, or left by itself
    HUNG = "hung"  # no end within the timeout
    RAISED = "raised"

    __repr__ = str.__repr__
