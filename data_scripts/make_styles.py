"""Make the pictures whose style lesson 10 learns: strokes, mosaic, waves, hatching, each by its own few rules.

    python data_scripts/make_styles.py [--to DIR] [--size PX]

They are drawn from a fixed seed and belong to nobody. A picture is a square PNG, 512 pixels wide unless asked
otherwise. Called by lesson 10; ``python -m helpers.style`` learns from them or from any other picture.
"""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback of the imports, which take a second

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from endings import run_command

from helpers.files import ExitStatus, printable, tolerant_streams
from helpers.style.pictures import save_picture

__all__ = ["STYLES", "make_styles"]

SEED = 1707
DEFAULT_SIZE_PX = 512
MIN_SIZE_PX, MAX_SIZE_PX = 64, 4096
DEFAULT_FOLDER = Path(__file__).resolve().parents[1] / "data" / "styles"

# RGB, the darkest first
_PAINT = ((22, 38, 92), (30, 84, 150), (78, 150, 190), (240, 196, 60), (226, 120, 40), (250, 236, 190))
_STONES = ((150, 40, 30), (200, 90, 40), (230, 190, 110), (40, 90, 100), (110, 160, 140), (240, 230, 210))
_SEA = ((10, 40, 80), (20, 90, 140), (60, 160, 180), (150, 210, 210), (245, 240, 225), (220, 110, 80))


def _field(rng: np.random.Generator, size: int, scale_px: float) -> np.ndarray:
    """Smooth noise between 0 and 1, (size, size) float32; hills are about `scale_px` wide."""
    noise = rng.standard_normal((size, size)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), scale_px / 2, borderType=cv2.BORDER_REFLECT)
    low, high = np.percentile(smooth, (1, 99))
    return np.clip((smooth - low) / (high - low), 0, 1)


