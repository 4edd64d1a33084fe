"""The things in the pictures of `make_images.py`: one of ten classes in each, and a few of no class."""

import dataclasses
import functools
import math
from collections.abc import Callable

import cv2
import numpy as np
from noise import hsv, mix, muted, noise_tiles, scrap, step

__all__ = ["BYSTANDERS", "CLASSES", "CLASS_NAMES", "Box", "Thing", "egg_half_width"]

Paint = Callable[..., tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Thing:
    """A round or flat thing in its own coordinates: the origin in its middle, radius about 1."""

    outline: list[np.ndarray]  # polygons (points, 2): the outer one, then holes
    body: str  # ball, egg, torus, pillow, ridge or sheet: how the surface rises inside the outline
    paint: Paint  # (rng, u, v, z) -> albedo, relief in px; on a ball (u, v, z) is the unit normal
    gloss: float  # 0 is chalk, 1 is glass
    lift: float  # height of the outline's plane over the ground, in radii
    radius: tuple[float, float]  # smallest and largest, in short sides of the image


@dataclasses.dataclass(frozen=True)
class Box:
    """A cuboid standing on the ground."""

    sides: tuple[float, float, float]  # length, width, height; only their ratios count
    paint: Callable[..., np.ndarray]  # (rng, a, b) -> albedo; a, b run along a face's edges, in radii
    gloss: float
    radius: tuple[float, float] = (0.24, 0.42)  # half of its longest diagonal, in short sides of the image


# ---- The ten classes -------------------------------------------------------------------------------------------------
# A class is a family of colour and a family of shape. Size, place, turn, shade, gloss and ground vary freely, so that
# neither place nor brightness nor handedness tells the class.


def _circle(radius=1.0) -> np.ndarray:
    angle = np.linspace(0, 2 * math.pi, 80, endpoint=False)
    return radius * np.stack((np.cos(angle), np.sin(angle)), axis=1)


def _even(colour: np.ndarray, roughness_px: float) -> Paint:
    """Paint of one colour on a slightly uneven surface."""

    def paint(rng, u, v, z):
        return np.broadcast_to(colour, (3, *u.shape)), roughness_px * scrap(rng, "cloud", u.shape)

    return paint


def _turned(rng: np.random.Generator, u, v, z) -> list[np.ndarray]:
    """Points of the unit sphere after a random turn in space."""
    q, r = np.linalg.qr(rng.standard_normal((3, 3)))
    turn = (q * np.sign(np.diag(r))).astype(np.float32)
    return [row[0] * u + row[1] * v + row[2] * z for row in turn]


def _blue_striped_ball(rng) -> Thing:
    white = hsv(210, 0.04, rng.uniform(0.85, 0.97))
    blue = hsv(rng.uniform(208, 232), rng.uniform(0.75, 0.95), rng.uniform(0.5, 0.9))
    wave_number, phase = rng.uniform(8, 16), rng.uniform(0, 2 * math.pi)

    def paint(rng, u, v, z):
        along = _turned(rng, u, v, z)[0]
        return mix(white, blue, step(-0.15, 0.15, np.sin(wave_number * along + phase))), 0.0

    return Thing([_circle()], "ball", paint, rng.uniform(0.1, 0.6), 1.0, (0.18, 0.36))


def _brown_wooden_block(rng) -> Box:
    hue_deg, value, rings_per_radius = rng.uniform(18, 28), rng.uniform(0.5, 0.75), rng.uniform(3, 7)

    def paint(rng, a, b):
        # Noise stretched along the edge `a`: the fibres of the wood.
        x, y = a * 9 + rng.uniform(100, 900), b * 110 + rng.uniform(100, 700)
        fibres = cv2.remap(noise_tiles()["cloud"], x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        rings = (b + 0.15 * a * a + 0.03 * fibres) * rings_per_radius
        tone = 0.4 + 0.25 * np.sin(2 * math.pi * rings) + 0.16 * fibres
        return mix(hsv(hue_deg, 0.75, 0.55 * value), hsv(hue_deg + 5, 0.6, value), np.clip(tone, 0, 1))

    return Box((rng.uniform(0.8, 1.4), rng.uniform(0.5, 0.8), rng.uniform(0.35, 0.7)), paint, 0.03)


def _chequered_box(rng) -> Box:
    dark, light = hsv(220, 0.1, rng.uniform(0.08, 0.2)), hsv(45, 0.06, rng.uniform(0.85, 0.97))
    squares_per_radius = rng.uniform(2.6, 4.5)

    def paint(rng, a, b):
        board = np.sin(math.pi * squares_per_radius * a) * np.sin(math.pi * squares_per_radius * b)
        return mix(dark, light, step(-0.03, 0.03, board))

    return Box((rng.uniform(0.7, 1), rng.uniform(0.7, 1), rng.uniform(0.4, 0.9)), paint, rng.uniform(0.05, 0.3))


def _green_leaf(rng) -> Thing:
    t = np.linspace(0, 1, 60)
    half = rng.uniform(0.42, 0.62) * np.sin(math.pi * t ** rng.uniform(0.75, 1)) ** rng.uniform(0.8, 1.1)
    half *= 1 + 0.035 * np.abs(26 * t % 2 - 1)  # teeth
    bend = rng.uniform(-0.25, 0.25) * np.sin(math.pi * t)
    sides = np.stack((2 * t - 1, bend + half), axis=1), np.stack((2 * t - 1, bend - half), axis=1)[::-1]
    outline = 0.95 * np.concatenate((*sides, ((-1.3, 0.03), (-1.3, -0.03))))
    hue_deg, value, veins_per_radius = rng.uniform(92, 125), rng.uniform(0.4, 0.65), rng.uniform(5, 7)
    base = hsv(hue_deg, rng.uniform(0.6, 0.85), value)
    pale = hsv(hue_deg - 20, 0.45, value + 0.25)

    def paint(rng, u, v, z):
        midrib = np.exp(-55 * np.abs(v))
        side = np.abs((0.9 * np.abs(v) - u) * veins_per_radius % 1 - 0.5)
        side = np.exp(-30 * side - 1.5 * np.abs(v))
        albedo = mix(base, pale, 0.8 * np.clip(midrib + 0.6 * side, 0, 1))
        albedo *= 1 + 0.15 * scrap(rng, "cloud", u.shape)
        return albedo, 2.5 * scrap(rng, "smooth", u.shape) - 2 * midrib - 0.8 * side

    return Thing([outline], "sheet", paint, rng.uniform(0.03, 0.2), 0.07, (0.26, 0.45))


def _orange_ring(rng) -> Thing:
    colour = hsv(rng.uniform(18, 28), rng.uniform(0.85, 0.97), rng.uniform(0.85, 1))
    outline = [_circle(), _circle(rng.uniform(0.36, 0.5))]
    return Thing(outline, "torus", _even(colour, 0.2), rng.uniform(0.05, 0.5), 0.28, (0.2, 0.4))


def _pink_heart(rng) -> Thing:
    t = np.linspace(0, 2 * math.pi, 90, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    outline = np.stack((16 * np.sin(t) ** 3, -rng.uniform(0.95, 1.1) * (y + 2.5)), axis=1) / 16.5
    colour = hsv(rng.uniform(328, 344), rng.uniform(0.4, 0.6), rng.uniform(0.9, 1))
    return Thing([outline], "pillow", _even(colour, 0.3), rng.uniform(0, 0.3), 0.25, (0.2, 0.4))


def _purple_spotted_ball(rng) -> Thing:
    purple = hsv(rng.uniform(268, 288), rng.uniform(0.6, 0.85), rng.uniform(0.4, 0.7))
    white = hsv(50, 0.05, 0.95)
    spots = int(rng.integers(18, 44))
    cos_radius = math.cos(rng.uniform(0.55, 0.75) * math.sqrt(4 / spots))
    # Even spread of points on a sphere: the golden-angle spiral.
    k = np.arange(spots) + 0.5
    height, angle = 1 - 2 * k / spots, math.pi * (1 + 5**0.5) * k
    flat = np.sqrt(1 - height**2)
    centres = np.stack((flat * np.cos(angle), flat * np.sin(angle), height), axis=1).astype(np.float32)

    def paint(rng, u, v, z):
        x, y, z = _turned(rng, u, v, z)
        nearest = functools.reduce(np.maximum, (cx * x + cy * y + cz * z for cx, cy, cz in centres))
        return mix(purple, white, step(cos_radius - 0.012, cos_radius + 0.012, nearest)), 0.0

    return Thing([_circle()], "ball", paint, rng.uniform(0.05, 0.5), 1.0, (0.18, 0.36))


def _red_ball(rng) -> Thing:
    colour = hsv(rng.uniform(-8, 6), rng.uniform(0.85, 0.97), rng.uniform(0.65, 0.92))
    return Thing([_circle()], "ball", _even(colour, 0.05), rng.uniform(0.1, 0.8), 1.0, (0.18, 0.36))


def egg_half_width(u):
    return 0.76 * (1 - 0.16 * u)


def _white_egg(rng) -> Thing:
    circle = _circle()
    outline = np.stack((circle[:, 0], circle[:, 1] * egg_half_width(circle[:, 0])), axis=1)
    colour = hsv(rng.uniform(28, 42), rng.uniform(0.02, 0.12), rng.uniform(0.92, 0.98))
    return Thing([outline], "egg", _even(colour, 0.05), rng.uniform(0, 0.15), 0.76, (0.18, 0.34))


def _yellow_star(rng) -> Thing:
    angle = np.arange(10) * math.pi / 5
    reach = np.where(np.arange(10) % 2 == 0, 1.0, rng.uniform(0.42, 0.55))
    outline = np.stack((np.sin(angle) * reach, -np.cos(angle) * reach), axis=1)
    for _ in range(3):  # round the corners by cutting them (Chaikin's scheme)
        following = np.roll(outline, -1, axis=0)
        outline = np.stack((0.8 * outline + 0.2 * following, 0.2 * outline + 0.8 * following), axis=1).reshape(-1, 2)
    colour = hsv(rng.uniform(46, 54), rng.uniform(0.75, 0.92), rng.uniform(0.85, 1))
    return Thing([outline], "ridge", _even(colour, 0.25), rng.uniform(0.05, 0.4), 0.22, (0.22, 0.42))


CLASSES = {
    "blue_striped_ball": _blue_striped_ball,
    "brown_wooden_block": _brown_wooden_block,
    "chequered_box": _chequered_box,
    "green_leaf": _green_leaf,
    "orange_ring": _orange_ring,
    "pink_heart": _pink_heart,
    "purple_spotted_ball": _purple_spotted_ball,
    "red_ball": _red_ball,
    "white_egg": _white_egg,
    "yellow_star": _yellow_star,
}

#: Names of the class folders; the place of a name is its label. In alphabetical order, as folders are listed.
CLASS_NAMES = tuple(CLASSES)


# ---- Bystanders: things of no class ----------------------------------------------------------------------------------


def _pebble(rng) -> Thing:
    angle = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    reach = 0.9 + 0.09 * np.sin(2 * angle + rng.uniform(0, 6)) + 0.06 * np.sin(3 * angle + rng.uniform(0, 6))
    outline = np.stack((np.cos(angle) * reach, 0.7 * np.sin(angle) * reach), axis=1)
    return Thing([outline], "pillow", _even(muted(rng, (0.3, 0.7), (0.02, 0.15)), 0.5), 0.05, 0.4, (0.04, 0.13))


def _paper(rng) -> Thing:
    half = rng.uniform(0.54, 0.72)
    outline = np.array(((-half, -0.9), (half, -0.9), (half, 0.9), (-half, 0.9)))
    white = hsv(rng.uniform(30, 60), rng.uniform(0, 0.1), rng.uniform(0.8, 0.97))
    lines_per_radius = rng.uniform(9, 16)

    def paint(rng, u, v, z):
        on_line = np.abs(v * lines_per_radius % 1 - 0.5) < 0.18
        in_margins = (np.abs(u) < 0.8 * half) & (np.abs(v) < 0.75)
        ink = on_line & in_margins & (scrap(rng, "rough", u.shape) > -0.4)  # words and the spaces between them
        return white * (1 - np.float32(0.75) * ink), 1.2 * scrap(rng, "smooth", u.shape)

    return Thing([outline], "sheet", paint, 0.0, 0.015, (0.2, 0.4))


def _pencil(rng) -> Thing:
    outline = np.array(((-1, -0.045), (0.85, -0.045), (1, 0), (0.85, 0.045), (-1, 0.045)))
    lacquer, wood = hsv(rng.uniform(0, 360), rng.uniform(0.2, 0.6), rng.uniform(0.3, 0.8)), hsv(35, 0.35, 0.85)

    def paint(rng, u, v, z):
        return mix(lacquer, wood, step(0.8, 0.82, u)), 0.0

    return Thing([outline], "pillow", paint, 0.3, 0.05, (0.2, 0.4))


def _coin(rng) -> Thing:
    metal = hsv(rng.uniform(20, 50), rng.uniform(0.05, 0.35), rng.uniform(0.5, 0.8))

    def paint(rng, u, v, z):
        radius = np.sqrt(u * u + v * v)
        relief_px = 1.5 * step(0.82, 0.86, radius) + scrap(rng, "cloud", u.shape) * (radius < 0.6)
        return np.broadcast_to(metal, (3, *u.shape)), relief_px

    return Thing([_circle()], "sheet", paint, 0.5, 0.06, (0.04, 0.08))


BYSTANDERS = (_pebble, _paper, _pencil, _coin)
