import sys

from helpers.benchmark.command import main

sys.exit(main())
