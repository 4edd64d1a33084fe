"""The same picture in several files: found after it was resized or compressed again, and not mistaken for another."""

import cv2
import numpy as np
from conftest import draw_image
from copies import equal_files, near_copies, small_picture


def jpeg(image, quality):
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)


def test_a_picture_is_found_however_it_was_saved_again():
    drawn = {f"{number:03d}": draw_image(number) for number in range(60)}
    pictures = {name: small_picture(image) for name, image in drawn.items()}
    assert list(near_copies(pictures)) == []
    image = drawn["007"]
    copies = {"smaller": cv2.resize(image, None, fx=0.6, fy=0.6), "compressed": jpeg(image, 30), "equal": image}
    pictures |= {name: small_picture(copy) for name, copy in copies.items()}
    assert {path for path, _ in near_copies(pictures)} == set(copies)
    assert {first for _, first in near_copies(pictures)} <= {"007", *copies}
    others = {"mirrored": image[:, ::-1], "cut": image[30:-30, 40:-40], "brighter": cv2.convertScaleAbs(image, alpha=2)}
    pictures |= {name: small_picture(other) for name, other in others.items()}
    assert {path for path, _ in near_copies(pictures)} == set(copies)


def test_pages_without_contrast_are_no_copies():
    rng = np.random.default_rng(0)
    blank = {str(n): small_picture(rng.integers(250, 256, (40, 40, 3)).astype(np.uint8)) for n in range(20)}
    assert list(near_copies(blank)) == [] and list(near_copies({})) == []


def test_equal_files_point_at_the_first():
    assert list(equal_files({"b": "1", "a": "1", "c": "2", "d": "1"})) == [("b", "a"), ("d", "a")]
