"""Answers that must fail; see test_exercises.py."""
# ruff: noqa: F811, F821


# %% small-buffer: a small buffer of paths
def batches(labels, decode, batch_size, seed):
    rows = tf.data.Dataset.from_tensor_slices((np.arange(len(labels)), labels)).shuffle(100, seed=seed)
    images = rows.map(lambda row, label: (decode(row), label), num_parallel_calls=3)
    return images.batch(batch_size).prefetch(1).with_options(options)


# %% small-buffer: shuffles decoded images
def batches(labels, decode, batch_size, seed):
    rows = tf.data.Dataset.from_tensor_slices((np.arange(len(labels)), labels))
    images = rows.map(lambda row, label: (decode(row), label), num_parallel_calls=3).shuffle(len(labels), seed=seed)
    return images.batch(batch_size).prefetch(1).with_options(options)


# %% small-buffer: the same order each epoch
def batches(labels, decode, batch_size, seed):
    rows = tf.data.Dataset.from_tensor_slices((np.arange(len(labels)), labels))
    rows = rows.shuffle(len(labels), seed=seed, reshuffle_each_iteration=False)
    images = rows.map(lambda row, label: (decode(row), label), num_parallel_calls=3)
    return images.batch(batch_size).prefetch(1).with_options(options)


# %% small-buffer: drops the last batch
def batches(labels, decode, batch_size, seed):
    rows = tf.data.Dataset.from_tensor_slices((np.arange(len(labels)), labels)).shuffle(len(labels), seed=seed)
    images = rows.map(lambda row, label: (decode(row), label), num_parallel_calls=3)
    return images.batch(batch_size, drop_remainder=True).prefetch(1).with_options(options)


# %% small-buffer: shuffles batches, not rows
def batches(labels, decode, batch_size, seed):
    rows = tf.data.Dataset.from_tensor_slices((np.arange(len(labels)), labels))
    images = rows.batch(batch_size).shuffle(len(labels), seed=seed).unbatch()
    images = images.map(lambda row, label: (decode(row), label), num_parallel_calls=3)
    return images.batch(batch_size).prefetch(1).with_options(options)


# %% small-buffer: keeps a thousand batches ahead
def batches(labels, decode, batch_size, seed):
    rows = tf.data.Dataset.from_tensor_slices((np.arange(len(labels)), labels)).shuffle(len(labels), seed=seed)
    images = rows.map(lambda row, label: (decode(row), label), num_parallel_calls=3)
    return images.batch(batch_size).prefetch(1000).with_options(options)


# %% small-buffer: one call at a time
def batches(labels, decode, batch_size, seed):
    rows = tf.data.Dataset.from_tensor_slices((np.arange(len(labels)), labels)).shuffle(len(labels), seed=seed)
    return rows.map(lambda row, label: (decode(row), label)).batch(batch_size).prefetch(1).with_options(options)


# %% small-buffer: leaves autotuning on
def batches(labels, decode, batch_size, seed):
    rows = tf.data.Dataset.from_tensor_slices((np.arange(len(labels)), labels)).shuffle(len(labels), seed=seed)
    images = rows.map(lambda row, label: (decode(row), label), num_parallel_calls=3)
    return images.batch(batch_size).prefetch(1)


# %% wait-and-compute: keeps the first element
def wait_and_compute(dataset, step, clock=time.perf_counter):
    waited = computed = 0
    start = clock()
    for element in dataset:
        arrived = clock()
        step(element)
        waited, computed, start = waited + arrived - start, computed + clock() - arrived, clock()
    return waited, computed


# %% wait-and-compute: waiting is all that is not in step, the first element's too
def wait_and_compute(dataset, step, clock=time.perf_counter):
    start, computes = clock(), []
    for element in dataset:
        arrived = clock()
        step(element)
        computes.append(clock() - arrived)
    return clock() - start - sum(computes), sum(computes[1:])


