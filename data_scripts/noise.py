"""Noise, colours and grounds: what the pictures of `make_images.py` are made of."""

import colorsys
import functools
import math

import cv2
import numpy as np

__all__ = ["GROUNDS", "Plane", "hsv", "mix", "muted", "noise_tiles", "scrap", "step"]


# ---- Noise -----------------------------------------------------------------------------------------------------------
# Natural images have amplitude spectra near 1/f (Field 1987, https://doi.org/10.1364/JOSAA.4.002379). Tiles with such
# spectra are made once per process; a scene looks them up at its own places, scales and directions, which is some
# ten times quicker than making new noise for every image. Tiles repeat without a seam.

TILE_PX = 1024
_SLOPES = {"shade": 2.6, "smooth": 1.7, "cloud": 1.15, "rough": 0.6}
_LOOKUP = {"flags": cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, "borderMode": cv2.BORDER_WRAP}


def _spectral_tile(rng: np.random.Generator, slope: float) -> np.ndarray:
    """Noise of unit variance whose amplitude falls as 1 / f ** slope."""
    frequency = np.hypot(np.fft.fftfreq(TILE_PX)[:, None], np.fft.rfftfreq(TILE_PX)[None, :])
    spectrum = np.fft.rfft2(rng.standard_normal((TILE_PX, TILE_PX)))
    # Waves longer than a third of the tile would only make one image brighter than another.
    spectrum = np.where(frequency < 3 / TILE_PX, 0, spectrum / np.maximum(frequency, 1e-6) ** slope)
    tile = np.fft.irfft2(spectrum, s=(TILE_PX, TILE_PX))
    return (tile / tile.std()).astype(np.float32)


