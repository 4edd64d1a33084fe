"""Make photograph-like JPEG images in ten class folders; run by readers before the first lesson, and by the tests.

    python data_scripts/make_images.py [--count N] [--to DIR] [--seed S] [--workers W]

Each image is a small scene: a ground (wood, cloth, stone, grass ...) under a lamp, sometimes with a blurred room
behind, a few things of no class, and one thing that gives the class: a red ball, a green leaf, a white egg. Files are
``<folder>/<class name>/<number>.jpg``. Image ``number`` has the class ``number % 10`` and depends on the seed and its
number only, so the first 240 of 2,000 are the same files as a run with ``--count 240``. Sizes, JPEG qualities and
bytes per file are like those of COCO (https://cocodataset.org). The bytes are the same on one machine; another version
of NumPy or OpenCV may round a pixel differently.

In file sizes, 1 KB is 1,000 bytes and 1 MB is 1,000,000 bytes, as disks are sold.
"""

import argparse
import colorsys
import contextlib
import dataclasses
import errno
import functools
import json
import math
import os
import re
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

try:
    import fcntl
except ImportError:  # Windows has no flock; see _hold_folder
    fcntl = None

__all__ = ["CLASS_NAMES", "MEAN_KB", "MixedImagesError", "make_images"]

FORMAT_VERSION = 1  # raise it whenever the same seed no longer gives the same images
MEAN_KB = 125  # measured: mean of the first 2,000 images of seed 0, in KB per image
SPARE_MB = 200  # room that must stay free on the disk
MAX_COUNT = 1_000_000  # six digits in a file name, so that names sort as numbers do

# width px, height px, share of the images
SIZES = ((640, 480, 0.62), (480, 640, 0.12), (640, 427, 0.12), (427, 640, 0.05), (500, 375, 0.06), (612, 612, 0.03))
JPEG_QUALITIES = (92, 93, 94, 95)

_PROJECT_ROOT = Path(__file__).resolve().parents[1]
_RECORD_NAME = "make_images.json"
_LEFTOVER = re.compile(r"\.(\d{6}|make_images)\.[0-9a-f]{8}\.tmp")
_AS_WORKER = "--as-worker"


class MixedImagesError(Exception):
    """The folder holds images of another seed, of another format version or of another origin."""


# ---- Noise -----------------------------------------------------------------------------------------------------------
# Natural images have amplitude spectra near 1/f (Field 1987, https://doi.org/10.1364/JOSAA.4.002379). Tiles with such
# spectra are made once per process; a scene looks them up at its own places, scales and directions, which is some
# ten times quicker than making new noise for every image. Tiles repeat without a seam.

_TILE_PX = 1024
_SLOPES = {"shade": 2.6, "smooth": 1.7, "cloud": 1.15, "rough": 0.6}
_LOOKUP = {"flags": cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, "borderMode": cv2.BORDER_WRAP}


def _spectral_tile(rng: np.random.Generator, slope: float) -> np.ndarray:
    """Noise of unit variance whose amplitude falls as 1 / f ** slope."""
    frequency = np.hypot(np.fft.fftfreq(_TILE_PX)[:, None], np.fft.rfftfreq(_TILE_PX)[None, :])
    spectrum = np.fft.rfft2(rng.standard_normal((_TILE_PX, _TILE_PX)))
    # Waves longer than a third of the tile would only make one image brighter than another.
    spectrum = np.where(frequency < 3 / _TILE_PX, 0, spectrum / np.maximum(frequency, 1e-6) ** slope)
    tile = np.fft.irfft2(spectrum, s=(_TILE_PX, _TILE_PX))
    return (tile / tile.std()).astype(np.float32)


