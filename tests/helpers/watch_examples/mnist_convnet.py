"""A simple convnet on arrays, rebuilt small after keras.io/examples/vision/mnist_convnet; random digits."""

import keras
import numpy as np
from keras import layers

num_classes, input_shape = 10, (28, 28, 1)

rng = np.random.default_rng(0)
x_train, y_train = rng.integers(0, 256, (640, 28, 28)), rng.integers(0, num_classes, 640)

x_train = np.expand_dims(x_train.astype("float32") / 255, -1)
y_train = keras.utils.to_categorical(y_train, num_classes)

model = keras.Sequential(
    [
        keras.Input(shape=input_shape),
        layers.Conv2D(8, kernel_size=(3, 3), activation="relu"),
        layers.MaxPooling2D(pool_size=(2, 2)),
        layers.Flatten(),
        layers.Dropout(0.5),
        layers.Dense(num_classes, activation="softmax"),
    ]
)
model.compile(loss="categorical_crossentropy", optimizer="adam", metrics=["accuracy"])
model.fit(x_train, y_train, batch_size=128, epochs=2, validation_split=0.1)
