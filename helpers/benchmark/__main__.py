import os
import signal
import sys


def stop(number: int, _: object) -> None:
    """End at once: while modules are imported nothing is open, and an exception could be taken for a failed import."""
    os.write(2, b"benchmark: stopped\n")
    os._exit(128 + number)


for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, stop)

from helpers.benchmark.command import main  # noqa: E402

status = main()
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)  # all is done: a late one must not change the exit status
sys.exit(status)
