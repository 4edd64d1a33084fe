"""A Sequence of images and masks, rebuilt small after keras.io/examples/vision/oxford_pets_image_segmentation."""

import keras
import numpy as np
from keras import layers

img_size, num_classes, batch_size = (32, 32), 3, 4


class OxfordPets(keras.utils.PyDataset):
    """Helper to iterate over the data (as Numpy arrays)."""

    def __init__(self, batch_size, img_size, numbers, **kwargs):
        super().__init__(**kwargs)
        self.batch_size, self.img_size, self.numbers = batch_size, img_size, numbers

    def __len__(self):
        return len(self.numbers) // self.batch_size

    def __getitem__(self, idx):
        rng = np.random.default_rng(idx)
        x = rng.random((self.batch_size, *self.img_size, 3), dtype="float32")
        y = rng.integers(0, num_classes, (self.batch_size, *self.img_size, 1), dtype="uint8")
        return x, y


def get_model(img_size, num_classes):
    inputs = keras.Input(shape=(*img_size, 3))
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu")(inputs)
    x = layers.BatchNormalization()(layers.SeparableConv2D(16, 3, padding="same")(x))
    x = layers.Conv2DTranspose(8, 3, padding="same", activation="relu")(layers.UpSampling2D(2)(x))
    return keras.Model(inputs, layers.Conv2D(num_classes, 3, activation="softmax", padding="same")(x))


model = get_model(img_size, num_classes)
train_gen = OxfordPets(batch_size, img_size, range(80), workers=2)
val_gen = OxfordPets(batch_size, img_size, range(16))
model.compile(optimizer="rmsprop", loss="sparse_categorical_crossentropy")
model.fit(train_gen, epochs=2, validation_data=val_gen)
