"""Print a pipeline as a single file that needs only TensorFlow, OpenCV and NumPy, and no code from this course.

python -m helpers.pipelines NAME > my_pipeline.py
"""

import argparse
import sys

from helpers.files import ExitStatus
from helpers.pipelines import PIPELINES
from helpers.take_home import TakeHomeError, take_home


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m helpers.pipelines", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help=f"one of {', '.join(PIPELINES)}")
    name = parser.parse_args(arguments).name
    if name not in PIPELINES:
        print(f"{parser.prog} NAME > my_pipeline.py, and NAME is one of {', '.join(PIPELINES)}", file=sys.stderr)
        return ExitStatus.CANNOT
    try:
        text = take_home(name)
        with open(sys.stdout.fileno(), "wb", closefd=False) as output:  # UTF-8, whatever the terminal's encoding
            output.write(text.encode())
    except (TakeHomeError, OSError) as error:
        print(error, file=sys.stderr)
        return ExitStatus.CANNOT
    return ExitStatus.FINE


if __name__ == "__main__":
    sys.exit(main())