def strokes(rng: np.random.Generator, size: int) -> np.ndarray:
    """Short strokes of thick paint, laid along a flow; each has bristles that differ in tone."""
    tone, angle = _field(rng, size, size / 4), 2 * np.pi * _field(rng, size, size / 2)
    canvas = np.full((size, size, 3), _PAINT[0], np.uint8)
    for _ in range(6000):
        x, y = rng.integers(0, size, 2)
        shade = tone[y, x] * len(_PAINT) + rng.normal(0, 0.7)
        colour = np.array(_PAINT[int(np.clip(shade, 0, len(_PAINT) - 1))], float)
        along = np.array([np.cos(angle[y, x]), np.sin(angle[y, x])])
        across = np.array([-along[1], along[0]])
        half = along * size * rng.uniform(0.02, 0.045)
        for bristle in range(-2, 3):
            middle = np.array([x, y]) + across * bristle * size / 200
            ends = [tuple(np.rint(middle + sign * half).astype(int).tolist()) for sign in (-1, 1)]
            own = np.clip(colour + rng.normal(0, 22), 0, 255).tolist()
            cv2.line(canvas, *ends, own, max(size // 170, 1), cv2.LINE_AA)
    return canvas


def mosaic(rng: np.random.Generator, size: int) -> np.ndarray:
    """Stones of plain colour with dark joints: the cells around the points of a jittered grid."""
    step = size / 26
    rows, columns = np.meshgrid(*2 * [np.arange(-1, 28)], indexing="ij")
    points = (np.stack([rows, columns], -1).reshape(-1, 2) + rng.uniform(0, 0.75, (rows.size, 2))) * step
    tone = _field(rng, size, size / 5)
    places = np.clip(points, 0, size - 1).astype(int)
    shades = tone[places[:, 0], places[:, 1]] * len(_STONES) + rng.normal(0, 0.9, len(points))
    colours = np.array(_STONES, float)[np.clip(shades, 0, len(_STONES) - 1).astype(int)]
    colours += rng.normal(0, 12, colours.shape)
    grid = np.arange(size, dtype=np.float32)
    nearest = np.full((size, size), np.inf, np.float32)
    second, owner = nearest.copy(), np.zeros((size, size), int)
    for number, (y, x) in enumerate(points.astype(np.float32)):
        distance = np.hypot(grid[:, None] - y, grid[None] - x)
        closer = distance < nearest
        second = np.where(closer, nearest, np.minimum(second, distance))
        owner[closer], nearest = number, np.where(closer, distance, nearest)
    stone = np.clip((second - nearest) / (0.16 * step), 0, 1)[..., None]
    return np.clip(colours[owner] * stone + np.array((38, 32, 30)) * (1 - stone), 0, 255).astype(np.uint8)


def waves(rng: np.random.Generator, size: int) -> np.ndarray:
    """Bands of flat colour with bright crests, bent by slow noise."""
    bend = 2.2 * _field(rng, size, size / 3) + 0.6 * _field(rng, size, size / 10)
    rows = np.arange(size, dtype=np.float32)[:, None] / size
    phase = 15 * (rows + 0.22 * bend)
    band = np.floor(phase).astype(int) * 5 % len(_SEA)
    within = phase - np.floor(phase)
    colours = np.array(_SEA, float)[band] * (0.75 + 0.35 * within[..., None])
    colours[within < 0.14] = (250, 248, 238)
    colours[within > 0.93] = (8, 22, 48)
    return np.clip(cv2.GaussianBlur(colours, (0, 0), size / 640), 0, 255).astype(np.uint8)


def hatching(rng: np.random.Generator, size: int) -> np.ndarray:
    """Ink lines in three directions on paper; the darker the place, the more of them cross."""
    tone = _field(rng, size, size / 5)
    canvas = np.full((size, size, 3), (244, 236, 214), np.uint8)
    for layer, (degrees, threshold) in enumerate(((35, 0.8), (125, 0.5), (80, 0.25))):
        along = np.array([np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))])
        ink = ((28, 26, 44), (60, 34, 30), (20, 40, 70))[layer]
        for _ in range(2600):
            middle = rng.uniform(0, size, 2)
            x, y = middle.astype(int)
            if tone[y, x] > threshold:
                continue
            half = along * size * rng.uniform(0.015, 0.04)
            ends = [
                tuple(np.rint(middle + sign * half + rng.normal(0, size / 500, 2)).astype(int).tolist())
                for sign in (-1, 1)
            ]
            cv2.line(canvas, *ends, ink, max(size // 320, 1), cv2.LINE_AA)
    return canvas


STYLES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "strokes": strokes,
    "mosaic": mosaic,
    "waves": waves,
    "hatching": hatching,
}


def make_styles(folder: str | Path, *, size: int = DEFAULT_SIZE_PX) -> list[Path]:
    """Write the pictures that are not in the folder yet, and return the paths of all.

    Parameters
    ----------
    folder : path
        Made when missing; a picture is ``<folder>/<name>.png``.
    size : int
        Sides in pixels. What is there already keeps its size.

    Raises
    ------
    ValueError
        If the size cannot be.
    OSError
        If a picture cannot be written.
    """
    if not MIN_SIZE_PX <= size <= MAX_SIZE_PX:
        raise ValueError(f"size is {size}; it must be between {MIN_SIZE_PX} and {MAX_SIZE_PX}")
    paths = [Path(folder) / f"{name}.png" for name in STYLES]
    for number, (path, draw) in enumerate(zip(paths, STYLES.values(), strict=True)):
        if not path.exists():
            save_picture(draw(np.random.default_rng((SEED, number)), size), path)
    return paths


def main(arguments: list[str] | None = None) -> ExitStatus:
    """Run the command line."""
    tolerant_streams()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, metavar="DIR", default=DEFAULT_FOLDER, help="default: data/styles")
    parser.add_argument("--size", type=int, metavar="PX", default=DEFAULT_SIZE_PX, help="sides (default: 512)")
    options = parser.parse_args(arguments)
    try:
        paths = make_styles(options.to, size=options.size)
    except (ValueError, OSError) as error:
        print(f"make_styles.py: {printable(str(error))}", file=sys.stderr)
        return ExitStatus.CANNOT
    print(f"{', '.join(path.stem for path in paths)}: in {printable(options.to)}")
    return ExitStatus.FINE


if __name__ == "__main__":
    sys.exit(run_command(main))
