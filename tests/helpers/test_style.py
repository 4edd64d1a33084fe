"""Lesson 10: the losses are what they say, a killed training loses nothing, a trained network works elsewhere."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import make_styles
import numpy as np
import pytest
import yaml

from helpers.folders import find_unlabelled_images
from helpers.style import command as style
from helpers.style.settings import StyleSettings, load_settings

ROOT = Path(__file__).resolve().parents[2]
TINY = {"image_size": 48, "style_size": 64, "width": 2, "batch_size": 4, "features": "random", "learning_rate": 0.001}
COMMAND_S = 200  # the most that one command may take


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """Eleven small photographs of unlike shapes, one of them a PNG: two whole batches of four and a rest."""
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(3)
    for number in range(11):
        height, width = rng.integers(30, 90, 2)
        picture = cv2.resize(rng.integers(0, 256, (6, 6, 3), np.uint8), (int(width), int(height)))
        assert cv2.imwrite(str(folder / f"{number:02}.{'png' if number == 5 else 'jpg'}"), picture)
    return folder


@pytest.fixture(scope="module")
def settings_file(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("settings")
    picture = make_styles.mosaic(np.random.default_rng(0), 64)
    assert cv2.imwrite(str(folder / "mosaic.png"), picture)
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({"style_image": "mosaic.png", **TINY}))
    return path


def command(*arguments: object) -> str:
    """Run a command in this process and return what it said."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert style.main([str(argument) for argument in arguments]) == 0
    return said.getvalue()


def training(settings_file: Path, photographs: Path, folder: Path, *settings: str) -> list[str]:
    assignments = [part for one in settings for part in ("--set", one)]
    return ["train", str(settings_file), "--images", str(photographs), "--to", str(folder), *assignments]


