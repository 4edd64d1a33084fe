"""Answers that must fail; see test_exercises.py."""
# ruff: noqa: F811, F821


# %% decoded-once: one random number for each batch
def prepared(rows, decode, augment, batch_size):
    decoded = rows.map(decode).cache()
    return decoded.shuffle(len(rows), seed=0).batch(batch_size).map(augment)


# %% decoded-once: the order is frozen
def prepared(rows, decode, augment, batch_size):
    shuffled = rows.shuffle(len(rows), seed=0)
    return shuffled.map(decode).cache().map(augment).batch(batch_size)


# %% decoded-once: the augmentation is frozen
def prepared(rows, decode, augment, batch_size):
    return rows.map(decode).map(augment).cache().shuffle(len(rows), seed=0).batch(batch_size)


# %% decoded-once: no cache
def prepared(rows, decode, augment, batch_size):
    return rows.shuffle(len(rows)).map(decode).map(augment).batch(batch_size)


# %% decoded-once: shuffles batches
def prepared(rows, decode, augment, batch_size):
    return rows.map(decode).cache().map(augment).batch(batch_size).shuffle(100)


# %% decoded-once: a small buffer
def prepared(rows, decode, augment, batch_size):
    return rows.map(decode).cache().shuffle(4).map(augment).batch(batch_size)


# %% decoded-once: the same order each epoch
def prepared(rows, decode, augment, batch_size):
    decoded = rows.map(decode).cache()
    shuffled = decoded.shuffle(len(rows), seed=0, reshuffle_each_iteration=False)
    return shuffled.map(augment).batch(batch_size)


# %% cache-path: the builtin hash, which differs from process to process
def cache_path(folder, paths, **settings):
    parts = [(str(path), os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in paths]
    return Path(folder) / str(hash((tuple(parts), tuple(sorted(settings.items())))))


# %% cache-path: names and settings only
def cache_path(folder, paths, **settings):
    import hashlib

    text = repr([str(path) for path in paths]) + repr(sorted(settings.items()))
    return Path(folder) / hashlib.sha256(text.encode()).hexdigest()


# %% cache-path: whatever the order of the files
def cache_path(folder, paths, **settings):
    import hashlib

    parts = sorted((str(p), os.stat(p).st_size, os.stat(p).st_mtime_ns) for p in paths)
    text = repr(parts) + repr(sorted(settings.items()))
    return Path(folder) / hashlib.sha256(text.encode()).hexdigest()


# %% cache-path: the order in which settings are given
def cache_path(folder, paths, **settings):
    import hashlib

    parts = [(str(p), os.stat(p).st_size, os.stat(p).st_mtime_ns) for p in paths]
    return Path(folder) / hashlib.sha256(repr([parts, settings]).encode()).hexdigest()


# %% cache-path: times in seconds
def cache_path(folder, paths, **settings):
    import hashlib

    parts = [(str(p), os.stat(p).st_size, int(os.stat(p).st_mtime)) for p in paths]
    text = repr(parts) + repr(sorted(settings.items()))
    return Path(folder) / hashlib.sha256(text.encode()).hexdigest()


# %% cache-path: no names
def cache_path(folder, paths, **settings):
    import hashlib

    parts = [(os.stat(p).st_size, os.stat(p).st_mtime_ns) for p in paths]
    text = repr(parts) + repr(sorted(settings.items()))
    return Path(folder) / hashlib.sha256(text.encode()).hexdigest()


# %% eight-readers: each reader keeps its rows
def rows_of_reader(row_count, reader, readers, seed, epoch):
    rows = tf.data.Dataset.range(reader, row_count, readers)
    return rows.shuffle(max(1, min(1000, row_count // readers)), seed=seed + epoch)


# %% eight-readers: an order of its own for each reader
def rows_of_reader(row_count, reader, readers, seed, epoch):
    places = tf.data.Dataset.range(reader, row_count, readers)
    pair = [seed * 8 + reader, epoch]
    return places.map(lambda place: tf.random.experimental.index_shuffle(place, pair, row_count - 1))


# %% eight-readers: seed and epoch are added
def rows_of_reader(row_count, reader, readers, seed, epoch):
    places = tf.data.Dataset.range(reader, row_count, readers)
    pair = [seed + epoch, 0]
    return places.map(lambda place: tf.random.experimental.index_shuffle(place, pair, row_count - 1))


# %% eight-readers: one order for all epochs
def rows_of_reader(row_count, reader, readers, seed, epoch):
    places = tf.data.Dataset.range(reader, row_count, readers)
    return places.map(lambda place: tf.random.experimental.index_shuffle(place, [seed, 0], row_count - 1))


# %% eight-readers: the last row is never drawn
def rows_of_reader(row_count, reader, readers, seed, epoch):
    places = tf.data.Dataset.range(reader, row_count - 1, readers)
    pair = [seed, epoch]
    return places.map(lambda place: tf.random.experimental.index_shuffle(place, pair, row_count - 2))


# %% from-nothing: the clock starts when all is built
def seconds_of_epochs(build, epochs, clock=time.perf_counter):
    batches, found = build(), []
    for _ in range(epochs):
        start_s = clock()
        for _ in batches:
            pass
        found.append(clock() - start_s)
    return found


# %% from-nothing: built again for each epoch
def seconds_of_epochs(build, epochs, clock=time.perf_counter):
    found = []
    for _ in range(epochs):
        start_s = clock()
        for _ in build():
            pass
        found.append(clock() - start_s)
    return found


# %% from-nothing: seconds since the start
def seconds_of_epochs(build, epochs, clock=time.perf_counter):
    start_s, found = clock(), []
    batches = build()
    for _ in range(epochs):
        for _ in batches:
            pass
        found.append(clock() - start_s)
    return found


# %% less-time-from: equal is enough
def less_time_from(first, second):
    saved_s = first[-1] - second[-1]
    return 1 + math.ceil((second[0] - first[0]) / saved_s) if saved_s > 0 else None


# %% less-time-from: divides by zero or goes below when nothing is saved
def less_time_from(first, second):
    return max(1, 2 + math.floor((second[0] - first[0]) / (first[-1] - second[-1] or 1e-9)))


# %% less-time-from: forgets that the first way has a first epoch, too
def less_time_from(first, second):
    saved_s = first[-1] - second[-1]
    return 1 + math.floor(second[0] / saved_s) if saved_s > 0 else None
