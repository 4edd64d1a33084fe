"""Answers that must fail; see test_exercises.py."""
# ruff: noqa: F811, F821


# %% hanging: loses the last file
def contents(paths):
    with tf.Graph().as_default(), tf1.Session() as session:
        producer = tf1.train.string_input_producer(paths, num_epochs=1, shuffle=False)
        _, value = tf1.WholeFileReader().read(producer)
        batch = tf1.train.batch([value], 2)
        session.run(tf1.local_variables_initializer())
        coordinator = tf1.train.Coordinator()
        threads = tf1.train.start_queue_runners(session, coordinator)
        found = []
        try:
            while True:
                found += session.run(batch).tolist()
        except tf.errors.OutOfRangeError:
            return found
        finally:
            coordinator.request_stop()
            coordinator.join(threads)


# %% hanging: takes a missing file for the end
def contents(paths):
    with tf.Graph().as_default(), tf1.Session() as session:
        producer = tf1.train.string_input_producer(paths, num_epochs=1, shuffle=False)
        _, value = tf1.WholeFileReader().read(producer)
        batch = tf1.train.batch([value], 2, allow_smaller_final_batch=True)
        session.run(tf1.local_variables_initializer())
        coordinator = tf1.train.Coordinator()
        threads = tf1.train.start_queue_runners(session, coordinator)
        found = []
        try:
            while True:
                found += session.run(batch).tolist()
        except tf.errors.OutOfRangeError:
            coordinator.request_stop()
            for thread in threads:
                thread.join()
            return found


# %% hanging: no queue at all
def contents(paths):
    return [Path(path).read_bytes() for path in paths if Path(path).exists()]


# %% translate: both epochs have one order
def new_input(paths, labels):
    return (
        tf.data.Dataset.from_tensor_slices((paths, labels))
        .shuffle(len(paths), reshuffle_each_iteration=False)
        .repeat(2)
        .map(lambda path, label: (tf.strings.to_number(tf.io.read_file(path)), label))
        .filter(lambda content, label: label < 5)
        .batch(4)
    )


# %% translate: shuffles two at a time
def new_input(paths, labels):
    return (
        tf.data.Dataset.from_tensor_slices((paths, labels))
        .shuffle(2)
        .repeat(2)
        .map(lambda path, label: (tf.strings.to_number(tf.io.read_file(path)), label))
        .filter(lambda content, label: label < 5)
        .batch(4)
    )


# %% translate: drops the last batch
def new_input(paths, labels):
    return (
        tf.data.Dataset.from_tensor_slices((paths, labels))
        .shuffle(len(paths))
        .repeat(2)
        .map(lambda path, label: (tf.strings.to_number(tf.io.read_file(path)), label))
        .filter(lambda content, label: label < 5)
        .batch(4, drop_remainder=True)
    )


# %% translate: mixes the epochs
def new_input(paths, labels):
    return (
        tf.data.Dataset.from_tensor_slices((paths, labels))
        .repeat(2)
        .shuffle(2 * len(paths))
        .map(lambda path, label: (tf.strings.to_number(tf.io.read_file(path)), label))
        .filter(lambda content, label: label < 5)
        .batch(4)
    )


# %% translate: batches of each epoch by itself
def new_input(paths, labels):
    return (
        tf.data.Dataset.from_tensor_slices((paths, labels))
        .shuffle(len(paths))
        .map(lambda path, label: (tf.strings.to_number(tf.io.read_file(path)), label))
        .filter(lambda content, label: label < 5)
        .batch(4)
        .repeat(2)
    )


# %% take: does not join, so an error is a shorter list
def take(build, count):
    with tf.Graph().as_default(), tf1.Session() as session:
        fetches, steps = build(), []
        session.run(tf1.local_variables_initializer())
        coordinator = tf1.train.Coordinator()
        threads = tf1.train.start_queue_runners(session, coordinator)
        try:
            while len(steps) < count:
                steps.append(session.run(fetches))
        except tf.errors.OutOfRangeError:
            pass
        coordinator.request_stop()
        for thread in threads:
            thread.join()
        return steps


# %% take: lets OutOfRangeError through
def take(build, count):
    with tf.Graph().as_default(), tf1.Session() as session:
        fetches = build()
        session.run(tf1.local_variables_initializer())
        coordinator = tf1.train.Coordinator()
        threads = tf1.train.start_queue_runners(session, coordinator)
        steps = [session.run(fetches) for _ in range(count)]
        coordinator.request_stop()
        coordinator.join(threads)
        return steps


# %% take: leaves threads
def take(build, count):
    graph = tf.Graph()
    with graph.as_default():
        session = tf1.Session()
        fetches, steps = build(), []
        session.run(tf1.local_variables_initializer())
        tf1.train.start_queue_runners(session)
        try:
            while len(steps) < count:
                steps.append(session.run(fetches))
        except tf.errors.OutOfRangeError:
            pass
        return steps


# %% pairs: the program that drifts
def pairs(names, labels):
    return drifting_pairs(names, labels)


# %% pairs: not shuffled
def pairs(names, labels):
    return tf1.train.slice_input_producer([names, labels], num_epochs=1, shuffle=False)


# %% pairs: never ends
def pairs(names, labels):
    return tf1.train.slice_input_producer([names, labels])


# %% fill: not a share of the capacity
def mean_fill(make_ms, capacity, use, steps):
    with tf.Graph().as_default(), tf1.Session() as session:
        queue = slow_queue(make_ms, capacity)
        size, item, fills = queue.size(), queue.dequeue(), []
        coordinator = tf1.train.Coordinator()
        threads = tf1.train.start_queue_runners(session, coordinator)
        for step in range(steps):
            fills.append(session.run(size))
            session.run(item)
            use(step)
        coordinator.request_stop()
        coordinator.join(threads)
        return float(np.mean(fills))


# %% fill: looks once, at the end
def mean_fill(make_ms, capacity, use, steps):
    with tf.Graph().as_default(), tf1.Session() as session:
        queue = slow_queue(make_ms, capacity)
        size, item = queue.size(), queue.dequeue()
        coordinator = tf1.train.Coordinator()
        threads = tf1.train.start_queue_runners(session, coordinator)
        for step in range(steps):
            fill = session.run(size) / capacity
            session.run(item)
            use(step)
        coordinator.request_stop()
        coordinator.join(threads)
        return float(fill)


# %% fill: takes nothing from the queue
def mean_fill(make_ms, capacity, use, steps):
    with tf.Graph().as_default(), tf1.Session() as session:
        queue = slow_queue(make_ms, capacity)
        size, fills = queue.size(), []
        coordinator = tf1.train.Coordinator()
        threads = tf1.train.start_queue_runners(session, coordinator)
        for step in range(steps):
            use(step)
            fills.append(session.run(size) / capacity)
        coordinator.request_stop()
        coordinator.join(threads)
        return float(np.mean(fills))
