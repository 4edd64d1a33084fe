"""Answers that must fail; see test_exercises.py."""
# ruff: noqa: F811, F821


# %% four-workers: the number of workers is fixed
class Slow(Numbers):
    def __init__(self, name, **workers):
        super().__init__(workers=2)
        self.name = name


# %% four-workers: the settings are not handed on
class Slow(Numbers):
    def __init__(self, name, **workers):
        super().__init__()
        self.name = name


# %% four-workers: only the number of workers is handed on
class Slow(Numbers):
    def __init__(self, name, workers=1, **others):
        super().__init__(workers=workers)
        self.name = name


# %% hooks: begins at -1, and still counts each call
class Counted(Numbers):
    epoch = -1

    def on_epoch_end(self):
        self.epoch += 1


# %% hooks: counts when an epoch begins
class Counted(Numbers):
    epoch = -1

    def on_epoch_begin(self):
        self.epoch += 1


# %% hooks: leaves out the first call, which is a further one
class Counted(Numbers):
    epoch, called = 0, False

    def on_epoch_end(self):
        self.epoch += self.called
        self.called = True


# %% images: the last images are lost
class Images(keras.utils.PyDataset):
    def __init__(self, files, image_size, batch_size, seed, **workers):
        super().__init__(**workers)
        self.files, self.image_size, self.batch_size = files, image_size, batch_size
        self.seed, self.begun = seed, False
        self.go_to_epoch(0)

    def go_to_epoch(self, epoch):
        self.epoch, self.begun = epoch, False
        self.order = np.random.default_rng((self.seed, epoch)).permutation(len(self.files))

    def on_epoch_begin(self):
        self.begun = True

    def on_epoch_end(self):
        if self.begun:
            self.go_to_epoch(self.epoch + 1)

    def __len__(self):
        return len(self.order) // self.batch_size

    def __getitem__(self, number):
        rows = self.order[number * self.batch_size : (number + 1) * self.batch_size]
        images = [read_image(self.files.paths[row], image_size=self.image_size) for row in rows]
        return np.stack(images), self.files.labels[rows]