def _cell_tiles(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Height and tone of pebbles: the cells around points of a jittered grid (a Voronoi diagram)."""
    step_px, border_px = 16, 64
    rows, columns = np.meshgrid(*2 * [np.arange(0, _TILE_PX, step_px)], indexing="ij")
    away = np.full((_TILE_PX, _TILE_PX), 255, np.uint8)
    jitter = rng.integers(0, step_px, (2, *rows.shape))
    away[rows + jitter[0], columns + jitter[1]] = 0
    padded = np.pad(away, border_px, mode="wrap")
    distance, label = cv2.distanceTransformWithLabels(padded, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    inner = (slice(border_px, -border_px),) * 2
    height = np.sqrt(np.maximum(0, 1 - (distance[inner] / (0.75 * step_px)) ** 2))
    tone = rng.random(int(label.max()) + 1)[label[inner]]
    return height.astype(np.float32), tone.astype(np.float32)


@functools.lru_cache(maxsize=1)
def _tiles() -> dict[str, np.ndarray]:
    """The noise tiles by name, each (1024, 1024) float32; `grain` is (3, 1024, 1024)."""
    rng = np.random.default_rng(1987)  # the same tiles for every image, whatever its seed
    tiles = {name: _spectral_tile(rng, slope) for name, slope in _SLOPES.items()}
    tiles["cell_height"], tiles["cell_tone"] = _cell_tiles(rng)
    # A sensor's noise is a little blurred, and partly the same in all three colours, by the camera's demosaicing.
    colours = [cv2.GaussianBlur(rng.standard_normal((_TILE_PX,) * 2, dtype=np.float32), (0, 0), 0.55) for _ in range(4)]
    colours = [colour / colour.std() for colour in colours]
    tiles["grain"] = np.stack([0.45 * colour + 0.75 * colours[3] for colour in colours[:3]])
    return tiles


def _scrap(rng: np.random.Generator, name: str, shape: tuple[int, int]) -> np.ndarray:
    """A piece of a noise tile from a random place, (height, width) float32; a view, not to be written to."""
    y, x = (int(rng.integers(_TILE_PX - side_px + 1)) for side_px in shape)
    return _tiles()[name][..., y : y + shape[0], x : x + shape[1]]


# ---- Colours: linear light, RGB, channels first ----------------------------------------------------------------------
# Light adds up in linear values only. With channels first, a (height, width) field broadcasts without an index, and
# NumPy works on contiguous rows: three times as quick as with channels last.


def _colour(hue_deg: float, saturation: float, value: float) -> np.ndarray:
    """A colour (3, 1, 1) float32 in linear light."""
    return np.array(colorsys.hsv_to_rgb(hue_deg % 360 / 360, saturation, value), np.float32).reshape(3, 1, 1) ** 2


def _muted(rng: np.random.Generator, values=(0.3, 0.8), saturations=(0.03, 0.3)) -> np.ndarray:
    """A colour of walls, stones and cloths: mostly brownish or bluish, never strong."""
    hue_deg = float(rng.choice((25, 30, 35, 45, 90, 200, 210))) + rng.uniform(-12, 12)
    return _colour(hue_deg, rng.uniform(*saturations), rng.uniform(*values))


def _mix(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    """`first` where `share` is 0, `second` where it is 1."""
    return first + (second - first) * share


def _step(low: float, high: float, x: np.ndarray) -> np.ndarray:
    """A smooth step from 0 (x <= low) to 1 (x >= high)."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


# ---- The scene: camera and lamp --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Scene:
    """Where the camera and the lamp are. Screen axes: x to the right, y down, z towards the viewer."""

    width_px: int
    height_px: int
    elevation_rad: float  # of the camera over the ground: pi / 2 looks straight down
    lamp: np.ndarray  # unit vector towards the lamp
    lamp_colour: np.ndarray
    ambient_colour: np.ndarray
    horizon_px: float  # row of the ground's far edge; negative when out of view

    @property
    def short_px(self) -> int:
        return min(self.width_px, self.height_px)

    @property
    def squash(self) -> float:
        """How much shorter a flat thing on the ground looks in y."""
        return math.sin(self.elevation_rad)

    @property
    def up(self) -> np.ndarray:
        """The ground's normal."""
        return np.array((0, -math.cos(self.elevation_rad), math.sin(self.elevation_rad)), np.float32)

    def shadow_shift_px(self, lift_px: float) -> np.ndarray:
        """Way on the screen from a point `lift_px` over the ground to its shadow."""
        return -self.lamp[:2] * (lift_px / max(float(self.lamp @ self.up), 0.35))


def _make_scene(rng: np.random.Generator) -> _Scene:
    width_px, height_px, _ = SIZES[rng.choice(len(SIZES), p=[share for *_, share in SIZES])]
    from_above = rng.random() < 0.35
    elevation_rad = math.radians(rng.uniform(68, 90) if from_above else rng.uniform(32, 62))
    azimuth_rad, lamp_z = math.radians(rng.uniform(-165, -15)), rng.uniform(0.45, 0.85)
    flat = math.sqrt(1 - lamp_z**2)
    warmth, ambient = rng.uniform(-0.12, 0.16), rng.uniform(0.22, 0.5)
    has_horizon = elevation_rad < math.radians(52) and rng.random() < 0.8
    return _Scene(
        width_px=width_px,
        height_px=height_px,
        elevation_rad=elevation_rad,
        lamp=np.array((math.cos(azimuth_rad) * flat, math.sin(azimuth_rad) * flat, lamp_z), np.float32),
        lamp_colour=np.array((1 + warmth, 1, 1 - warmth), np.float32).reshape(3, 1, 1) * (1.25 - ambient),
        # Shade is lit by the sky or the walls: bluish where the lamp is warm.
        ambient_colour=np.array((1 - 0.6 * warmth, 1, 1 + 0.6 * warmth), np.float32).reshape(3, 1, 1) * ambient,
        horizon_px=height_px * rng.uniform(0.08, 0.38) if has_horizon else -50.0,
    )


# ---- The ground ------------------------------------------------------------------------------------------------------


class _Plane:
    """The ground in perspective: coordinates `u`, `v` of each pixel, and noise that lies on it."""

    def __init__(self, rng: np.random.Generator, scene: _Scene):
        turn_rad = rng.uniform(-0.5, 0.5) + float(rng.choice((0, math.pi / 2)))
        cos, sin = math.cos(turn_rad), math.sin(turn_rad)
        turn = np.array(((cos, -sin, 0), (sin, cos, 0), (0, 0, 1)))
        nearness = 0.9 * math.cos(scene.elevation_rad) / scene.height_px  # far rows are seen smaller
        self._matrix = turn @ np.array(((1, 0, -scene.width_px / 2), (0, 1, -scene.height_px), (0, nearness, 0.55)))
        self._rng, self._size = rng, (scene.width_px, scene.height_px)
        x = np.arange(scene.width_px, dtype=np.float32)
        y = np.arange(scene.height_px, dtype=np.float32)[:, None]
        m = self._matrix.astype(np.float32)
        scale = 1 / (m[2, 1] * y + m[2, 2])
        self.u = (m[0, 0] * x + m[0, 1] * y + m[0, 2]) * scale
        self.v = (m[1, 0] * x + m[1, 1] * y + m[1, 2]) * scale

    def place(self) -> tuple[float, float]:
        return self._rng.uniform(0, _TILE_PX), self._rng.uniform(0, _TILE_PX)

    def noise(self, name: str, scale_u=1.0, scale_v=1.0, place=None) -> np.ndarray:
        """Noise (height, width) float32; a scale below 1 stretches it."""
        du, dv = place or self.place()
        matrix = np.array(((scale_u, 0, du), (0, scale_v, dv), (0, 0, 1))) @ self._matrix
        return cv2.warpPerspective(_tiles()[name], matrix, self._size, **_LOOKUP)


# Each kind of ground returns its albedo (3, height, width) and its relief (height, width) in px.


def _wood(rng, plane, short_px):
    hue_deg, saturation, value = rng.uniform(20, 38), rng.uniform(0.15, 0.6), rng.uniform(0.35, 0.85)
    grain, fibre = plane.noise("cloud", 0.05, 0.55), plane.noise("rough", 0.12, 1.6)
    tone = 0.5 + 0.17 * np.sin(2.5 * grain + plane.v * rng.uniform(0.03, 0.1)) + 0.1 * grain + 0.08 * fibre
    board_px = short_px * rng.uniform(0.22, 0.5)
    row = plane.v / board_px
    index = np.floor(row)
    gap = np.clip((np.abs(row - index - 0.5) - 0.5) * board_px + 1.6, 0, 1)
    tone += rng.uniform(-0.14, 0.14, 64).astype(np.float32)[index.astype(np.int32) % 64]
    tone = np.clip(tone, 0, 1) * (1 - 0.85 * gap)
    dark, light = _colour(hue_deg, saturation + 0.15, value * 0.55), _colour(hue_deg + 4, saturation, value)
    return _mix(dark, light, tone), 1.2 * fibre - 6 * gap


def _cloth(rng, plane, short_px):
    wave_number, folds = 2 * math.pi / rng.uniform(3, 6.5), plane.noise("smooth", 0.5, 0.5)
    fuzz = plane.noise("rough")
    weave = np.sin(wave_number * plane.u + 3 * folds) * np.sin(wave_number * plane.v + 3 * folds)
    light = _muted(rng, (0.4, 0.9), (0.02, 0.4))
    tone = np.clip(0.6 + 0.16 * weave + 0.14 * fuzz, 0, 1.3)
    return _mix(light * rng.uniform(0.35, 0.6), light, tone), 0.5 * weave + rng.uniform(2, 14) * folds + 0.4 * fuzz


def _stone(rng, plane, short_px):
    cloud, rough = plane.noise("cloud"), plane.noise("rough")
    specks = np.clip(plane.noise("rough", 1.7, 1.7) - 1.7, 0, 1)
    tone = np.clip(0.5 + 0.2 * cloud + 0.12 * rough - 0.5 * specks, 0, 1.2)
    light = _muted(rng, (0.5, 0.9), (0.02, 0.25))
    return _mix(light * rng.uniform(0.2, 0.5), light, tone), rng.uniform(0.2, 1.1) * (cloud + rough)


def _marble(rng, plane, short_px):
    veins = 1 / (1 + (8 * plane.noise("cloud", 0.5, 0.8) + 2 * plane.noise("smooth", 0.4, 0.4)) ** 2)
    rough = plane.noise("rough")
    tone = np.clip(0.75 - 0.7 * veins + 0.12 * plane.noise("cloud") + 0.06 * rough, 0, 1.1)
    light = _muted(rng, (0.7, 0.95), (0.01, 0.12))
    return _mix(light * _muted(rng, (0.4, 0.6), (0.1, 0.3)), light, tone), 0.3 * rough


def _gravel(rng, plane, short_px):
    scale, place = rng.uniform(0.3, 1.2), plane.place()
    height = plane.noise("cell_height", scale, scale, place)
    tone = np.clip(0.15 + 0.75 * plane.noise("cell_tone", scale, scale, place), 0, 1) * (0.35 + 0.65 * height)
    light = _muted(rng, (0.6, 0.9), (0.05, 0.3))
    tone = np.clip(tone + 0.1 * plane.noise("rough"), 0, 1.2)
    return _mix(light * 0.08, light, tone), 3.5 * height / scale


def _lawn(rng, plane, short_px):
    blades = plane.noise("rough", 0.9, 0.14) + 0.35 * plane.noise("smooth", 0.8, 0.8)
    across = plane.noise("rough", 0.2, 0.8)
    tone = np.clip(0.42 + 0.24 * blades + 0.17 * across + 0.1 * plane.noise("cloud", 0.4, 0.4), 0, 1.2)
    hue_deg, saturation = rng.uniform(60, 95), rng.uniform(0.25, 0.5)
    light = _colour(hue_deg - 8, saturation, rng.uniform(0.5, 0.75))
    return _mix(_colour(hue_deg + 12, saturation + 0.2, 0.16), light, tone), 2.2 * blades


def _sand(rng, plane, short_px):
    grains = plane.noise("rough", 1.5, 1.5)
    tone = np.clip(0.6 + 0.15 * grains + 0.1 * plane.noise("cloud"), 0, 1.2)
    light = _colour(rng.uniform(28, 44), rng.uniform(0.15, 0.4), rng.uniform(0.6, 0.9))
    return _mix(light * 0.4, light, tone), rng.uniform(3, 9) * plane.noise("smooth", 0.4, 1.6) + 0.8 * grains


def _floor_tiles(rng, plane, short_px):
    side_px = short_px * rng.uniform(0.18, 0.45)
    row, column = plane.v / side_px, plane.u / side_px
    i, j = np.floor(row), np.floor(column)
    edge = np.maximum(np.abs(row - i - 0.5), np.abs(column - j - 0.5))
    grout = np.clip(((edge - 0.5) * side_px + 3) / 1.5, 0, 1)
    rough = plane.noise("rough")
    tone = 0.65 + rng.uniform(-0.15, 0.15, 97).astype(np.float32)[(i * 31 + j * 17).astype(np.int32) % 97]
    light = _muted(rng, (0.5, 0.9), (0.05, 0.4))
    glazed = _mix(light * 0.4, light, np.clip(tone + 0.12 * plane.noise("cloud") + 0.06 * rough, 0, 1.2))
    return _mix(glazed, _muted(rng, (0.3, 0.7), (0.02, 0.1)), 0.8 * grout), 0.4 * rough - 4 * grout


_GROUNDS = (_wood, _wood, _cloth, _cloth, _stone, _marble, _gravel, _lawn, _sand, _floor_tiles)


def _make_ground(rng: np.random.Generator, scene: _Scene) -> np.ndarray:
    """The lit ground, (3, height, width) float32."""
    plane = _Plane(rng, scene)
    albedo, relief = _GROUNDS[rng.integers(len(_GROUNDS))](rng, plane, scene.short_px)
    lamp_x, lamp_y, lamp_z = (float(part) for part in scene.lamp)
    dx, dy = (cv2.Sobel(relief, cv2.CV_32F, *axis, ksize=1) for axis in ((1, 0), (0, 1)))
    lit = np.clip(lamp_z - 0.3 * (dx * lamp_x + dy * lamp_y), 0.02, 1.8) * (0.75 / max(lamp_z, 0.4))
    if rng.random() < 0.5:  # something out of view, a tree or a curtain, stands before the lamp
        lit *= 1 - rng.uniform(0.3, 0.8) * _step(-0.6, 0.9, plane.noise("shade", 1.1, 1.1))
    light = scene.lamp_colour * lit
    light += scene.ambient_colour
    light *= albedo
    return light


def _add_backdrop(rng: np.random.Generator, scene: _Scene, image: np.ndarray) -> None:
    """Put a room far behind over the rows above the horizon: painted small, blurred, enlarged."""
    width, height = scene.width_px // 4, scene.height_px // 4
    top, bottom = _muted(rng, (0.25, 0.9)), _muted(rng, (0.2, 0.7))
    wall = _mix(top, bottom, np.linspace(0, 1, height, dtype=np.float32)[:, None]) + np.zeros((width,), np.float32)
    room = np.ascontiguousarray(wall.transpose(1, 2, 0))
    for _ in range(rng.integers(3, 14)):
        colour = _colour(rng.uniform(0, 360), rng.uniform(0.05, 0.5), rng.uniform(0.1, 0.9))
        colour = (colour if rng.random() < 0.3 else _muted(rng, (0.1, 0.95))).ravel().tolist()
        x, y = int(rng.uniform(-0.2, 1) * width), int(rng.uniform(0.1, 1) * height)
        if rng.random() < 0.65:
            corner = (x + int(rng.uniform(0.04, 0.35) * width), y - int(rng.uniform(0.1, 0.9) * height))
            cv2.rectangle(room, (x, y), corner, colour, cv2.FILLED)
        else:
            cv2.circle(room, (x, y), int(rng.uniform(0.02, 0.14) * width), colour, cv2.FILLED)
    for _ in range(rng.integers(0, 12)):  # distant lamps: bright discs of a lens out of focus
        colour = (_colour(rng.uniform(20, 60), rng.uniform(0, 0.4), 1) * rng.uniform(0.6, 1.6)).ravel().tolist()
        spot = (int(rng.integers(width)), int(rng.integers(height)))
        cv2.circle(room, spot, int(rng.integers(2, 5)), colour, cv2.FILLED, cv2.LINE_AA)
    room = cv2.GaussianBlur(room, (0, 0), rng.uniform(1.2, 5))
    rows = min(scene.height_px, int(scene.horizon_px) + 24)
    room = cv2.resize(room, (scene.width_px, scene.height_px), interpolation=cv2.INTER_LINEAR)[:rows]
    lean = rng.uniform(-0.04, 0.04) * (np.arange(scene.width_px, dtype=np.float32) - scene.width_px / 2)
    is_ground = _step(-2.5, 2.5, np.arange(rows, dtype=np.float32)[:, None] - scene.horizon_px - lean)
    image[:, :rows] = _mix(room.transpose(2, 0, 1), image[:, :rows], is_ground)


def _blur_far_rows(rng: np.random.Generator, scene: _Scene, image: np.ndarray) -> None:
    """Depth of field: the lens is focused on the near part of the ground."""
    near_px, far_px = rng.uniform(0.35, 0.6) * scene.height_px, max(scene.horizon_px, -0.3 * scene.height_px)
    rows, sigma_px = math.ceil(near_px), rng.uniform(1, 3)
    blurred = 1 - _step(far_px, near_px, np.arange(rows, dtype=np.float32)[:, None])
    for channel in image[:, :rows]:
        half = cv2.resize(channel, (scene.width_px // 2, rows // 2), interpolation=cv2.INTER_AREA)
        soft = cv2.resize(cv2.GaussianBlur(half, (0, 0), sigma_px), (scene.width_px, rows))
        channel += (soft - channel) * blurred


# ---- Things on the ground --------------------------------------------------------------------------------------------

_Paint = Callable[..., tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class _Thing:
    """A round or flat thing in its own coordinates: the origin in its middle, radius about 1."""

    outline: list[np.ndarray]  # polygons (points, 2): the outer one, then holes
    body: str  # ball, egg, torus, pillow, ridge or sheet: how the surface rises inside the outline
    paint: _Paint  # (rng, u, v, z) -> albedo, relief in px; on a ball (u, v, z) is the unit normal
    gloss: float  # 0 is chalk, 1 is glass
    lift: float  # height of the outline's plane over the ground, in radii
    radius: tuple[float, float]  # smallest and largest, in short sides of the image


@dataclasses.dataclass(frozen=True)
class _Spot:
    """Where a thing lies on the screen."""

    x_px: float
    y_px: float
    radius_px: float
    turn_rad: float
    squash: float

    def to_screen(self, points: np.ndarray) -> np.ndarray:
        cos, sin = math.cos(self.turn_rad), math.sin(self.turn_rad)
        turned = points @ np.array(((cos, sin), (-sin, cos)))
        return turned * (self.radius_px, self.radius_px * self.squash) + (self.x_px, self.y_px)

    def own_coordinates(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x, y = (x - self.x_px) / self.radius_px, (y - self.y_px) / (self.radius_px * self.squash)
        cos, sin = math.cos(self.turn_rad), math.sin(self.turn_rad)
        return cos * x + sin * y, cos * y - sin * x


def _choose_spot(rng, scene: _Scene, radius: tuple[float, float], squash: float, is_tall: bool) -> _Spot:
    radius_px = scene.short_px * rng.uniform(*radius)
    # A tall thing may reach over the horizon, a flat one lies on the ground as a whole.
    top_px = max(scene.horizon_px, 0) + radius_px * (0.35 if is_tall else squash)
    lowest, highest = max(top_px, 0.75 * radius_px), scene.height_px - 0.75 * radius_px
    return _Spot(
        x_px=rng.uniform(0.8 * radius_px, scene.width_px - 0.8 * radius_px),
        y_px=rng.uniform(lowest, max(lowest + 1, highest)),
        radius_px=radius_px,
        turn_rad=rng.uniform(0, 2 * math.pi),
        squash=squash,
    )


def _window(scene: _Scene, polygons: list[np.ndarray], border_px: float) -> tuple[slice, slice] | None:
    """The part of the image (rows, columns) that the polygons and a border cover; None when out of view."""
    points = np.concatenate(polygons)
    x0, y0 = np.maximum(np.floor(points.min(axis=0) - border_px), 0).astype(int).tolist()
    x1, y1 = np.ceil(points.max(axis=0) + border_px).astype(int).tolist()
    x1, y1 = min(x1, scene.width_px), min(y1, scene.height_px)
    return (slice(y0, y1), slice(x0, x1)) if x1 - x0 > 3 and y1 - y0 > 3 else None


def _fill(polygons: list[np.ndarray], shape: tuple[int, int], origin=(0, 0), scale=1.0) -> np.ndarray:
    """Coverage (height, width) uint8, 255 inside, smooth at the edges; a polygon inside another is a hole."""
    coverage = np.zeros(shape, np.uint8)
    fixed_point = [np.round((polygon - origin) * (16 * scale)).astype(np.int32) for polygon in polygons]
    cv2.fillPoly(coverage, fixed_point, 255, cv2.LINE_AA, 4)
    return coverage


def _cast_shadow(scene, image, polygons, strength: float, softness_px: float) -> None:
    """Darken the image under the polygons (screen px), with a soft edge; worked out at a quarter of the size."""
    window = _window(scene, polygons, 3 * softness_px + 4)
    if window is None:
        return
    part = image[:, window[0], window[1]]
    height, width = part.shape[1:]
    small = _fill(polygons, (height // 4 + 2, width // 4 + 2), (window[1].start, window[0].start), 0.25)
    small = cv2.GaussianBlur(small.astype(np.float32), (0, 0), max(0.6, softness_px / 4))
    large = cv2.resize(small, (small.shape[1] * 4, small.shape[0] * 4), interpolation=cv2.INTER_LINEAR)
    part *= 1 - (strength / 255) * large[:height, :width]


def _normals(height_px: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit normals of a surface whose height over the screen is given."""
    dx = cv2.Sobel(height_px, cv2.CV_32F, 1, 0, ksize=3, scale=1 / 8)
    dy = cv2.Sobel(height_px, cv2.CV_32F, 0, 1, ksize=3, scale=1 / 8)
    z = 1 / np.sqrt(1 + dx * dx + dy * dy)
    return -dx * z, -dy * z, z


def _shade(scene: _Scene, albedo, normal, gloss: float, ground_colour: np.ndarray) -> np.ndarray:
    """Light that a surface sends to the viewer: lamp, sky, glow of the ground, mirrored lamp."""
    nx, ny, nz = normal
    lamp_x, lamp_y, lamp_z = scene.lamp
    facing_lamp = np.clip(nx * lamp_x + ny * lamp_y + nz * lamp_z, 0, None)
    facing_up = 0.5 + 0.5 * (ny * scene.up[1] + nz * scene.up[2])
    light = scene.ambient_colour * (0.35 + 0.65 * facing_up) + scene.lamp_colour * facing_lamp
    light += ground_colour * (0.35 * (1 - facing_up))
    light *= albedo
    if gloss > 0:
        # The mirrored view ray meets a square-edged lamp (a window, a soft box) with a faint glow around it.
        mirrored = 2 * nz * (nx * lamp_x + ny * lamp_y + nz * lamp_z) - lamp_z
        shine = _step(0.94, 0.98, mirrored) + 0.18 * np.clip(mirrored, 0, 1) ** 12
        rim = 0.25 * np.clip(1 - nz, 0, 1) ** 3 * facing_up
        light += scene.lamp_colour * (gloss * (shine + rim))
    return light


def _weathered(rng: np.random.Generator, albedo: np.ndarray, amount: float) -> np.ndarray:
    shape = albedo.shape[1:]
    return albedo * (1 + amount * (_scrap(rng, "cloud", shape) + 0.5 * _scrap(rng, "rough", shape)))


def _paste(image, window, colour, coverage: np.ndarray) -> None:
    part = image[:, window[0], window[1]]
    alpha = cv2.GaussianBlur(coverage, (0, 0), 0.6).astype(np.float32) / 255  # no edge is sharper than the lens
    part += (colour - part) * alpha


def _ground_colour(scene: _Scene, image: np.ndarray, x_px: float, y_px: float) -> np.ndarray:
    x, y = min(scene.width_px - 1, max(0, int(x_px))), min(scene.height_px - 1, max(0, int(y_px)))
    return image[:, y, x].reshape(3, 1, 1).copy()


def _rise(body: str, thing: _Thing, u, v, coverage, spot: _Spot) -> np.ndarray:
    """Height of the surface over the outline's plane, in radii."""
    if body in ("ball", "egg"):
        return np.sqrt(np.clip(1 - u * u - v * v, 0, 1))
    if body == "torus":
        hole = float(thing.outline[1].max())
        tube = (1 - hole) / 2
        across = (np.sqrt(u * u + v * v) - (1 + hole) / 2) / tube
        return tube * np.sqrt(np.clip(1 - across * across, 0, 1))
    inside_px = cv2.distanceTransform((coverage > 127).astype(np.uint8), cv2.DIST_L2, 5)
    inside = cv2.GaussianBlur(inside_px, (0, 0), max(1.0, 0.03 * spot.radius_px)) / spot.radius_px
    if body == "pillow":
        return thing.lift * np.sqrt(1 - (1 - np.clip(inside / 0.32, 0, 1)) ** 2)
    if body == "ridge":
        return thing.lift * 2.6 * inside
    return thing.lift * np.clip(inside / 0.05, 0, 1)


def _shadows_of(rng, scene: _Scene, image, thing: _Thing, spot: _Spot, polygons) -> None:
    """The lamp's shadow, and the darkness where a thing touches the ground."""
    lift_px = thing.lift * spot.radius_px
    if thing.body not in ("ball", "egg"):
        shift = scene.shadow_shift_px(lift_px)
        softness_px = max(1.5, lift_px * rng.uniform(0.25, 0.6))
        _cast_shadow(scene, image, [polygon + shift for polygon in polygons], rng.uniform(0.5, 0.75), softness_px)
        under = [polygon - scene.up[:2] * lift_px * 0.6 for polygon in polygons]
        _cast_shadow(scene, image, under, 0.6, max(1.5, 0.2 * lift_px))
        return
    centre = np.array((spot.x_px, spot.y_px))
    flat = [(polygon - centre) * (1, scene.squash) for polygon in polygons]
    touch = centre - scene.up[:2] * lift_px
    shadow = centre + scene.shadow_shift_px(lift_px)
    softness_px = spot.radius_px * rng.uniform(0.06, 0.2)
    _cast_shadow(scene, image, [0.97 * polygon + shadow for polygon in flat], rng.uniform(0.5, 0.75), softness_px)
    between = 0.75 * touch + 0.25 * shadow
    _cast_shadow(scene, image, [0.66 * polygon + between for polygon in flat], 0.75, 0.12 * spot.radius_px)


def _add_thing(rng: np.random.Generator, scene: _Scene, image: np.ndarray, thing: _Thing) -> None:
    is_tall = thing.body in ("ball", "egg")
    spot = _choose_spot(rng, scene, thing.radius, 1.0 if is_tall else max(0.6, scene.squash), is_tall)
    polygons = [spot.to_screen(polygon) for polygon in thing.outline]
    window = _window(scene, polygons, 3)
    if window is None:
        return
    rows, columns = window
    ground = _ground_colour(scene, image, spot.x_px, spot.y_px)
    _shadows_of(rng, scene, image, thing, spot, polygons)
    x, y = np.arange(columns.start, columns.stop, dtype=np.float32), np.arange(rows.start, rows.stop, dtype=np.float32)
    u, v = spot.own_coordinates(x, y[:, None])
    if thing.body == "egg":
        v = v / _egg_half_width(u)
    coverage = _fill(polygons, u.shape, (columns.start, rows.start))
    rise = _rise(thing.body, thing, u, v, coverage, spot).astype(np.float32)
    albedo, relief_px = thing.paint(rng, u, v, rise)
    height_px = rise * (spot.radius_px * (thing.lift if is_tall else 1)) + relief_px
    normal = _normals(height_px.astype(np.float32))
    colour = _shade(scene, _weathered(rng, albedo, 0.06), normal, thing.gloss, ground)
    _paste(image, window, colour, coverage)


# ---- Boxes -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Box:
    """A cuboid standing on the ground."""

    sides: tuple[float, float, float]  # length, width, height; only their ratios count
    paint: Callable[..., np.ndarray]  # (rng, a, b) -> albedo; a, b run along a face's edges, in radii
    gloss: float
    radius: tuple[float, float] = (0.24, 0.42)  # half of its longest diagonal, in short sides of the image


def _face(rng, scene, image, box: _Box, corner, edges, radius_px: float, normal, ground) -> None:
    """Paint one face: `corner` and the two `edges` are points and vectors (3,) in screen px."""
    first, second = edges
    quad = np.array((corner, corner + first, corner + first + second, corner + second))[:, :2]
    window = _window(scene, [quad], 3)
    if window is None:
        return
    rows, columns = window
    x = np.arange(columns.start, columns.stop, dtype=np.float32) - np.float32(corner[0])
    y = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] - np.float32(corner[1])
    inverse = np.linalg.inv(np.array((first[:2], second[:2])).T).astype(np.float32)
    a, b = inverse[0, 0] * x + inverse[0, 1] * y, inverse[1, 0] * x + inverse[1, 1] * y
    first_px, second_px = float(np.linalg.norm(first)), float(np.linalg.norm(second))
    albedo = box.paint(rng, a * (first_px / radius_px), b * (second_px / radius_px))
    edge_px = np.minimum(np.minimum(a, 1 - a) * first_px, np.minimum(b, 1 - b) * second_px)
    albedo = albedo * (1 + 0.25 * np.exp(-np.clip(edge_px, 0, None) / 2))  # worn edges catch light
    dx, dy, _ = _normals(0.25 * _scrap(rng, "rough", a.shape))
    tilted = (dx + np.float32(normal[0]), dy + np.float32(normal[1]), np.full(a.shape, normal[2], np.float32))
    colour = _shade(scene, _weathered(rng, albedo, 0.07), tilted, box.gloss, ground)
    _paste(image, window, colour, _fill([quad], a.shape, (columns.start, rows.start)))


def _add_box(rng: np.random.Generator, scene: _Scene, image: np.ndarray, box: _Box) -> None:
    spot = _choose_spot(rng, scene, box.radius, 1.0, is_tall=True)
    sides_px = np.array(box.sides) * (2 * spot.radius_px / math.hypot(*box.sides))
    right, up = np.array((1.0, 0, 0)), scene.up.astype(float)
    towards = np.array((0, math.sin(scene.elevation_rad), math.cos(scene.elevation_rad)))
    cos, sin = math.cos(spot.turn_rad), math.sin(spot.turn_rad)
    a = (cos * right + sin * towards) * sides_px[0]
    b = (cos * towards - sin * right) * sides_px[1]
    c = up * sides_px[2]
    corner = np.array((spot.x_px, spot.y_px, 0)) - (a + b + c) / 2
    base = np.array((corner, corner + a, corner + a + b, corner + b))[:, :2]
    ground = _ground_colour(scene, image, *base.mean(axis=0))
    points = np.concatenate((base, base + c[:2] + scene.shadow_shift_px(sides_px[2])))
    hull = cv2.convexHull(points.astype(np.float32))[:, 0].astype(float)
    _cast_shadow(scene, image, [hull], rng.uniform(0.5, 0.75), max(2.0, 0.1 * sides_px[2]))
    _cast_shadow(scene, image, [base], 0.6, max(2.0, 0.06 * spot.radius_px))
    upright = ((corner, a, c, -b), (corner + b, a, c, b), (corner, b, c, -a), (corner + a, b, c, a))
    faces = (*upright, (corner + c, a, b, c))
    for start, first, second, outward in faces:
        normal = outward / np.linalg.norm(outward)
        if normal[2] > 0.02:  # turned to the viewer
            _face(rng, scene, image, box, start, (first, second), spot.radius_px, normal, ground)


# ---- The ten classes -------------------------------------------------------------------------------------------------
# A class is a family of colour and a family of shape. Size, place, turn, shade, gloss and ground vary freely, so that
# neither place nor brightness nor handedness tells the class.


def _circle(radius=1.0) -> np.ndarray:
    angle = np.linspace(0, 2 * math.pi, 80, endpoint=False)
    return radius * np.stack((np.cos(angle), np.sin(angle)), axis=1)


def _even(colour: np.ndarray, roughness_px: float) -> _Paint:
    """Paint of one colour on a slightly uneven surface."""

    def paint(rng, u, v, z):
        return np.broadcast_to(colour, (3, *u.shape)), roughness_px * _scrap(rng, "cloud", u.shape)

    return paint


def _turned(rng: np.random.Generator, u, v, z) -> list[np.ndarray]:
    """Points of the unit sphere after a random turn in space."""
    q, r = np.linalg.qr(rng.standard_normal((3, 3)))
    turn = (q * np.sign(np.diag(r))).astype(np.float32)
    return [row[0] * u + row[1] * v + row[2] * z for row in turn]


def _blue_striped_ball(rng) -> _Thing:
    white = _colour(210, 0.04, rng.uniform(0.85, 0.97))
    blue = _colour(rng.uniform(208, 232), rng.uniform(0.75, 0.95), rng.uniform(0.5, 0.9))
    wave_number, phase = rng.uniform(8, 16), rng.uniform(0, 2 * math.pi)

    def paint(rng, u, v, z):
        along = _turned(rng, u, v, z)[0]
        return _mix(white, blue, _step(-0.15, 0.15, np.sin(wave_number * along + phase))), 0.0

    return _Thing([_circle()], "ball", paint, rng.uniform(0.1, 0.6), 1.0, (0.18, 0.36))


def _brown_wooden_block(rng) -> _Box:
    hue_deg, value, rings_per_radius = rng.uniform(18, 28), rng.uniform(0.5, 0.75), rng.uniform(3, 7)

    def paint(rng, a, b):
        # Noise stretched along the edge `a`: the fibres of the wood.
        x, y = a * 9 + rng.uniform(100, 900), b * 110 + rng.uniform(100, 700)
        fibres = cv2.remap(_tiles()["cloud"], x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        rings = (b + 0.15 * a * a + 0.03 * fibres) * rings_per_radius
        tone = 0.4 + 0.25 * np.sin(2 * math.pi * rings) + 0.16 * fibres
        return _mix(_colour(hue_deg, 0.75, 0.55 * value), _colour(hue_deg + 5, 0.6, value), np.clip(tone, 0, 1))

    return _Box((rng.uniform(0.8, 1.4), rng.uniform(0.5, 0.8), rng.uniform(0.35, 0.7)), paint, 0.03)


def _chequered_box(rng) -> _Box:
    dark, light = _colour(220, 0.1, rng.uniform(0.08, 0.2)), _colour(45, 0.06, rng.uniform(0.85, 0.97))
    squares_per_radius = rng.uniform(2.6, 4.5)

    def paint(rng, a, b):
        board = np.sin(math.pi * squares_per_radius * a) * np.sin(math.pi * squares_per_radius * b)
        return _mix(dark, light, _step(-0.03, 0.03, board))

    return _Box((rng.uniform(0.7, 1), rng.uniform(0.7, 1), rng.uniform(0.4, 0.9)), paint, rng.uniform(0.05, 0.3))


def _green_leaf(rng) -> _Thing:
    t = np.linspace(0, 1, 60)
    half = rng.uniform(0.42, 0.62) * np.sin(math.pi * t ** rng.uniform(0.75, 1)) ** rng.uniform(0.8, 1.1)
    half *= 1 + 0.035 * np.abs(26 * t % 2 - 1)  # teeth
    bend = rng.uniform(-0.25, 0.25) * np.sin(math.pi * t)
    sides = np.stack((2 * t - 1, bend + half), axis=1), np.stack((2 * t - 1, bend - half), axis=1)[::-1]
    outline = 0.95 * np.concatenate((*sides, ((-1.3, 0.03), (-1.3, -0.03))))
    hue_deg, value, veins_per_radius = rng.uniform(92, 125), rng.uniform(0.4, 0.65), rng.uniform(5, 7)
    base = _colour(hue_deg, rng.uniform(0.6, 0.85), value)
    pale = _colour(hue_deg - 20, 0.45, value + 0.25)

    def paint(rng, u, v, z):
        midrib = np.exp(-55 * np.abs(v))
        side = np.abs((0.9 * np.abs(v) - u) * veins_per_radius % 1 - 0.5)
        side = np.exp(-30 * side - 1.5 * np.abs(v))
        albedo = _mix(base, pale, 0.8 * np.clip(midrib + 0.6 * side, 0, 1))
        albedo *= 1 + 0.15 * _scrap(rng, "cloud", u.shape)
        return albedo, 2.5 * _scrap(rng, "smooth", u.shape) - 2 * midrib - 0.8 * side

    return _Thing([outline], "sheet", paint, rng.uniform(0.03, 0.2), 0.07, (0.26, 0.45))


def _orange_ring(rng) -> _Thing:
    colour = _colour(rng.uniform(18, 28), rng.uniform(0.85, 0.97), rng.uniform(0.85, 1))
    outline = [_circle(), _circle(rng.uniform(0.36, 0.5))]
    return _Thing(outline, "torus", _even(colour, 0.2), rng.uniform(0.05, 0.5), 0.28, (0.2, 0.4))


def _pink_heart(rng) -> _Thing:
    t = np.linspace(0, 2 * math.pi, 90, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    outline = np.stack((16 * np.sin(t) ** 3, -rng.uniform(0.95, 1.1) * (y + 2.5)), axis=1) / 16.5
    colour = _colour(rng.uniform(328, 344), rng.uniform(0.4, 0.6), rng.uniform(0.9, 1))
    return _Thing([outline], "pillow", _even(colour, 0.3), rng.uniform(0, 0.3), 0.25, (0.2, 0.4))


def _purple_spotted_ball(rng) -> _Thing:
    purple = _colour(rng.uniform(268, 288), rng.uniform(0.6, 0.85), rng.uniform(0.4, 0.7))
    white = _colour(50, 0.05, 0.95)
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
        return _mix(purple, white, _step(cos_radius - 0.012, cos_radius + 0.012, nearest)), 0.0

    return _Thing([_circle()], "ball", paint, rng.uniform(0.05, 0.5), 1.0, (0.18, 0.36))


def _red_ball(rng) -> _Thing:
    colour = _colour(rng.uniform(-8, 6), rng.uniform(0.85, 0.97), rng.uniform(0.65, 0.92))
    return _Thing([_circle()], "ball", _even(colour, 0.05), rng.uniform(0.1, 0.8), 1.0, (0.18, 0.36))


def _egg_half_width(u):
    return 0.76 * (1 - 0.16 * u)


def _white_egg(rng) -> _Thing:
    circle = _circle()
    outline = np.stack((circle[:, 0], circle[:, 1] * _egg_half_width(circle[:, 0])), axis=1)
    colour = _colour(rng.uniform(28, 42), rng.uniform(0.02, 0.12), rng.uniform(0.92, 0.98))
    return _Thing([outline], "egg", _even(colour, 0.05), rng.uniform(0, 0.15), 0.76, (0.18, 0.34))


def _yellow_star(rng) -> _Thing:
    angle = np.arange(10) * math.pi / 5
    reach = np.where(np.arange(10) % 2 == 0, 1.0, rng.uniform(0.42, 0.55))
    outline = np.stack((np.sin(angle) * reach, -np.cos(angle) * reach), axis=1)
    for _ in range(3):  # round the corners by cutting them (Chaikin's scheme)
        following = np.roll(outline, -1, axis=0)
        outline = np.stack((0.8 * outline + 0.2 * following, 0.2 * outline + 0.8 * following), axis=1).reshape(-1, 2)
    colour = _colour(rng.uniform(46, 54), rng.uniform(0.75, 0.92), rng.uniform(0.85, 1))
    return _Thing([outline], "ridge", _even(colour, 0.25), rng.uniform(0.05, 0.4), 0.22, (0.22, 0.42))


_CLASSES = {
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
CLASS_NAMES = tuple(_CLASSES)


# ---- Bystanders: things of no class ----------------------------------------------------------------------------------


def _pebble(rng) -> _Thing:
    angle = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    reach = 0.9 + 0.09 * np.sin(2 * angle + rng.uniform(0, 6)) + 0.06 * np.sin(3 * angle + rng.uniform(0, 6))
    outline = np.stack((np.cos(angle) * reach, 0.7 * np.sin(angle) * reach), axis=1)
    return _Thing([outline], "pillow", _even(_muted(rng, (0.3, 0.7), (0.02, 0.15)), 0.5), 0.05, 0.4, (0.04, 0.13))


def _paper(rng) -> _Thing:
    half = rng.uniform(0.54, 0.72)
    outline = np.array(((-half, -0.9), (half, -0.9), (half, 0.9), (-half, 0.9)))
    white = _colour(rng.uniform(30, 60), rng.uniform(0, 0.1), rng.uniform(0.8, 0.97))
    lines_per_radius = rng.uniform(9, 16)

    def paint(rng, u, v, z):
        on_line = np.abs(v * lines_per_radius % 1 - 0.5) < 0.18
        in_margins = (np.abs(u) < 0.8 * half) & (np.abs(v) < 0.75)
        ink = on_line & in_margins & (_scrap(rng, "rough", u.shape) > -0.4)  # words and the spaces between them
        return white * (1 - np.float32(0.75) * ink), 1.2 * _scrap(rng, "smooth", u.shape)

    return _Thing([outline], "sheet", paint, 0.0, 0.015, (0.2, 0.4))


def _pencil(rng) -> _Thing:
    outline = np.array(((-1, -0.045), (0.85, -0.045), (1, 0), (0.85, 0.045), (-1, 0.045)))
    lacquer, wood = _colour(rng.uniform(0, 360), rng.uniform(0.2, 0.6), rng.uniform(0.3, 0.8)), _colour(35, 0.35, 0.85)

    def paint(rng, u, v, z):
        return _mix(lacquer, wood, _step(0.8, 0.82, u)), 0.0

    return _Thing([outline], "pillow", paint, 0.3, 0.05, (0.2, 0.4))


def _coin(rng) -> _Thing:
    metal = _colour(rng.uniform(20, 50), rng.uniform(0.05, 0.35), rng.uniform(0.5, 0.8))

    def paint(rng, u, v, z):
        radius = np.sqrt(u * u + v * v)
        relief_px = 1.5 * _step(0.82, 0.86, radius) + _scrap(rng, "cloud", u.shape) * (radius < 0.6)
        return np.broadcast_to(metal, (3, *u.shape)), relief_px

    return _Thing([_circle()], "sheet", paint, 0.5, 0.06, (0.04, 0.08))


_BYSTANDERS = (_pebble, _paper, _pencil, _coin)


# ---- The picture -----------------------------------------------------------------------------------------------------


def _expose(rng: np.random.Generator, scene: _Scene, image: np.ndarray) -> np.ndarray:
    """What the camera makes of the light: (height, width, 3) uint8, in OpenCV's order BGR."""
    x = np.linspace(-1, 1, scene.width_px, dtype=np.float32)
    y = np.linspace(-1, 1, scene.height_px, dtype=np.float32)[:, None]
    lean_x, lean_y = rng.uniform(-0.2, 0.2), rng.uniform(-0.2, 0.2)
    light = 1 - rng.uniform(0.02, 0.15) * (x * x + y * y) + lean_x * x + lean_y * y
    image *= light * rng.uniform(0.8, 1.3)
    np.maximum(image, 0, out=image)
    image *= 1.16 / (1 + 0.22 * image)  # highlights saturate slowly
    image = cv2.sqrt(image.reshape(3, -1)).reshape(image.shape)  # near the sRGB curve, and far quicker
    image *= 255
    image += rng.uniform(1.0, 3.2) * _scrap(rng, "grain", image.shape[1:])
    np.clip(image, 0, 255, out=image)
    return cv2.merge([channel.astype(np.uint8) for channel in image[::-1]])


def _render(rng: np.random.Generator, label: int) -> np.ndarray:
    """A scene with one thing of the class `label`; (height, width, 3) uint8 BGR."""
    scene = _make_scene(rng)
    image = _make_ground(rng, scene)
    for _ in range(rng.choice(4, p=(0.35, 0.3, 0.2, 0.15))):
        _add_thing(rng, scene, image, _BYSTANDERS[rng.integers(len(_BYSTANDERS))](rng))
    if scene.horizon_px > 0:
        _add_backdrop(rng, scene, image)
    if scene.squash < 0.9:
        _blur_far_rows(rng, scene, image)
    thing = _CLASSES[CLASS_NAMES[label]](rng)
    add = _add_box if isinstance(thing, _Box) else _add_thing
    add(rng, scene, image, thing)
    return _expose(rng, scene, image)


def _encoded_image(seed: int, number: int) -> bytes:
    """The JPEG file of image `number`; the same bytes for the same seed and number."""
    rng = np.random.default_rng((seed, number))
    image = _render(rng, number % len(CLASS_NAMES))
    quality = int(rng.choice(JPEG_QUALITIES))
    return cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, quality))[1].tobytes()


# ---- Files -----------------------------------------------------------------------------------------------------------


def _path_of(folder: Path, number: int) -> Path:
    return folder / CLASS_NAMES[number % len(CLASS_NAMES)] / f"{number:06d}.jpg"


def _complete_bytes(path: Path) -> int:
    """Size of a JPEG file that has both its start and its end marker; 0 when it is missing or cut off."""
    try:
        with open(path, "rb") as file:
            starts = file.read(2) == b"\xff\xd8"
            file.seek(-2, os.SEEK_END)
            return file.tell() + 2 if starts and file.read() == b"\xff\xd9" else 0
    except OSError:  # among others: nothing to seek in an empty file
        return 0


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp")


def _write_whole(path: Path, content: bytes) -> None:
    """Write a file so that its name never stands for half of it.

    No fsync: it would cost more than the image. A file that a power cut has emptied is found by `_complete_bytes`.
    """
    temporary = _temporary(path)
    try:
        with open(temporary, "xb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _scan(folder: Path, count: int) -> tuple[list[int], int]:
    """Numbers of the images still to make, and bytes of those that are there."""
    sizes = [_complete_bytes(_path_of(folder, number)) for number in range(count)]
    return [number for number, size in enumerate(sizes) if size == 0], sum(sizes)


def _check_record(folder: Path, seed: int) -> None:
    """Raise MixedImagesError where the folder's images are not those of this seed and format version."""
    wanted = {"format_version": FORMAT_VERSION, "seed": seed}
    advice = "choose another folder with --to, or delete that one"
    try:
        found = json.loads((folder / _RECORD_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        if any(any(folder.glob(f"{name}/[0-9]*.jpg")) for name in CLASS_NAMES):
            raise MixedImagesError(f"{folder} holds images, but no {_RECORD_NAME} tells their seed; {advice}") from None
        return
    except ValueError:
        raise MixedImagesError(f"{folder / _RECORD_NAME} is not the record of a run; {advice}") from None
    if found != wanted:
        raise MixedImagesError(f"{folder} holds images of {found}, not of {wanted}; {advice}")


def _write_record(folder: Path, seed: int) -> None:
    path = folder / _RECORD_NAME
    if path.exists():
        return
    temporary = _temporary(path)
    try:
        temporary.write_text(json.dumps({"format_version": FORMAT_VERSION, "seed": seed}) + "\n", encoding="utf-8")
        try:
            os.link(temporary, path)  # unlike os.replace, it cannot overwrite the record of a run that was quicker
        except FileExistsError:
            pass
        except OSError:
            os.replace(temporary, path)  # a file system without hard links
    finally:
        temporary.unlink(missing_ok=True)


def _remove_leftovers(folder: Path, older_than_s: float) -> None:
    """Remove temporary files that a killed run left behind."""
    for place in (folder, *(folder / name for name in CLASS_NAMES)):
        for path in place.iterdir():
            if _LEFTOVER.fullmatch(path.name) and path.is_file():
                with contextlib.suppress(FileNotFoundError):  # its owner was quicker
                    if time.time() - path.stat().st_mtime >= older_than_s:
                        path.unlink()


@contextlib.contextmanager
def _joined(folder: Path, seed: int) -> Iterator[tuple[bool, tuple[int, ...]]]:
    """Prepare the folder and hold a shared lock on it.

    Yields whether no other run was at work, and the file descriptors that workers inherit: as long as one worker lives,
    even after its parent was killed, the lock tells the next run that temporary files may still have an owner.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        alone, descriptors = False, ()
        if fcntl is not None:
            descriptors = (os.open(folder, os.O_RDONLY),)
            stack.callback(os.close, *descriptors)
            with contextlib.suppress(OSError):  # held by another run, or a file system without locks
                fcntl.flock(descriptors[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
                alone = True
        _write_record(folder, seed)
        _check_record(folder, seed)  # again: another run may have written it meanwhile
        for name in CLASS_NAMES:
            (folder / name).mkdir(exist_ok=True)
        # A temporary file lives some milliseconds; where no lock tells, one of ten minutes has no owner.
        _remove_leftovers(folder, older_than_s=0 if alone else 600)
        if fcntl is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(descriptors[0], fcntl.LOCK_SH)
        yield alone, descriptors


def _check_room(folder: Path, images: int) -> None:
    """Raise OSError (ENOSPC) when the disk has too little room for so many more images."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free_mb = shutil.disk_usage(place).free / 1e6
    needed_mb = images * MEAN_KB / 1e3
    if images and needed_mb + SPARE_MB > free_mb:
        raise OSError(
            errno.ENOSPC,
            f"too little room in {place}: {images:,} images need about {needed_mb:,.0f} MB and {SPARE_MB} MB must stay "
            f"free, but only {free_mb:,.0f} MB are; choose another disk with --to, or fewer images with --count",
        )


# ---- Workers ---------------------------------------------------------------------------------------------------------
# A worker is this program started anew: no fork of a process that may hold TensorFlow's threads, and no demands on the
# caller's __main__, so that it works from a notebook as well. It gets one line of JSON on its standard input, which
# then stays open: its end tells the worker that the parent is gone, even by SIGKILL. All workers answer into one pipe,
# a line of JSON for each image; lines this short are written whole.

# Ctrl-C in a terminal goes to a whole group of processes: workers stand apart, and the parent alone decides.
_APART = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if os.name == "nt" else {"process_group": 0}

# Workers are the parallelism: without this, NumPy would start a thread per core in each of them.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def _watch_parent(stopping: threading.Event) -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 1):
            pass
    stopping.set()
    time.sleep(2)  # a worker that is stuck, on a dead network disk for example, is not to outlive its parent
    os._exit(1)


def _make_one(folder: Path, seed: int, number: int) -> tuple:
    """Make one image; the answer is ("made" or "there", bytes) or ("error", errno, text, path)."""
    path = _path_of(folder, number)
    try:
        if size := _complete_bytes(path):  # another run on this folder was quicker
            return "there", size
        content = _encoded_image(seed, number)
        _write_whole(path, content)
        return "made", len(content)
    except OSError as error:
        return "error", error.errno, error.strerror or str(error), str(path)
    except Exception as error:  # told in one line by the parent
        return "error", None, f"{type(error).__name__}: {error}"[:500], str(path)


def _work() -> int:
    """What a worker does; its exit code."""
    cv2.setNumThreads(1)
    line = sys.stdin.readline()
    if not line:  # the parent was gone before the first word
        return 1
    job = json.loads(line)
    stopping = threading.Event()
    threading.Thread(target=_watch_parent, args=(stopping,), daemon=True).start()
    for number in job["numbers"]:
        answer = _make_one(Path(job["folder"]), job["seed"], number)
        try:
            os.write(1, json.dumps(answer).encode() + b"\n")
        except BrokenPipeError:
            return 1
        if stopping.is_set() or answer[0] == "error":
            return 1
    return 0


def _start_worker(job: dict, answers, descriptors: tuple[int, ...]) -> subprocess.Popen:
    command = [sys.executable, str(Path(__file__).resolve()), _AS_WORKER]
    environment = {**os.environ, **_ONE_THREAD}
    worker = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=answers, env=environment, pass_fds=descriptors, **_APART
    )
    with contextlib.suppress(BrokenPipeError):  # a worker that died at once is known by its exit code
        worker.stdin.write(json.dumps(job).encode() + b"\n")
        worker.stdin.flush()
    return worker


def _stop(workers: list[subprocess.Popen]) -> None:
    """End the workers: each finishes the image it is making; after one second they are killed."""
    for worker in workers:
        with contextlib.suppress(OSError):
            worker.stdin.close()
    deadline = time.monotonic() + 1
    for worker in workers:
        try:
            worker.wait(max(0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def _run_workers(shares: list[list[int]], folder: Path, seed: int, descriptors, report: Callable[[str, int], None]):
    """Start one worker per share of image numbers, and `report` each image ("made" or "there", bytes)."""
    workers: list[subprocess.Popen] = []
    read_end, write_end = os.pipe()
    with open(read_end, encoding="utf-8") as lines, open(write_end, "wb") as answers, contextlib.ExitStack() as stack:
        stack.callback(_stop, workers)
        for numbers in shares:
            job = {"folder": str(folder.absolute()), "seed": seed, "numbers": numbers}
            workers.append(_start_worker(job, answers, descriptors))
        answers.close()  # only the workers hold it now: the lines end when the last worker does
        for line in lines:
            outcome, *details = json.loads(line)
            if outcome == "error":
                number, text, path = details
                text += "; the finished images are kept, and the same command goes on from there"
                raise OSError(number, text, path) if number else RuntimeError(f"{path}: {text}")
            report(outcome, details[0])
        codes = [worker.wait() for worker in workers]
    if any(codes):
        raise RuntimeError(f"workers ended early (exit codes {codes}); the same command goes on from there")


# ---- The whole run ---------------------------------------------------------------------------------------------------


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _progress(count: int, already: int, shown: bool) -> Iterator[Callable[[], None]]:
    """Yields what is to be called after each image: a bar in a terminal, else ten lines at most."""
    if shown and sys.stderr.isatty():
        with tqdm(total=count, initial=already, unit=" images", file=sys.stderr) as bar:
            yield bar.update
        return
    done = already

    def step() -> None:
        nonlocal done
        done += 1
        if shown and done * 10 // count > (done - 1) * 10 // count:
            print(f"{done:,} of {count:,} images", file=sys.stderr, flush=True)

    yield step


def _check_arguments(count: int, folder: Path, seed: int, workers: int) -> None:
    """Raise ValueError, in one line, for what cannot be."""
    if not 1 <= count <= MAX_COUNT:
        raise ValueError(f"count is {count:,}; it must be between 1 and {MAX_COUNT:,}")
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must be 0 or more")
    if workers < 1:
        raise ValueError(f"workers is {workers}; it must be 1 or more")
    for place in (folder, *folder.parents):
        if place.exists():
            if not place.is_dir():
                raise ValueError(f"{place} is a file; the images need a folder")
            break


def make_images(
    count: int, folder: str | Path, *, seed: int = 0, workers: int | None = None, progress: bool = True
) -> int:
    """Make those of the images 0 ... count - 1 that are not in the folder yet.

    Interrupted at any moment, it can be called again and goes on; two calls at once on one folder share the work.

    Parameters
    ----------
    count : int
        Number of images that the folder holds in the end, at least.
    folder : str or Path
        Where the ten class folders are; made when missing.
    seed : int
        Another seed gives other images; one folder holds the images of one seed.
    workers : int, optional
        Number of processes; one per usable core by default. It does not change the images.
    progress : bool
        Print the expected size, the progress and a summary.

    Returns
    -------
    int
        Number of images newly made by this call.

    Raises
    ------
    ValueError
        An argument cannot be.
    MixedImagesError
        The folder holds images of another seed, format version or origin.
    OSError
        The disk is full or about to be (``errno.ENOSPC``), or a file cannot be written.
    RuntimeError
        A worker process died.
    """
    folder, workers = Path(folder), _usable_cores() if workers is None else workers
    _check_arguments(count, folder, seed, workers)
    start_s = time.monotonic()
    _check_record(folder, seed)
    missing, total_bytes = _scan(folder, count)
    already, made = count - len(missing), 0
    if progress:
        there = f"; {already:,} are there already" if already else ""
        print(f"{count:,} images, about {count * MEAN_KB / 1e3:,.0f} MB, in {folder}{there}", flush=True)
    _check_room(folder, len(missing))
    with _joined(folder, seed) as (alone, descriptors), _progress(count, already, progress) as step:

        def report(outcome: str, size: int) -> None:
            nonlocal made, total_bytes
            made, total_bytes = made + (outcome == "made"), total_bytes + size
            step()

        if not alone:
            missing.reverse()  # two runs that start from both ends do not make the same images twice
        shares = [share for k in range(workers) if (share := missing[k::workers])]
        _run_workers(shares, folder, seed, descriptors, report)
    if progress:
        seconds = time.monotonic() - start_s
        print(f"{made:,} images made, {count - made:,} were there: {total_bytes / 1e6:,.1f} MB, {seconds:.1f} s")
    return made


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message}; see --help\n")


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = _OneLineParser(description="Make photograph-like JPEG images in ten class folders.")
    parser.add_argument("--count", type=int, metavar="N", help="images in all (default: COURSE_IMAGES, or 2000)")
    default = _PROJECT_ROOT / "data" / "generated"
    text = "folder for the class folders (default: data/generated of the project)"
    parser.add_argument("--to", type=Path, metavar="DIR", default=default, help=text)
    parser.add_argument("--seed", type=int, metavar="S", default=0, help="another seed gives other images (default: 0)")
    parser.add_argument("--workers", type=int, metavar="W", help="processes (default: one per usable core)")
    options = parser.parse_args(arguments)
    if options.count is None:
        wish = os.environ.get("COURSE_IMAGES") or "2000"
        if not wish.isdecimal():
            parser.error(f"the environment variable COURSE_IMAGES is {wish!r}, not a number of images")
        options.count = int(wish)
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 no room or failed, 2 refused, 130 stopped by Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments == [_AS_WORKER]:
        return _work()
    options = _parse(arguments)
    try:
        make_images(options.count, options.to, seed=options.seed, workers=options.workers)
        return 0
    except KeyboardInterrupt:
        message, code = "stopped; the finished images are kept, and the same command goes on from there", 130
    except (ValueError, MixedImagesError) as error:
        message, code = str(error), 2
    except OSError as error:
        message, code = f"{error.filename}: {error.strerror}" if error.filename else error.strerror, 1
    except RuntimeError as error:
        message, code = str(error), 1
    print(f"make_images.py: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
