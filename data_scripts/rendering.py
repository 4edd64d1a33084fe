"""Draw one picture and write its file: a ground under a lamp, things of no class, and one thing that gives the class.

Sometimes a blurred room is behind. Sizes, JPEG qualities and bytes per file are like those of COCO
(https://cocodataset.org). The bytes are the same on one machine; another version of NumPy or OpenCV may round a pixel
differently.
"""

import dataclasses
import math
import os
import secrets
from pathlib import Path

import cv2
import numpy as np
from noise import GROUNDS, Plane, hsv, mix, muted, scrap, step
from subjects import BYSTANDERS, CLASS_NAMES, CLASSES, Box, Thing, egg_half_width

__all__ = ["CLASS_NAMES", "SIZES", "complete_bytes", "encoded_image", "make_image"]

# width px, height px, share of the images
SIZES = ((640, 480, 0.62), (480, 640, 0.12), (640, 427, 0.12), (427, 640, 0.05), (500, 375, 0.06), (612, 612, 0.03))
JPEG_QUALITIES = (92, 93, 94, 95)


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


def _make_ground(rng: np.random.Generator, scene: _Scene) -> np.ndarray:
    """The lit ground, (3, height, width) float32."""
    plane = Plane(rng, scene)
    albedo, relief = GROUNDS[rng.integers(len(GROUNDS))](rng, plane, scene.short_px)
    lamp_x, lamp_y, lamp_z = (float(part) for part in scene.lamp)
    dx, dy = (cv2.Sobel(relief, cv2.CV_32F, *axis, ksize=1) for axis in ((1, 0), (0, 1)))
    lit = np.clip(lamp_z - 0.3 * (dx * lamp_x + dy * lamp_y), 0.02, 1.8) * (0.75 / max(lamp_z, 0.4))
    if rng.random() < 0.5:  # something out of view, a tree or a curtain, stands before the lamp
        lit *= 1 - rng.uniform(0.3, 0.8) * step(-0.6, 0.9, plane.noise("shade", 1.1, 1.1))
    light = scene.lamp_colour * lit
    light += scene.ambient_colour
    light *= albedo
    return light


def _add_backdrop(rng: np.random.Generator, scene: _Scene, image: np.ndarray) -> None:
    """Put a room far behind over the rows above the horizon: painted small, blurred, enlarged."""
    width, height = scene.width_px // 4, scene.height_px // 4
    top, bottom = muted(rng, (0.25, 0.9)), muted(rng, (0.2, 0.7))
    wall = mix(top, bottom, np.linspace(0, 1, height, dtype=np.float32)[:, None]) + np.zeros((width,), np.float32)
    room = np.ascontiguousarray(wall.transpose(1, 2, 0))
    for _ in range(rng.integers(3, 14)):
        colour = hsv(rng.uniform(0, 360), rng.uniform(0.05, 0.5), rng.uniform(0.1, 0.9))
        colour = (colour if rng.random() < 0.3 else muted(rng, (0.1, 0.95))).ravel().tolist()
        x, y = int(rng.uniform(-0.2, 1) * width), int(rng.uniform(0.1, 1) * height)
        if rng.random() < 0.65:
            corner = (x + int(rng.uniform(0.04, 0.35) * width), y - int(rng.uniform(0.1, 0.9) * height))
            cv2.rectangle(room, (x, y), corner, colour, cv2.FILLED)
        else:
            cv2.circle(room, (x, y), int(rng.uniform(0.02, 0.14) * width), colour, cv2.FILLED)
    for _ in range(rng.integers(0, 12)):  # distant lamps: bright discs of a lens out of focus
        colour = (hsv(rng.uniform(20, 60), rng.uniform(0, 0.4), 1) * rng.uniform(0.6, 1.6)).ravel().tolist()
        spot = (int(rng.integers(width)), int(rng.integers(height)))
        cv2.circle(room, spot, int(rng.integers(2, 5)), colour, cv2.FILLED, cv2.LINE_AA)
    room = cv2.GaussianBlur(room, (0, 0), rng.uniform(1.2, 5))
    rows = min(scene.height_px, int(scene.horizon_px) + 24)
    room = cv2.resize(room, (scene.width_px, scene.height_px), interpolation=cv2.INTER_LINEAR)[:rows]
    lean = rng.uniform(-0.04, 0.04) * (np.arange(scene.width_px, dtype=np.float32) - scene.width_px / 2)
    is_ground = step(-2.5, 2.5, np.arange(rows, dtype=np.float32)[:, None] - scene.horizon_px - lean)
    image[:, :rows] = mix(room.transpose(2, 0, 1), image[:, :rows], is_ground)