def _cell_tiles(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Height and tone of pebbles: the cells around points of a jittered grid (a Voronoi diagram)."""
    step_px, border_px = 16, 64
    rows, columns = np.meshgrid(*2 * [np.arange(0, TILE_PX, step_px)], indexing="ij")
    away = np.full((TILE_PX, TILE_PX), 255, np.uint8)
    jitter = rng.integers(0, step_px, (2, *rows.shape))
    away[rows + jitter[0], columns + jitter[1]] = 0
    padded = np.pad(away, border_px, mode="wrap")
    distance, label = cv2.distanceTransformWithLabels(padded, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    inner = (slice(border_px, -border_px),) * 2
    height = np.sqrt(np.maximum(0, 1 - (distance[inner] / (0.75 * step_px)) ** 2))
    tone = rng.random(int(label.max()) + 1)[label[inner]]
    return height.astype(np.float32), tone.astype(np.float32)


@functools.lru_cache(maxsize=1)
def noise_tiles() -> dict[str, np.ndarray]:
    """The noise tiles by name, each (1024, 1024) float32; `grain` is (3, 1024, 1024)."""
    rng = np.random.default_rng(1987)  # the same tiles for every image, whatever its seed
    tiles = {name: _spectral_tile(rng, slope) for name, slope in _SLOPES.items()}
    tiles["cell_height"], tiles["cell_tone"] = _cell_tiles(rng)
    # A sensor's noise is a little blurred, and partly the same in all three colours, by the camera's demosaicing.
    colours = [cv2.GaussianBlur(rng.standard_normal((TILE_PX,) * 2, dtype=np.float32), (0, 0), 0.55) for _ in range(4)]
    colours = [colour / colour.std() for colour in colours]
    tiles["grain"] = np.stack([0.45 * colour + 0.75 * colours[3] for colour in colours[:3]])
    return tiles


def scrap(rng: np.random.Generator, name: str, shape: tuple[int, int]) -> np.ndarray:
    """A piece of a noise tile from a random place, (height, width) float32; a view, not to be written to."""
    y, x = (int(rng.integers(TILE_PX - side_px + 1)) for side_px in shape)
    return noise_tiles()[name][..., y : y + shape[0], x : x + shape[1]]


# ---- Colours: linear light, RGB, channels first ----------------------------------------------------------------------
# Light adds up in linear values only. With channels first, a (height, width) field broadcasts without an index, and
# NumPy works on contiguous rows: three times as quick as with channels last.


def hsv(hue_deg: float, saturation: float, value: float) -> np.ndarray:
    """A colour (3, 1, 1) float32 in linear light."""
    return np.array(colorsys.hsv_to_rgb(hue_deg % 360 / 360, saturation, value), np.float32).reshape(3, 1, 1) ** 2


def muted(rng: np.random.Generator, values=(0.3, 0.8), saturations=(0.03, 0.3)) -> np.ndarray:
    """A colour of walls, stones and cloths: mostly brownish or bluish, never strong."""
    hue_deg = float(rng.choice((25, 30, 35, 45, 90, 200, 210))) + rng.uniform(-12, 12)
    return hsv(hue_deg, rng.uniform(*saturations), rng.uniform(*values))


def mix(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    """`first` where `share` is 0, `second` where it is 1."""
    return first + (second - first) * share


def step(low: float, high: float, x: np.ndarray) -> np.ndarray:
    """A smooth step from 0 (x <= low) to 1 (x >= high)."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


# ---- The ground ------------------------------------------------------------------------------------------------------


class Plane:
    """The ground in perspective: coordinates `u`, `v` of each pixel, and noise that lies on it."""

    def __init__(self, rng: np.random.Generator, scene):
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
        return self._rng.uniform(0, TILE_PX), self._rng.uniform(0, TILE_PX)

    def noise(self, name: str, scale_u=1.0, scale_v=1.0, place=None) -> np.ndarray:
        """Noise (height, width) float32; a scale below 1 stretches it."""
        du, dv = place or self.place()
        matrix = np.array(((scale_u, 0, du), (0, scale_v, dv), (0, 0, 1))) @ self._matrix
        return cv2.warpPerspective(noise_tiles()[name], matrix, self._size, **_LOOKUP)


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
    dark, light = hsv(hue_deg, saturation + 0.15, value * 0.55), hsv(hue_deg + 4, saturation, value)
    return mix(dark, light, tone), 1.2 * fibre - 6 * gap


def _cloth(rng, plane, short_px):
    wave_number, folds = 2 * math.pi / rng.uniform(3, 6.5), plane.noise("smooth", 0.5, 0.5)
    fuzz = plane.noise("rough")
    weave = np.sin(wave_number * plane.u + 3 * folds) * np.sin(wave_number * plane.v + 3 * folds)
    light = muted(rng, (0.4, 0.9), (0.02, 0.4))
    tone = np.clip(0.6 + 0.16 * weave + 0.14 * fuzz, 0, 1.3)
    return mix(light * rng.uniform(0.35, 0.6), light, tone), 0.5 * weave + rng.uniform(2, 14) * folds + 0.4 * fuzz


def _stone(rng, plane, short_px):
    cloud, rough = plane.noise("cloud"), plane.noise("rough")
    specks = np.clip(plane.noise("rough", 1.7, 1.7) - 1.7, 0, 1)
    tone = np.clip(0.5 + 0.2 * cloud + 0.12 * rough - 0.5 * specks, 0, 1.2)
    light = muted(rng, (0.5, 0.9), (0.02, 0.25))
    return mix(light * rng.uniform(0.2, 0.5), light, tone), rng.uniform(0.2, 1.1) * (cloud + rough)


def _marble(rng, plane, short_px):
    veins = 1 / (1 + (8 * plane.noise("cloud", 0.5, 0.8) + 2 * plane.noise("smooth", 0.4, 0.4)) ** 2)
    rough = plane.noise("rough")
    tone = np.clip(0.75 - 0.7 * veins + 0.12 * plane.noise("cloud") + 0.06 * rough, 0, 1.1)
    light = muted(rng, (0.7, 0.95), (0.01, 0.12))
    return mix(light * muted(rng, (0.4, 0.6), (0.1, 0.3)), light, tone), 0.3 * rough


def _gravel(rng, plane, short_px):
    scale, place = rng.uniform(0.3, 1.2), plane.place()
    height = plane.noise("cell_height", scale, scale, place)
    tone = np.clip(0.15 + 0.75 * plane.noise("cell_tone", scale, scale, place), 0, 1) * (0.35 + 0.65 * height)
    light = muted(rng, (0.6, 0.9), (0.05, 0.3))
    tone = np.clip(tone + 0.1 * plane.noise("rough"), 0, 1.2)
    return mix(light * 0.08, light, tone), 3.5 * height / scale


def _lawn(rng, plane, short_px):
    blades = plane.noise("rough", 0.9, 0.14) + 0.35 * plane.noise("smooth", 0.8, 0.8)
    across = plane.noise("rough", 0.2, 0.8)
    tone = np.clip(0.42 + 0.24 * blades + 0.17 * across + 0.1 * plane.noise("cloud", 0.4, 0.4), 0, 1.2)
    hue_deg, saturation = rng.uniform(60, 95), rng.uniform(0.25, 0.5)
    light = hsv(hue_deg - 8, saturation, rng.uniform(0.5, 0.75))
    return mix(hsv(hue_deg + 12, saturation + 0.2, 0.16), light, tone), 2.2 * blades


def _sand(rng, plane, short_px):
    grains = plane.noise("rough", 1.5, 1.5)
    tone = np.clip(0.6 + 0.15 * grains + 0.1 * plane.noise("cloud"), 0, 1.2)
    light = hsv(rng.uniform(28, 44), rng.uniform(0.15, 0.4), rng.uniform(0.6, 0.9))
    return mix(light * 0.4, light, tone), rng.uniform(3, 9) * plane.noise("smooth", 0.4, 1.6) + 0.8 * grains


def _floor_tiles(rng, plane, short_px):
    side_px = short_px * rng.uniform(0.18, 0.45)
    row, column = plane.v / side_px, plane.u / side_px
    i, j = np.floor(row), np.floor(column)
    edge = np.maximum(np.abs(row - i - 0.5), np.abs(column - j - 0.5))
    grout = np.clip(((edge - 0.5) * side_px + 3) / 1.5, 0, 1)
    rough = plane.noise("rough")
    tone = 0.65 + rng.uniform(-0.15, 0.15, 97).astype(np.float32)[(i * 31 + j * 17).astype(np.int32) % 97]
    light = muted(rng, (0.5, 0.9), (0.05, 0.4))
    glazed = mix(light * 0.4, light, np.clip(tone + 0.12 * plane.noise("cloud") + 0.06 * rough, 0, 1.2))
    return mix(glazed, muted(rng, (0.3, 0.7), (0.02, 0.1)), 0.8 * grout), 0.4 * rough - 4 * grout


GROUNDS = (_wood, _wood, _cloth, _cloth, _stone, _marble, _gravel, _lawn, _sand, _floor_tiles)