# %% images: the labels keep the old order
class Images(keras.utils.PyDataset):
    def __init__(self, files, image_size, batch_size, seed, **workers):
        super().__init__(**workers)
        self.files, self.image_size, self.batch_size = files, image_size, batch_size
        self.seed, self.begun = seed, False
        self.go_to_epoch(0)

    def go_to_epoch(self, epoch):
        self.epoch, self.begun = epoch, False
        self.order = np.random.default_rng((self.seed, epoch)).permutation(len(self.files))

    def on_epoch_begin(self):
        self.begun = True

    def on_epoch_end(self):
        if self.begun:
            self.go_to_epoch(self.epoch + 1)

    def __len__(self):
        return -(-len(self.order) // self.batch_size)

    def __getitem__(self, number):
        part = slice(number * self.batch_size, (number + 1) * self.batch_size)
        rows = self.order[part]
        images = [read_image(self.files.paths[row], image_size=self.image_size) for row in rows]
        return np.stack(images), self.files.labels[part]


# %% images: the same order each epoch
class Images(keras.utils.PyDataset):
    def __init__(self, files, image_size, batch_size, seed, **workers):
        super().__init__(**workers)
        self.files, self.image_size, self.batch_size = files, image_size, batch_size
        self.order = np.random.default_rng(seed).permutation(len(files))

    def __len__(self):
        return -(-len(self.order) // self.batch_size)

    def __getitem__(self, number):
        rows = self.order[number * self.batch_size : (number + 1) * self.batch_size]
        images = [read_image(self.files.paths[row], image_size=self.image_size) for row in rows]
        return np.stack(images), self.files.labels[rows]


# %% images: neighbouring seeds share orders
class Images(keras.utils.PyDataset):
    def __init__(self, files, image_size, batch_size, seed, **workers):
        super().__init__(**workers)
        self.files, self.image_size, self.batch_size = files, image_size, batch_size
        self.seed, self.begun = seed, False
        self.go_to_epoch(0)

    def go_to_epoch(self, epoch):
        self.epoch, self.begun = epoch, False
        self.order = np.random.default_rng(self.seed + epoch).permutation(len(self.files))

    def on_epoch_begin(self):
        self.begun = True

    def on_epoch_end(self):
        if self.begun:
            self.go_to_epoch(self.epoch + 1)

    def __len__(self):
        return -(-len(self.order) // self.batch_size)

    def __getitem__(self, number):
        rows = self.order[number * self.batch_size : (number + 1) * self.batch_size]
        images = [read_image(self.files.paths[row], image_size=self.image_size) for row in rows]
        return np.stack(images), self.files.labels[rows]


# %% images: the call before the first epoch counts
class Images(keras.utils.PyDataset):
    def __init__(self, files, image_size, batch_size, seed, **workers):
        super().__init__(**workers)
        self.files, self.image_size, self.batch_size = files, image_size, batch_size
        self.seed, self.epoch = seed, -1
        self.on_epoch_end()

    def on_epoch_end(self):
        self.epoch += 1
        self.order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.files))

    def __len__(self):
        return -(-len(self.order) // self.batch_size)

    def __getitem__(self, number):
        rows = self.order[number * self.batch_size : (number + 1) * self.batch_size]
        images = [read_image(self.files.paths[row], image_size=self.image_size) for row in rows]
        return np.stack(images), self.files.labels[rows]


# %% images: one generator goes on from epoch to epoch, and from call to call
class Images(keras.utils.PyDataset):
    def __init__(self, files, image_size, batch_size, seed, **workers):
        super().__init__(**workers)
        self.files, self.image_size, self.batch_size = files, image_size, batch_size
        self.rng = np.random.default_rng(seed)
        self.on_epoch_end()

    def on_epoch_end(self):
        self.order = self.rng.permutation(len(self.files))

    def __len__(self):
        return -(-len(self.order) // self.batch_size)

    def __getitem__(self, number):
        rows = self.order[number * self.batch_size : (number + 1) * self.batch_size]
        images = [read_image(self.files.paths[row], image_size=self.image_size) for row in rows]
        return np.stack(images), self.files.labels[rows]


# %% images: all of it is shuffled when a batch is read
class Images(keras.utils.PyDataset):
    def __init__(self, files, image_size, batch_size, seed, **workers):
        super().__init__(**workers)
        self.files, self.image_size, self.batch_size = files, image_size, batch_size
        self.rng = np.random.default_rng(seed)

    def __len__(self):
        return -(-len(self.files) // self.batch_size)

    def __getitem__(self, number):
        order = self.rng.permutation(len(self.files))
        rows = order[number * self.batch_size : (number + 1) * self.batch_size]
        images = [read_image(self.files.paths[row], image_size=self.image_size) for row in rows]
        return np.stack(images), self.files.labels[rows]


# %% chance: neighbouring seeds share orders across epochs
def order_of(count, seed, epoch):
    return np.random.default_rng(seed + epoch).permutation(count)


def flips_of(rows, seed, epoch):
    return [np.random.default_rng((seed, epoch, row)).random() < 0.5 for row in rows]


# %% chance: seed and epoch are packed into one number that is too small
def order_of(count, seed, epoch):
    return np.random.default_rng(100 * seed + epoch).permutation(count)


def flips_of(rows, seed, epoch):
    return [np.random.default_rng((seed, epoch, row)).random() < 0.5 for row in rows]


# %% chance: seed and epoch can be exchanged
def order_of(count, seed, epoch):
    return np.random.default_rng(sorted((seed, epoch))).permutation(count)


def flips_of(rows, seed, epoch):
    return [np.random.default_rng((seed, epoch, row)).random() < 0.5 for row in rows]


# %% chance: each other row is mirrored, by turns
def order_of(count, seed, epoch):
    return np.random.default_rng((seed, epoch)).permutation(count)


def flips_of(rows, seed, epoch):
    return [(row + epoch) % 2 == 1 for row in rows]


# %% chance: the flips of all rows are drawn at once
def order_of(count, seed, epoch):
    return np.random.default_rng((seed, epoch)).permutation(count)


def flips_of(rows, seed, epoch):
    return np.random.default_rng((seed, epoch)).random(len(rows)) < 0.5


# %% chance: the same flips each epoch
def order_of(count, seed, epoch):
    return np.random.default_rng((seed, epoch)).permutation(count)


def flips_of(rows, seed, epoch):
    return [np.random.default_rng((seed, row)).random() < 0.5 for row in rows]


# %% chance: a row's flip moves to the next row
def order_of(count, seed, epoch):
    return np.random.default_rng((seed, epoch)).permutation(count)


def flips_of(rows, seed, epoch):
    return [np.random.default_rng((seed, epoch + row)).random() < 0.5 for row in rows]


# %% measure: the start counts
def batches_per_s(sequence):
    start_s = time.perf_counter()
    model.fit(sequence, shuffle=False, verbose=0)
    return len(sequence) / (time.perf_counter() - start_s)


# %% measure: the first step counts
def batches_per_s(sequence):
    times_s = []
    note = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: times_s.append(time.perf_counter()),
        on_train_end=lambda logs: times_s.append(time.perf_counter()),
    )
    model.fit(sequence, shuffle=False, callbacks=[note], verbose=0)
    return len(sequence) / (times_s[-1] - times_s[0])


# %% measure: one batch too many is counted
def batches_per_s(sequence):
    ends_s = []
    note = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: ends_s.append(time.perf_counter()))
    model.fit(sequence, shuffle=False, callbacks=[note], verbose=0)
    return len(ends_s) / (ends_s[-1] - ends_s[0])