def _blur_far_rows(rng: np.random.Generator, scene: _Scene, image: np.ndarray) -> None:
    """Depth of field: the lens is focused on the near part of the ground."""
    near_px, far_px = rng.uniform(0.35, 0.6) * scene.height_px, max(scene.horizon_px, -0.3 * scene.height_px)
    rows, sigma_px = math.ceil(near_px), rng.uniform(1, 3)
    blurred = 1 - step(far_px, near_px, np.arange(rows, dtype=np.float32)[:, None])
    for channel in image[:, :rows]:
        half = cv2.resize(channel, (scene.width_px // 2, rows // 2), interpolation=cv2.INTER_AREA)
        soft = cv2.resize(cv2.GaussianBlur(half, (0, 0), sigma_px), (scene.width_px, rows))
        channel += (soft - channel) * blurred


# ---- Things on the ground --------------------------------------------------------------------------------------------


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
        shine = step(0.94, 0.98, mirrored) + 0.18 * np.clip(mirrored, 0, 1) ** 12
        rim = 0.25 * np.clip(1 - nz, 0, 1) ** 3 * facing_up
        light += scene.lamp_colour * (gloss * (shine + rim))
    return light


def _weathered(rng: np.random.Generator, albedo: np.ndarray, amount: float) -> np.ndarray:
    shape = albedo.shape[1:]
    return albedo * (1 + amount * (scrap(rng, "cloud", shape) + 0.5 * scrap(rng, "rough", shape)))


def _paste(image, window, colour, coverage: np.ndarray) -> None:
    part = image[:, window[0], window[1]]
    alpha = cv2.GaussianBlur(coverage, (0, 0), 0.6).astype(np.float32) / 255  # no edge is sharper than the lens
    part += (colour - part) * alpha


def _ground_colour(scene: _Scene, image: np.ndarray, x_px: float, y_px: float) -> np.ndarray:
    x, y = min(scene.width_px - 1, max(0, int(x_px))), min(scene.height_px - 1, max(0, int(y_px)))
    return image[:, y, x].reshape(3, 1, 1).copy()


def _rise(body: str, thing: Thing, u, v, coverage, spot: _Spot) -> np.ndarray:
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


def _shadows_of(rng, scene: _Scene, image, thing: Thing, spot: _Spot, polygons) -> None:
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


def _add_thing(rng: np.random.Generator, scene: _Scene, image: np.ndarray, thing: Thing) -> None:
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
        v = v / egg_half_width(u)
    coverage = _fill(polygons, u.shape, (columns.start, rows.start))
    rise = _rise(thing.body, thing, u, v, coverage, spot).astype(np.float32)
    albedo, relief_px = thing.paint(rng, u, v, rise)
    height_px = rise * (spot.radius_px * (thing.lift if is_tall else 1)) + relief_px
    normal = _normals(height_px.astype(np.float32))
    colour = _shade(scene, _weathered(rng, albedo, 0.06), normal, thing.gloss, ground)
    _paste(image, window, colour, coverage)


# ---- Boxes -----------------------------------------------------------------------------------------------------------


def _face(rng, scene, image, box: Box, corner, edges, radius_px: float, normal, ground) -> None:
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
    dx, dy, _ = _normals(0.25 * scrap(rng, "rough", a.shape))
    tilted = (dx + np.float32(normal[0]), dy + np.float32(normal[1]), np.full(a.shape, normal[2], np.float32))
    colour = _shade(scene, _weathered(rng, albedo, 0.07), tilted, box.gloss, ground)
    _paste(image, window, colour, _fill([quad], a.shape, (columns.start, rows.start)))


def _add_box(rng: np.random.Generator, scene: _Scene, image: np.ndarray, box: Box) -> None:
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
    image += rng.uniform(1.0, 3.2) * scrap(rng, "grain", image.shape[1:])
    np.clip(image, 0, 255, out=image)
    return cv2.merge([channel.astype(np.uint8) for channel in image[::-1]])


def _render(rng: np.random.Generator, label: int) -> np.ndarray:
    """A scene with one thing of the class `label`; (height, width, 3) uint8 BGR."""
    scene = _make_scene(rng)
    image = _make_ground(rng, scene)
    for _ in range(rng.choice(4, p=(0.35, 0.3, 0.2, 0.15))):
        _add_thing(rng, scene, image, BYSTANDERS[rng.integers(len(BYSTANDERS))](rng))
    if scene.horizon_px > 0:
        _add_backdrop(rng, scene, image)
    if scene.squash < 0.9:
        _blur_far_rows(rng, scene, image)
    thing = CLASSES[CLASS_NAMES[label]](rng)
    add = _add_box if isinstance(thing, Box) else _add_thing
    add(rng, scene, image, thing)
    return _expose(rng, scene, image)


def encoded_image(seed: int, number: int) -> bytes:
    """The JPEG file of image `number`; the same bytes for the same seed and number."""
    rng = np.random.default_rng((seed, number))
    image = _render(rng, number % len(CLASS_NAMES))
    quality = int(rng.choice(JPEG_QUALITIES))
    return cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, quality))[1].tobytes()


# ---- Its file --------------------------------------------------------------------------------------------------------


def complete_bytes(path: Path) -> int:
    """Return the size of a JPEG file that has both its start and its end marker, in bytes; 0 for any other."""
    try:
        with open(path, "rb") as file:
            starts = file.read(2) == b"\xff\xd8"
            file.seek(-2, os.SEEK_END)
            return file.tell() + 2 if starts and file.read() == b"\xff\xd9" else 0
    except OSError:  # among others: nothing to seek in an empty file
        return 0


def make_image(path: Path, seed: int, number: int) -> tuple[bool, int]:
    """Make the file of image `number` where it is missing.

    No fsync: it would cost more than the image. A file that a power cut has emptied is found by `complete_bytes`.

    Returns
    -------
    bool
        Whether it was missing.
    int
        Its size in bytes.
    """
    if size := complete_bytes(path):  # another run on this folder was quicker
        return False, size
    content = encoded_image(seed, number)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(unfinished, "xb") as file:
            file.write(content)
        os.replace(unfinished, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        unfinished.unlink(missing_ok=True)
    return True, len(content)
