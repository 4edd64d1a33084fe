"""Train the course's small model on batches that the workers of a cluster decode; the manifests beside it start this.

    python deploy/trainer.py --dispatcher HOST:5050 [--workers N] [--images FOLDER] [--epochs N]

FOLDER must lie under the same path on every worker: what travels is the pipeline with its paths, not the images.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from helpers.files import ExitStatus
from helpers.folders import ImageFiles, find_images
from helpers.quiet import quiet_tensorflow
from helpers.service import ServiceError, await_workers

IMAGE_SIZE = (224, 224)
SEED = 0


def main(arguments: list[str] | None = None) -> ExitStatus:
    """Train; without the images or the workers it cannot."""
    options = _parse(arguments)
    try:
        files = find_images(options.images)
        await_workers(options.dispatcher, options.workers, options.wait)
    except (ServiceError, OSError, ValueError) as error:
        print(f"trainer.py: {error}", file=sys.stderr)
        return ExitStatus.CANNOT
    for epoch, (images, loss) in enumerate(train(files, options.dispatcher, options.epochs), start=1):
        print(f"epoch {epoch}: {images:,} of {len(files):,} images, loss {loss:.3f}", flush=True)
    return ExitStatus.FINE


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dispatcher", metavar="HOST:PORT", required=True)
    parser.add_argument("--workers", metavar="N", type=int, default=1, help="wait until so many have registered")
    parser.add_argument("--wait", metavar="SECONDS", type=float, default=300.0, help="for the workers, at most")
    parser.add_argument("--images", type=Path, metavar="FOLDER", default=Path("data/generated"))
    parser.add_argument("--epochs", metavar="N", type=int, default=2)
    return parser.parse_args(arguments)


def train(files: ImageFiles, dispatcher: str, epochs: int) -> Iterator[tuple[int, float]]:
    """Train on each image once per epoch, as long as no worker dies; yield the images and the last loss of each epoch.

    The list is shuffled here. A worker that shuffles would take its share of the list with it when it dies.

    Yields
    ------
    (int, float)
    """
    import numpy as np

    quiet_tensorflow()
    import tensorflow as tf

    from helpers.accelerators import small_cnn
    from helpers.pipelines.tf_data import tf_data

    files = ImageFiles(tuple(map(os.path.abspath, files.paths)), files.labels, files.class_names)
    service = tf.data.experimental.service
    share = service.distribute(service.ShardingPolicy.DYNAMIC, f"grpc://{dispatcher}")
    model = small_cnn(IMAGE_SIZE, 3, len(files.class_names))
    model.compile("adam", "sparse_categorical_crossentropy")
    for epoch in range(epochs):
        order = np.random.default_rng((SEED, epoch)).permutation(len(files))
        batches = tf_data(files.select(order), image_size=IMAGE_SIZE, shuffle=False).apply(share).prefetch(2)
        images, loss = 0, float("nan")
        for pixels, labels in batches:
            loss = float(model.train_on_batch(pixels, labels))
            images += len(labels)
        yield images, loss


if __name__ == "__main__":
    sys.exit(main())
