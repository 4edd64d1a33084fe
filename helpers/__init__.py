"""What every lesson needs but does not teach. Importing this package imports no framework."""

from helpers._quiet import quiet_tensorflow

quiet_tensorflow()
