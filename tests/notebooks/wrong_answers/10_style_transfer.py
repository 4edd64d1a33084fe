"""Answers that must fail; see test_exercises.py."""
# ruff: noqa: F811, F821


# %% resume: the same order in each epoch
def next_batch(count, batch_size, seed, step):
    done = step % (count // batch_size)
    order = np.random.default_rng(seed).permutation(count)
    return order[done * batch_size : (done + 1) * batch_size]


# %% resume: begins the epoch from its start
def next_batch(count, batch_size, seed, step):
    epoch = step // (count // batch_size)
    return np.random.default_rng((seed, epoch)).permutation(count)[:batch_size]


# %% resume: an epoch ends with a smaller batch
def next_batch(count, batch_size, seed, step):
    epoch, done = divmod(step, -(-count // batch_size))
    order = np.random.default_rng((seed, epoch)).permutation(count)
    return order[done * batch_size : (done + 1) * batch_size]


# %% resume: seed and epoch are added
def next_batch(count, batch_size, seed, step):
    epoch, done = divmod(step, count // batch_size)
    order = np.random.default_rng(seed + epoch).permutation(count)
    return order[done * batch_size : (done + 1) * batch_size]


# %% colours: the other way round
def with_colours_of(photograph, painted):
    mixed = cv2.cvtColor(painted, cv2.COLOR_RGB2YCrCb)
    mixed[..., 0] = cv2.cvtColor(photograph, cv2.COLOR_RGB2YCrCb)[..., 0]
    return cv2.cvtColor(mixed, cv2.COLOR_YCrCb2RGB)


# %% colours: BGR
def with_colours_of(photograph, painted):
    mixed = cv2.cvtColor(photograph, cv2.COLOR_BGR2YCrCb)
    mixed[..., 0] = cv2.cvtColor(painted, cv2.COLOR_BGR2YCrCb)[..., 0]
    return cv2.cvtColor(mixed, cv2.COLOR_YCrCb2BGR)


# %% colours: writes into the photograph
def with_colours_of(photograph, painted):
    mixed = cv2.cvtColor(photograph, cv2.COLOR_RGB2YCrCb)
    mixed[..., 0] = cv2.cvtColor(painted, cv2.COLOR_RGB2YCrCb)[..., 0]
    photograph[...] = cv2.cvtColor(mixed, cv2.COLOR_YCrCb2RGB)
    return photograph


# %% colours: does not convert back
def with_colours_of(photograph, painted):
    mixed = cv2.cvtColor(photograph, cv2.COLOR_RGB2YCrCb)
    mixed[..., 0] = cv2.cvtColor(painted, cv2.COLOR_RGB2YCrCb)[..., 0]
    return mixed


# %% summary: the note takes a batch of its own
train_and_note = broken_train_and_note


# %% summary: the note's batch is not trained on
def train_and_note(session, names, brightness, steps):
    trained, notes = [], []
    for step in range(steps):
        if step % 3 == 0:
            notes.append(session.run(brightness))
        else:
            trained += session.run(names).tolist()
    return trained, notes


# %% summary: notes of the third step, not of the first
def train_and_note(session, names, brightness, steps):
    trained, notes = [], []
    for step in range(steps):
        batch, note = session.run([names, brightness])
        trained += batch.tolist()
        if step % 3 == 2:
            notes.append(note)
    return trained, notes
