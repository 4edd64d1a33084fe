import sys

from helpers.watch.callback import main

sys.exit(main())