@pytest.fixture(scope="module")
def trained(settings_file, photographs, tmp_path_factory) -> Path:
    """A run of fourteen steps, undisturbed, by the command."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    said = command(*training(settings_file, photographs, folder, "steps=14", "save_every=5"))
    assert "step 14 of 14" in said
    assert re.search(r"images/s, \d:\d\d:\d\d left", said)
    return folder


# ---- the style pictures ----------------------------------------------------------------------------------------------


def test_the_style_pictures_are_the_same_each_time_and_differ(tmp_path):
    first = [path.read_bytes() for path in make_styles.make_styles(tmp_path / "first", size=96)]
    again = [path.read_bytes() for path in make_styles.make_styles(tmp_path / "again", size=96)]
    assert first == again
    assert len(set(first)) == len(make_styles.STYLES) >= 4


def test_a_style_picture_has_texture_and_colours():
    for draw in make_styles.STYLES.values():
        picture = draw(np.random.default_rng(1), 256).astype(float)
        assert picture.shape == (256, 256, 3)
        assert picture.std() > 30
        assert np.abs(np.diff(picture, axis=1)).mean() > 3  # not only large areas


def test_a_style_picture_that_is_there_is_kept(tmp_path):
    (tmp_path / "waves.png").write_bytes(b"mine")
    make_styles.make_styles(tmp_path, size=64)
    assert (tmp_path / "waves.png").read_bytes() == b"mine"
    assert make_styles.main(["--to", str(tmp_path), "--size", "3"]) == 2


def test_each_settings_file_of_the_course_names_a_picture_that_the_script_makes():
    found = [load_settings(path) for path in sorted((ROOT / "styles").glob("*.yaml"))]
    assert {Path(one.style_image) for one in found} == {
        Path(os.path.normpath(make_styles.DEFAULT_FOLDER / f"{name}.png")) for name in make_styles.STYLES
    }


# ---- network and losses ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(5, 5), (6, 41), (12, 40), (37, 50), (64, 33), (101, 103)], ids=str)
def test_the_network_keeps_any_size(size):
    from helpers.style.network import style_network

    pictures = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    painted = np.asarray(style_network(2)(pictures))
    assert painted.shape == (2, *size, 3)
    assert painted.dtype == np.float32
    assert painted.min() >= 0
    assert painted.max() <= 255


def reference_losses(maps, wanted, style) -> dict[str, np.ndarray]:
    """Content, not scaled, and style in plain loops over pictures; features as lists of (n, h, w, c) arrays."""
    results = {"content": [], "style": []}
    for n in range(len(maps[0])):
        results["content"].append(((maps[0][n] - wanted[0][n]) ** 2).mean())
        total = 0.0
        for layer, target in zip(maps[1:], style[1:], strict=True):
            grams = []
            for one in (layer[n], target[0]):
                height, width, channels = one.shape
                flat = one.reshape(-1, channels).astype(np.float64)
                grams.append(flat.T @ flat / (height * width * channels))
            total += ((grams[0] - grams[1]) ** 2).mean() / (grams[1] ** 2).mean()
        results["style"].append(total / 4)
    return {name: np.array(values) for name, values in results.items()}


def test_the_losses_are_those_of_a_plain_numpy_reference():
    from helpers.style.features import noise_pictures, random_features
    from helpers.style.network import PerceptualLoss

    rng = np.random.default_rng(0)
    features = random_features()
    style_picture = rng.integers(0, 256, (48, 56, 3), np.uint8)
    pictures = rng.integers(0, 256, (3, 48, 64, 3), np.uint8)
    painted = rng.uniform(0, 255, (3, 48, 64, 3)).astype(np.float32)
    found = PerceptualLoss(features, style_picture)(pictures, painted)
    maps, wanted, style_maps, noise = (
        [np.asarray(layer) for layer in features(one.astype(np.float32))]
        for one in (painted, pictures, style_picture[None], noise_pictures())
    )
    expected = reference_losses(maps, wanted, style_maps)
    expected["content"] /= ((noise[0] - np.roll(noise[0], 1, 0)) ** 2).mean()
    for name, values in expected.items():
        np.testing.assert_allclose(np.asarray(found[name]), values, rtol=1e-3, err_msg=name)


def test_a_gram_matrix_is_divided_by_height_width_and_channels():
    from helpers.style.network import gram

    maps = np.random.default_rng(0).normal(size=(2, 5, 7, 3)).astype(np.float32)
    found = np.asarray(gram(maps))
    for n in range(2):
        flat = maps[n].reshape(-1, 3)
        np.testing.assert_allclose(found[n], flat.T @ flat / (5 * 7 * 3), rtol=1e-4, atol=1e-6)


def test_a_picture_is_no_distance_from_itself_and_a_plain_one_far_from_any_style():
    from helpers.style.features import random_features
    from helpers.style.network import PerceptualLoss

    picture = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    loss = PerceptualLoss(random_features(), picture)
    losses = loss(picture[None], picture[None].astype(np.float32))
    assert float(losses["content"][0]) == pytest.approx(0, abs=1e-6)
    assert float(losses["style"][0]) == pytest.approx(0, abs=1e-6)
    assert float(loss(picture[None], np.full((1, 48, 48, 3), 127.5, np.float32))["style"][0]) > 0.2


def test_random_filters_are_the_same_each_time_and_balanced_on_noise():
    from helpers.style.features import noise_pictures, random_filters

    (kernel, bias), again = random_filters(), random_filters()
    np.testing.assert_array_equal(kernel, again[0])
    np.testing.assert_array_equal(bias, again[1])
    windows = np.lib.stride_tricks.sliding_window_view(noise_pictures() / 127.5 - 1, (5, 5), (1, 2))
    seen = np.einsum("nhwcij,ijcf->nhwf", windows[:, ::3, ::3], kernel)
    np.testing.assert_allclose(seen.std((0, 1, 2)), 1, rtol=1e-3)
    assert np.abs(seen.mean((0, 1, 2)) + bias).max() <= 1


def test_the_same_picture_is_always_painted_alike():
    from helpers.style.network import style_network

    network, picture = style_network(2), np.random.default_rng(0).integers(0, 256, (1, 20, 24, 3), np.uint8)
    np.testing.assert_array_equal(np.asarray(network(picture)), np.asarray(network(picture)))


# ---- feeding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [None, 1, 4])
def test_images_come_in_the_list_s_order(photographs, threads):
    from helpers.style.feeds import style_tf_data

    files = find_unlabelled_images(photographs)
    batches = list(style_tf_data(files, image_size=(24, 40), batch_size=4, threads=threads))
    assert [images.shape for images, _ in batches] == [(4, 24, 40, 3), (4, 24, 40, 3), (3, 24, 40, 3)]
    expected = [os.fsencode(path) for path in files.paths]
    assert [name for _, names in batches for name in np.asarray(names).tolist()] == expected


def test_the_middle_is_cut_out_and_nothing_is_distorted():
    from helpers.style.feeds import fitted

    picture = np.zeros((40, 120, 3), np.uint8)
    picture[:, 40:80] = (10, 200, 90)  # RGB; the middle square
    found = fitted(picture, (20, 20)).numpy()
    assert found.shape == (20, 20, 3)
    assert (found[:, 1:-1] == (10, 200, 90)).all()


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_broken_image_is_named(photographs, tmp_path, damage):
    import shutil

    import tensorflow as tf

    from helpers.style.feeds import style_tf_data

    files = find_unlabelled_images(shutil.copytree(photographs, tmp_path / "own"))
    broken = files.paths[6]
    if damage == "missing":
        os.remove(broken)
    else:
        os.truncate(broken, os.path.getsize(broken) // 2)
    with pytest.raises(tf.errors.OpError, match=re.escape(broken)):
        list(style_tf_data(files, image_size=(24, 24), batch_size=4))


# ---- training, killed and not ----------------------------------------------------------------------------------------


def totals(folder: Path) -> np.ndarray:
    from helpers.style.training import LOSSES, read_losses

    rows = read_losses(folder / "losses.csv")
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return np.array([[row[name] for name in LOSSES] for row in rows])


def test_the_total_is_the_weighted_sum_and_falls(trained):
    losses = totals(trained)
    assert len(losses) == 14
    settings = load_settings(trained / "settings.yaml")
    weights = settings.content_weight, settings.style_weight
    np.testing.assert_allclose(losses[:, 0], losses[:, 1:] @ weights, rtol=1e-3)
    assert losses[-3:, 0].mean() < losses[:3, 0].mean()


def test_a_training_killed_at_any_moment_goes_on_as_if_undisturbed(trained, settings_file, photographs, tmp_path):
    folder = tmp_path / "killed"
    arguments = training(settings_file, photographs, folder, "save_every=5")
    process = subprocess.Popen(
        [sys.executable, "-m", "helpers.style", *arguments, "--set", "steps=100000"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        limit_s = time.monotonic() + COMMAND_S
        while not (folder / "checkpoints" / "checkpoint").exists():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < limit_s
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert "going on after step" in command(*arguments, "--set", "steps=14")
    np.testing.assert_allclose(totals(folder)[:14], totals(trained), rtol=0.01)


def test_a_kill_between_losses_and_checkpoint_leaves_no_step_twice(trained, tmp_path):
    import shutil

    from helpers.style.training import _keep_losses, read_losses

    own = tmp_path / "losses.csv"
    shutil.copy(trained / "losses.csv", own)
    with open(own, "a") as file:
        file.write("15,3,2,1\n16,3,2")
    _keep_losses(own, 10)
    assert [row["step"] for row in read_losses(own)] == list(range(1, 11))


def test_more_steps_go_on_from_the_last_one(trained, settings_file, photographs, tmp_path):
    import shutil

    from helpers.style.training import train

    folder, said = shutil.copytree(trained, tmp_path / "more"), []
    settings = load_settings(settings_file).changed(["steps=16"])
    train(settings, find_unlabelled_images(photographs), folder, say=said.append)
    assert said[0] == "going on after step 14"
    np.testing.assert_array_equal(totals(folder)[:14], totals(trained))
    assert len(totals(folder)) == 16


def test_an_epoch_takes_each_image_once_and_a_resumed_one_the_rest(photographs):
    from helpers.style.feeds import epoch_order

    for epoch in range(3):
        order = epoch_order(11, 4, 7, epoch)
        assert len(order) == len(set(order.tolist())) == 8
    assert epoch_order(11, 4, 7, 0).tolist() != epoch_order(11, 4, 7, 1).tolist()
    assert epoch_order(11, 4, 7, 1).tolist() == epoch_order(11, 4, 7, 1).tolist()


def test_the_summaries_hold_each_step_and_took_no_batch(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorflow import make_ndarray

    events = EventAccumulator(str(trained / "logs"), size_guidance={"tensors": 0})
    events.Reload()
    logged = events.Tensors("loss/total")
    assert [one.step for one in logged] == list(range(1, 15))
    np.testing.assert_allclose([make_ndarray(one.tensor_proto) for one in logged], totals(trained)[:, 0], rtol=1e-3)
    assert [one.step for one in events.Tensors("photograph and painted")] == [5, 10, 14]


def test_two_trainings_do_not_share_a_folder(settings_file, photographs, tmp_path):
    from helpers.files import locked
    from helpers.style.training import train

    with locked(tmp_path / ".lock", ""), pytest.raises(OSError, match="another training is writing"):
        train(load_settings(settings_file), find_unlabelled_images(photographs), tmp_path)


def test_other_images_are_refused_unless_they_are_asked_for(capsys, trained, settings_file, photographs, tmp_path):
    import shutil

    run, moved = shutil.copytree(trained, tmp_path / "run"), shutil.copytree(photographs, tmp_path / "moved")
    more = ["steps=15", "save_every=5"]
    assert "going on after step 14" in command(*training(settings_file, moved, run, *more))
    os.rename(moved / "00.jpg", moved / "99.jpg")
    arguments = training(settings_file, moved, run, "steps=16", "save_every=5")
    assert "holds a run with other images" in refused(capsys, *arguments)
    os.rename(moved / "99.jpg", moved / "00.jpg")
    shutil.copy(moved / "01.jpg", moved / "00.jpg")  # another image of the same name
    assert "holds a run with other images" in refused(capsys, *arguments)
    assert len(totals(run)) == 15
    assert "step 16 of 16" in command(*arguments, "--other-images") or len(totals(run)) == 16
    assert style.main([*arguments]) == 0  # they are this run's images now


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "styles").glob("*.yaml")), ids=lambda path: path.stem)
def test_each_style_beats_its_baselines_at_the_size_of_the_lesson(path, tmp_path):
    """By the losses themselves: nearer to its photograph than another one is, nearer to the style than it was."""
    import make_images

    from helpers.style.features import random_features
    from helpers.style.feeds import style_tf_data
    from helpers.style.network import PerceptualLoss
    from helpers.style.pictures import target_picture
    from helpers.style.trained import load_network
    from helpers.style.training import train

    make_images.make_images(240, tmp_path / "images", progress=False)
    make_styles.make_styles(tmp_path / "styles")
    files = find_unlabelled_images(tmp_path / "images")
    settings = load_settings(path)
    settings = settings.changed([f"style_image={tmp_path / 'styles' / Path(settings.style_image).name}"])
    train(settings, files.take(200), tmp_path / "run", say=lambda line: None)
    network, loss = load_network(tmp_path / "run"), PerceptualLoss(random_features(), target_picture(settings))
    held_out = files.select(np.arange(200, 240))
    photographs = next(style_tf_data(held_out, image_size=(64, 64), batch_size=40).as_numpy_iterator())[0]
    painted, unpainted, another = (
        {name: np.asarray(values) for name, values in loss(photographs, pictures).items()}
        for pictures in (network(photographs), photographs, np.roll(photographs, 1, axis=0))
    )
    assert (painted["content"] < another["content"]).mean() >= 0.9
    assert (painted["style"] < unpainted["style"]).mean() >= 0.9


# ---- stylise, preview, export ----------------------------------------------------------------------------------------


# A saved model needs nothing of this project; the Keras file needs the layers of the network.
LOAD_BOTH = f"""
import sys
import numpy as np
import tensorflow as tf

