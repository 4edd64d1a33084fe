import sys

from helpers.style.command import main

sys.exit(main())
