"""What a trained style network is for: it is loaded, repaints pictures, and is exported.

Called by `command` and by lesson 10.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from helpers.files import printable
from helpers.style.network import BORDER_PX, style_network
from helpers.style.settings import load_settings
from helpers.style.training import first_line, restored

__all__ = ["export_network", "load_network", "stylise"]


def load_network(path: str | os.PathLike) -> keras.Model:
    """Load a trained network: from a file ``.keras``, or the last checkpoint of a run's folder.

    A FileNotFoundError says that nothing is there yet, a ValueError that it is no such network.
    """
    path, shown = Path(path), printable(path)
    if path.is_dir():
        if not (path / "settings.yaml").exists():
            raise FileNotFoundError(f"{shown}: no run, it has no settings.yaml; give what `train --to` made")
        network = style_network(load_settings(path / "settings.yaml").width)
        if not restored(path, network=network).latest_checkpoint:
            raise FileNotFoundError(f"{shown}: nothing saved yet; the first checkpoint comes after save_every steps")
        return network
    if not path.is_file():
        raise FileNotFoundError(f"{shown}: no such network; give a run's folder or a file .keras")
    try:
        network = keras.models.load_model(path, compile=False)
    except (ValueError, TypeError, OSError, KeyError) as error:
        raise ValueError(f"{shown}: no Keras network that can be loaded ({first_line(error)})") from error
    if network.input_shape != (None, None, None, 3) or network.output_shape[-1] != 3:
        raise ValueError(f"{shown}: a network of {network.input_shape}, not one that repaints pictures")
    return network


def stylise(network: keras.Model, picture: np.ndarray) -> np.ndarray:
    """Repaint one picture, uint8 RGB ``(height, width, 3)``; raise a ValueError if a side has 10 pixels or fewer."""
    height, width, _ = picture.shape
    if min(height, width) <= BORDER_PX:
        raise ValueError(f"a picture of {width}×{height} px; both sides must have more than {BORDER_PX}")
    painted = keras.ops.convert_to_numpy(network(picture[np.newaxis], training=False))[0]
    return np.rint(np.clip(painted, 0, 255)).astype(np.uint8)


def export_network(network: keras.Model, folder: str | os.PathLike) -> tuple[Path, Path]:
    """Write a network as ``network.keras`` and as a SavedModel ``saved_model/``, which needs nothing of this course.

    The SavedModel's ``serve`` takes uint8 ``(n, height, width, 3)`` of any size and returns the same. The other file
    is loaded by ``keras.models.load_model`` once `helpers.style.network` is imported. The folder must be a new one, or
    a FileExistsError is raised.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{printable(folder)}: is there already; give a folder that export can make")
    folder.parent.mkdir(parents=True, exist_ok=True)

    def serve(pictures: tf.Tensor) -> tf.Tensor:
        return tf.cast(tf.round(network(pictures, training=False)), tf.uint8)

    archive = keras.export.ExportArchive()
    archive.track(network)
    archive.add_endpoint("serve", serve, [tf.TensorSpec((None, None, None, 3), tf.uint8, name="pictures")])
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as temporary:
        part = Path(temporary) / "part"
        archive.write_out(part / "saved_model", verbose=False)
        network.save(part / "network.keras")
        part.rename(folder)
    return folder / "network.keras", folder / "saved_model"
