"""What every lesson needs but does not teach. Importing this package imports no framework."""

import os

# TensorFlow reads this once, when it is imported: keep its start-up notes off the reader's page.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
