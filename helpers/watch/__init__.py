"""Is *your* training waiting for its data? One line in your own script answers; the README begins with it.

`watch_fit` tries a model and its data for some steps, and leaves the model as it was. `WatchFit` is a callback for a
whole training. ``python -m helpers.watch script.py`` puts that callback into every `fit` of a script. They work with
the Keras backends TensorFlow, JAX and PyTorch; Keras is imported only when they are called.
"""

from helpers.watch.callback import WatchFit
from helpers.watch.fit import FitReport, watch_fit

__all__ = ["FitReport", "WatchFit", "watch_fit"]