# %% wait-and-compute: reads the whole epoch first, so nothing is waited for
def wait_and_compute(dataset, step, clock=time.perf_counter):
    waits, computes = [], []
    start = clock()
    for element in list(dataset):
        arrived = clock()
        step(element)
        waits.append(arrived - start)
        start = clock()
        computes.append(start - arrived)
    return sum(waits[1:]), sum(computes[1:])


# %% wait-and-compute: counts each step in the waiting for the next element
def wait_and_compute(dataset, step, clock=time.perf_counter):
    waits, computes = [], []
    start = clock()
    for element in dataset:
        arrived = clock()
        waits.append(arrived - start)
        start = arrived
        step(element)
        computes.append(clock() - arrived)
    return sum(waits[1:]), sum(computes[1:])


# %% noise: one key for both draws
def noisy(dataset, seed):
    keys = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).batch(2)
    uniform = tf.random.stateless_uniform
    return tf.data.Dataset.zip(dataset, keys).map(lambda n, key: (n, uniform((), key), uniform((), key)), 4)


# %% noise: the second draw is the first one turned round
def noisy(dataset, seed):
    keys = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).batch(2)
    pairs = tf.data.Dataset.zip(dataset, keys).map(lambda n, key: (n, tf.random.stateless_uniform((), key)), 4)
    return pairs.map(lambda n, noise: (n, noise, 1 - noise))


# %% noise: the same in each epoch
def noisy(dataset, seed):
    def draw(number, key):
        light, place = tf.unstack(tf.random.split(key, 2))
        return number, tf.random.stateless_uniform((), light), tf.random.stateless_uniform((), place)

    keys = tf.data.Dataset.random(seed=seed).batch(2)
    return tf.data.Dataset.zip(dataset, keys).map(draw, num_parallel_calls=4)


# %% noise: one key for all numbers
def noisy(dataset, seed):
    light, place = tf.unstack(tf.random.split([seed, 0], 2))
    uniform = tf.random.stateless_uniform
    return dataset.map(lambda number: (number, uniform((), light), uniform((), place)))


# %% noise: a generator with a state, whose draws go to the call that comes first
def noisy(dataset, seed):
    uniform = tf.random.uniform
    tf.random.set_seed(seed)
    return dataset.map(lambda number: (number, uniform((), seed=seed), uniform((), seed=seed)), num_parallel_calls=4)


# %% skip-and-name: reads everything before there is a dataset
def sound_files(paths):
    skipped, kept = [], []
    for path in map(Path, paths):
        content = path.read_bytes() if path.exists() else b""
        if content.startswith(b"OK"):
            kept.append(content)
        else:
            skipped.append(path.name)
    return tf.data.Dataset.from_tensor_slices(kept), skipped


# %% skip-and-name: reads everything with the first element
def sound_files(paths):
    skipped = []

    def whole():
        kept = []
        for path in map(Path, paths):
            content = path.read_bytes() if path.exists() else b""
            if content.startswith(b"OK"):
                kept.append(content)
            else:
                skipped.append(path.name)
        yield from kept

    return tf.data.Dataset.from_generator(whole, output_signature=tf.TensorSpec((), tf.string)), skipped


# %% skip-and-name: drops, and names nothing
def sound_files(paths):
    dataset = tf.data.Dataset.from_tensor_slices(paths).map(tf.io.read_file).ignore_errors()
    return dataset.filter(lambda content: tf.strings.regex_full_match(content, "OK(.|\n)*")), []


# %% skip-and-name: reads in the first pass only
def sound_files(paths):
    skipped = []

    def contents():
        for path in map(Path, paths):
            content = path.read_bytes() if path.exists() else b""
            if content.startswith(b"OK"):
                yield content
            else:
                skipped.append(path.name)

    return tf.data.Dataset.from_generator(contents, output_signature=tf.TensorSpec((), tf.string)).cache(), skipped
