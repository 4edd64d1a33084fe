"""Images in folders, rebuilt small after keras.io/examples/vision/image_classification_from_scratch; no download."""

import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import layers

image_size, batch_size = (64, 64), 8

folder = Path(tempfile.mkdtemp())
for number in range(64):
    path = folder / ("Cat", "Dog")[number % 2] / f"{number}.jpg"
    path.parent.mkdir(exist_ok=True)
    keras.utils.save_img(path, np.random.default_rng(number).integers(0, 256, (90, 120, 3)))

train_ds, val_ds = keras.utils.image_dataset_from_directory(
    folder, validation_split=0.25, subset="both", seed=1337, image_size=image_size, batch_size=batch_size
)
augmentation = keras.Sequential([layers.RandomFlip("horizontal"), layers.RandomRotation(0.1)])
train_ds = train_ds.map(lambda images, labels: (augmentation(images), labels), num_parallel_calls=tf.data.AUTOTUNE)
train_ds, val_ds = train_ds.prefetch(tf.data.AUTOTUNE), val_ds.prefetch(tf.data.AUTOTUNE)

inputs = keras.Input(shape=(*image_size, 3))
x = layers.Rescaling(1.0 / 255)(inputs)
for size in (8, 16):
    x = layers.SeparableConv2D(size, 3, strides=2, padding="same")(x)
    x = layers.Activation("relu")(layers.BatchNormalization()(x))
x = layers.Dropout(0.25)(layers.GlobalAveragePooling2D()(x))
model = keras.Model(inputs, layers.Dense(1, activation=None)(x))
model.compile(
    optimizer=keras.optimizers.Adam(3e-4),
    loss=keras.losses.BinaryCrossentropy(from_logits=True),
    metrics=[keras.metrics.BinaryAccuracy(name="acc")],
)
callbacks = [keras.callbacks.ModelCheckpoint(str(folder / "save_at_{epoch}.keras"))]
model.fit(train_ds, epochs=2, callbacks=callbacks, validation_data=val_ds)