pictures = np.load("picture.npy")[None]
network = tf.saved_model.load("out/saved_model")
np.save("saved_model.npy", network.serve(pictures)[0])
assert not [name for name in sys.modules if name.startswith("helpers")]
sys.path.insert(0, {str(ROOT)!r})
import keras
import helpers.style.network
np.save("keras.npy", np.rint(np.asarray(keras.models.load_model("out/network.keras")(pictures)))[0])
"""


def test_export_gives_the_same_picture_in_a_fresh_process(trained, tmp_path):
    from helpers.style.trained import load_network, stylise

    command("export", trained, "--to", tmp_path / "out")
    picture = np.random.default_rng(0).integers(0, 256, (41, 30, 3), np.uint8)
    np.save(tmp_path / "picture.npy", picture)
    expected = stylise(load_network(trained), picture)
    code = [sys.executable, "-c", LOAD_BOTH]
    subprocess.run(code, cwd=tmp_path, check=True, timeout=COMMAND_S)
    for name in ("saved_model", "keras"):
        found = np.load(tmp_path / f"{name}.npy").astype(int)
        assert np.abs(found - expected).max() <= 1, name


def test_pictures_of_any_size_are_repainted(trained, tmp_path, capsys):
    for name, size in (("wide.jpg", (20, 90)), ("tall.png", (75, 31))):
        cv2.imwrite(str(tmp_path / name), np.full((*size, 3), 99, np.uint8))
    pictures = [str(tmp_path / name) for name in ("wide.jpg", "tall.png")]
    assert style.main(["stylise", str(trained / "network.keras"), *pictures, "--to", str(tmp_path / "out")]) == 0
    assert cv2.imread(str(tmp_path / "out/wide.png")).shape == (20, 90, 3)
    assert cv2.imread(str(tmp_path / "out/tall.png")).shape == (75, 31, 3)
    longest = ["--longest-side", "60"]
    assert style.main(["stylise", str(trained), pictures[1], "--to", str(tmp_path / "small"), *longest]) == 0
    assert cv2.imread(str(tmp_path / "small/tall.png")).shape == (60, round(31 * 60 / 75), 3)
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_the_preview_is_what_the_losses_see(settings_file, tmp_path, capsys):
    from helpers.style.pictures import target_picture

    target = tmp_path / "target.png"
    assert style.main(["preview", str(settings_file), "--to", str(target), "--set", "style_size=40"]) == 0
    expected = target_picture(load_settings(settings_file).changed(["style_size=40"]))
    np.testing.assert_array_equal(cv2.imread(str(target))[..., ::-1], expected)
    assert "40×40 px" in capsys.readouterr().out


# ---- what is there already ----------------------------------------------------------------------------------------


def test_a_repainted_picture_replaces_no_file(capsys, trained, tmp_path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / name for name in ("photo.png", "a/x.jpg", "b/x.jpg", "out/y.png", "y.jpg")]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        assert cv2.imwrite(str(path), rng.integers(0, 256, (20, 20, 3), np.uint8))
    before = [path.read_bytes() for path in paths]
    photo, first, second, _taken, other = paths
    assert "replace one of the pictures" in refused(capsys, "stylise", trained, photo, "--to", tmp_path)
    assert "the same name" in refused(capsys, "stylise", trained, first, second, "--to", tmp_path / "out")
    assert "is there already" in refused(capsys, "stylise", trained, other, "--to", tmp_path / "out")
    assert [path.read_bytes() for path in paths] == before
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["y.png"]
    for _ in range(2):  # its own result is no obstacle
        command("stylise", trained, photo, "--to", tmp_path / "out")


def test_a_preview_replaces_no_file(capsys, settings_file, tmp_path):
    target = tmp_path / "photo.png"
    target.write_bytes(b"mine")
    assert "is there already" in refused(capsys, "preview", settings_file, "--to", target)
    assert target.read_bytes() == b"mine"
    for _ in range(2):
        command("preview", settings_file, "--to", tmp_path / "target.png")


def test_an_export_replaces_no_file(capsys, trained, tmp_path):
    (tmp_path / "network.keras").write_bytes(b"mine")
    assert "is there already" in refused(capsys, "export", trained, "--to", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["network.keras"]


@pytest.mark.parametrize("name", ["style.png", "losses.csv", "network.keras", "settings.yaml"])
def test_a_training_replaces_no_file(capsys, settings_file, photographs, tmp_path, name):
    content = settings_file.read_bytes() if name == "settings.yaml" else b"mine"
    (tmp_path / name).write_bytes(content)
    style_image = f"style_image={settings_file.parent / 'mosaic.png'}"
    if name == "settings.yaml":
        (tmp_path / "mosaic.png").write_bytes((settings_file.parent / "mosaic.png").read_bytes())
    refused(capsys, *training(settings_file, photographs, tmp_path, style_image))
    assert (tmp_path / name).read_bytes() == content
    assert {path.name for path in tmp_path.iterdir()} - {".lock", "mosaic.png"} == {name}


# ---- errors ----------------------------------------------------------------------------------------------------------


def refused(capsys, *arguments: object) -> str:
    assert style.main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    return captured.err


def test_errors_of_pictures_and_folders(capsys, trained, settings_file, photographs, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no images" in refused(capsys, *training(settings_file, tmp_path / "empty", tmp_path / "run"))
    assert "no such folder" in refused(capsys, *training(settings_file, tmp_path / "nowhere", tmp_path / "run"))
    missing = tmp_path / "missing.jpg"
    assert str(missing) in refused(capsys, "stylise", trained, missing, "--to", tmp_path)
    no_picture = tmp_path / "text.jpg"
    no_picture.write_text("no picture")
    assert str(no_picture) in refused(capsys, "stylise", trained, no_picture, "--to", tmp_path)
    thin = tmp_path / "thin.png"
    cv2.imwrite(str(thin), np.zeros((4, 50, 3), np.uint8))
    assert "more than 4" in refused(capsys, "stylise", trained, thin, "--to", tmp_path / "out")
    few = [*training(settings_file, photographs, tmp_path / "run"), "--set", "batch_size=12"]
    assert "less than one batch of 12" in refused(capsys, *few)
    nowhere = [*training(settings_file, photographs, tmp_path / "run"), "--set", "style_image=none.png"]
    assert "none.png: no such style picture" in refused(capsys, *nowhere)


def test_a_broken_image_ends_a_training_with_its_name(capsys, settings_file, photographs, tmp_path):
    import shutil

    folder = shutil.copytree(photographs, tmp_path / "own")
    (folder / "03.jpg").write_bytes(b"\xff\xd8 no picture")
    assert style.main([*training(settings_file, folder, tmp_path / "run"), "--set", "steps=9"]) == 2
    assert str(folder / "03.jpg") in capsys.readouterr().err


def test_a_loss_that_is_no_number_ends_a_training(settings_file, photographs, tmp_path):
    from helpers.style.training import train

    settings = load_settings(settings_file).changed(["content_weight=1e39", "steps=9", "save_every=1"])
    with pytest.raises(ValueError, match="lower learning_rate"):
        train(settings, find_unlabelled_images(photographs), tmp_path / "run", say=lambda line: None)
    assert not list((tmp_path / "run").glob("checkpoints/*.index"))


def test_weights_that_do_not_fit(capsys, trained, settings_file, photographs, tmp_path):
    import shutil

    import keras

    own = shutil.copytree(trained, tmp_path / "own")
    assert "holds a run with width 2, not 3" in refused(capsys, *training(settings_file, photographs, own, "width=3"))
    text = (own / "settings.yaml").read_text()
    (own / "settings.yaml").write_text(text.replace("width: 2", "width: 3"))
    assert "these weights do not fit" in refused(capsys, "stylise", own, photographs / "00.jpg", "--to", tmp_path)
    other = tmp_path / "other.keras"
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]).save(other)
    assert "not one that repaints" in refused(capsys, "export", other, "--to", tmp_path)
    other.write_bytes(b"no network")
    assert f"{other}: no Keras network" in refused(capsys, "export", other, "--to", tmp_path)
    assert "no such network" in refused(capsys, "export", tmp_path / "none.keras", "--to", tmp_path)
    (tmp_path / "bare").mkdir()
    assert "no settings.yaml" in refused(capsys, "export", tmp_path / "bare", "--to", tmp_path)


def test_another_style_picture_needs_another_folder(capsys, trained, settings_file, photographs, tmp_path):
    other = tmp_path / "other.png"
    cv2.imwrite(str(other), np.zeros((64, 64, 3), np.uint8))
    message = refused(capsys, *training(settings_file, photographs, trained, f"style_image={other}"))
    assert "another style picture" in message


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("stile_weight=3", "unknown field `stile_weight`; the settings are style_image, style_size"),
        ("steps=0", "Expected `int` >= 1 - at `$.steps`"),
        ("steps=2.5", "Expected `int`"),
        ("steps=true", "Expected `int`"),
        ("learning_rate=fast", "Expected `float`"),
        ("features=alexnet", "'alexnet' - at `$.features`"),
        ("steps", "name=value"),
        ("style_image=", "Expected `str` of length >= 1"),
        ("style_weight=nan", "Expected `float` >= 0.0 - at `$.style_weight`"),
        ("width=1000", "Expected `int` <= 512 - at `$.width`"),
    ],
)
def test_a_wrong_setting_is_told(capsys, settings_file, tmp_path, assignment, said):
    target = tmp_path / "target.png"
    assert said in refused(capsys, "preview", settings_file, "--to", target, "--set", assignment)
    assert not target.exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "Expected `object`, got `null`"),
        ("steps: 3", "missing required field `style_image`"),
        ("a: 'x", "line 1, column 4"),
        ("a: [", "without lists"),
        ("style_image: x.png\nwidht: 3", "unknown field `widht`"),
        ("style_image: 3", "Expected `str`, got `int` - at `$.style_image`"),
        ("style_image: x.png\nsteps: true", "Expected `int`, got `bool` - at `$.steps`"),
        ("style_image: x.png\nstyle_weight: .nan", "Expected `float` >= 0.0 - at `$.style_weight`"),
    ],
)
def test_a_wrong_settings_file_is_told_by_name(capsys, tmp_path, text, said):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    message = refused(capsys, "preview", path, "--to", tmp_path / "target.png")
    assert message.startswith(f"helpers.style: {path}: ")
    assert said in message


PAIRS = tuple(zip("abcdefgh", "bcdefghi", strict=True))
NESTED = "".join(f"{new}: &{new} [{','.join(['*' + old] * 9)}]\n" for old, new in PAIRS)
MERGED = "".join(f"{new}: &{new} {{<<: [{','.join(['*' + old] * 9)}]}}\n" for old, new in PAIRS)


@pytest.mark.parametrize(
    "text",
    [
        f"a: &a [x,x]\n{NESTED}style_image: *i\n",
        f"a: &a [x,x]\n{NESTED}style_image: x.png\nsteps: *i\n",
        f"a: &a {{k: v}}\n{MERGED}<<: *i\n",
        "style_image: " + "[" * 60_000,
        "style_image: x.png\nsteps: " + "9" * 60_000,
        "style_image: x.png\nfeatures: " + "z" * 60_000,
        "style_image: x.png\n" + "z" * 1_000 + ": 1",
        "style_image: " + "z" * 60_000,
        "style_image: !" + "z" * 60_000 + " x",
        "style_image: x.png\n" + "# a comment\n" * 10_000,
    ],
    ids=["nested", "value", "merged", "deep", "digits", "long", "name", "path", "tag", "large"],
)
def test_settings_that_are_a_bomb_are_refused_at_once_in_a_short_line(capsys, tmp_path, text):
    path = tmp_path / "bomb.yaml"
    path.write_text(text)
    start_s = time.monotonic()
    assert len(refused(capsys, "preview", path, "--to", tmp_path / "target.png")) < 1_000
    assert time.monotonic() - start_s < 10


def test_a_long_argument_is_told_in_short(capsys, settings_file, tmp_path):
    for assignment in ("z" * 60_000, "features=" + "z" * 60_000, "style_image=" + "z" * 60_000):
        arguments = ["preview", settings_file, "--to", tmp_path / "target.png", "--set", assignment]
        assert len(refused(capsys, *arguments)) < 1_000


def test_settings_have_one_source(tmp_path):
    from helpers.style.settings import save_settings

    settings = StyleSettings("ä/picture.png", learning_rate=0.002).changed(["learning_rate=1e-3", "steps = 7"])
    assert (settings.learning_rate, settings.steps) == (0.001, 7)
    save_settings(settings, tmp_path / "kept.yaml")
    assert load_settings(tmp_path / "kept.yaml").changed([f"style_image={settings.style_image}"]) == settings
    with pytest.raises(FileNotFoundError, match="styles/ has examples"):
        load_settings(tmp_path / "none.yaml")


def test_help_and_settings_do_not_wait_for_tensorflow():
    code = "import sys, helpers.style.command; assert not {'tensorflow', 'keras'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=COMMAND_S)
