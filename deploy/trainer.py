"""Train the course's small model on batches that the workers of a cluster decode; the manifests beside it start this.

    python data_scripts/pack_images.py data/generated --to data/shards --kind jpeg --rows-per-shard 256    once
    python deploy/trainer.py --dispatcher HOST:5050 [--workers N] [--shards data/shards] [--epochs N]

The shards must lie under the same path on every worker: what travels is the pipeline with their names, not the images.

Exit status: 0; 2 if the shards or the workers are missing, or if a server has died and does not come back.
"""

import argparse
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from queue import Empty, Queue

from helpers.files import ExitStatus
from helpers.packed import Packed
from helpers.quiet import quiet_tensorflow
from helpers.service import ServiceError, await_workers, silent_workers

BATCH_SIZE = 32
MIXED = 512  # images in the trainer's shuffle buffer: 74 MiB at 224×224
SEED = 0


def main(arguments: list[str] | None = None) -> ExitStatus:
    """Train, and say after each epoch how many images came."""
    options = _parse(arguments)
    try:
        packed = Packed(options.shards)
        if packed.settings["kind"] != "jpeg":
            raise ValueError(f"{options.shards}: pack the images with --kind jpeg")
        await_workers(options.dispatcher, options.workers, options.wait)
        for epoch, (images, loss) in enumerate(train(packed, options), start=1):
            lost = f", {len(packed) - images:,} lost" if images < len(packed) else ""
            print(f"epoch {epoch}: {images:,} of {len(packed):,} images{lost}, loss {loss:.3f}", flush=True)
    except (ServiceError, OSError, ValueError) as error:
        print(f"trainer.py: {error}", file=sys.stderr)
        return ExitStatus.CANNOT
    return ExitStatus.FINE


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dispatcher", metavar="HOST:PORT", required=True)
    parser.add_argument("--workers", metavar="N", type=int, default=1, help="workers to wait for before it starts")
    parser.add_argument("--wait", metavar="SECONDS", type=float, default=300.0, help="for the workers, at most")
    patience = "end if no batch comes for so long and a server is silent; longer than a worker takes to start again"
    parser.add_argument("--patience", metavar="SECONDS", type=float, default=300.0, help=patience)
    parser.add_argument("--shards", type=Path, metavar="FOLDER", default=Path("data/shards"))
    parser.add_argument("--epochs", metavar="N", type=int, default=2)
    return parser.parse_args(arguments)


def train(packed: Packed, options: argparse.Namespace) -> Iterator[tuple[int, float]]:
    """Train on each image once per epoch, as long as no worker dies.

    Yields
    ------
    (int, float)
        The number of images of an epoch, and the loss of its last batch.
    """
    import numpy as np

    quiet_tensorflow()
    import tensorflow as tf

    from helpers.accelerators import small_cnn

    service = tf.data.experimental.service
    share = service.distribute("distributed_epoch", f"grpc://{options.dispatcher}", max_outstanding_requests=8)
    features = {"image": tf.io.FixedLenFeature((), tf.string), "label": tf.io.FixedLenFeature((), tf.int64)}

    def decode(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        example = tf.io.parse_single_example(record, features)
        image = tf.io.decode_jpeg(example["image"], packed.channels)
        return tf.ensure_shape(image, (*packed.image_size, packed.channels)), example["label"]

    model = small_cnn(packed.image_size, packed.channels, len(packed.class_names))
    model.compile("adam", "sparse_categorical_crossentropy")
    names = [os.fsencode(path.absolute()) for path in packed.shard_paths]
    for epoch in range(options.epochs):
        # In a new order here. A worker that shuffles takes all names into its buffer, and repeats its order.
        order = np.random.default_rng((SEED, epoch)).permutation(len(names))
        shards = tf.data.Dataset.from_tensor_slices([names[place] for place in order])
        on_workers = shards.flat_map(tf.data.TFRecordDataset).map(decode, tf.data.AUTOTUNE).batch(BATCH_SIZE)
        mixed = on_workers.apply(share).unbatch().shuffle(MIXED, seed=epoch)
        images, loss = 0, float("nan")
        for pixels, labels in watched(mixed.batch(BATCH_SIZE).prefetch(2), options.dispatcher, options.patience):
            loss = float(model.train_on_batch(pixels, labels))
            images += len(labels)
        yield images, loss


def watched(batches: Iterable, dispatcher: str, patience_s: float) -> Iterator:
    """Yield what ``batches`` yields; raise an error where it would wait for ever for a worker that has died.

    Raises
    ------
    ServiceError
        If no batch has come for ``patience_s`` seconds, and the dispatcher or a worker that it knows does not answer.
        The thread that waits in TensorFlow cannot be stopped: end the process with `os._exit`.
    """
    arrived: Queue = Queue(maxsize=1)
    end = object()

    def fetch() -> None:
        try:
            for batch in batches:
                arrived.put(batch)
            arrived.put(end)
        except Exception as error:  # it belongs to the thread that waits for the batches
            arrived.put(error)

    threading.Thread(target=fetch, daemon=True).start()
    while True:
        try:
            batch = arrived.get(timeout=patience_s)
        except Empty:
            if silent := silent_workers(dispatcher):
                found = f"no batch for {patience_s:g} s, and no answer from {', '.join(silent)}"
                raise ServiceError(f"{found}; start it again under the same address") from None
        else:
            if batch is end:
                return
            if isinstance(batch, Exception):
                raise batch
            yield batch


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # a thread that waits in TensorFlow would be waited for
