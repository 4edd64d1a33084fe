"""The settings of a style's training: a small YAML file, checked before anything is computed.

Called by `command`, `training` and lesson 09. ``styles/`` has the course's own.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
from msgspec import Meta

from helpers.files import printable, write_whole

__all__ = ["StyleSettings", "load_settings", "save_settings"]

Pixels = Annotated[int, Meta(ge=16, le=4096)]
Weight = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=1, le=10**9)]


class StyleSettings(msgspec.Struct, frozen=True):
    """What a training depends on.

    Attributes
    ----------
    style_image : str
        The picture whose style is learned; in a file, relative to that file.
    style_size : int
        Its shorter side as the losses see it, in pixels. Strokes of the painting become as large in the results as they
        are at this size.
    image_size : int
        Sides of the training images, in pixels.
    width : int
        Filters of the network's first convolution.
    features : {"auto", "imagenet", "random"}
        Weights of VGG16; auto takes imagenet where Keras has the file already.
    content_weight, style_weight, variation_weight : float
        What each loss counts in the total.
    learning_rate : float
        Of Adam.
    batch_size, steps : int
        Images for each step, and number of steps.
    save_every : int
        Steps between checkpoints.
    seed : int
        Of the network's first weights and of the images' order.
    """

    style_image: Annotated[str, Meta(min_length=1)]
    style_size: Pixels = 96
    image_size: Pixels = 64
    width: Annotated[int, Meta(ge=1, le=512)] = 16
    features: Literal["auto", "imagenet", "random"] = "auto"
    content_weight: Weight = 1.0
    style_weight: Weight = 2.0
    variation_weight: Weight = 0.1
    learning_rate: Annotated[float, Meta(ge=1e-9, le=1)] = 0.001
    batch_size: Annotated[int, Meta(ge=1, le=1024)] = 4
    steps: Count = 500
    save_every: Count = 100
    seed: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0

    def changed(self, assignments: Iterable[str]) -> StyleSettings:
        """Return the settings with each ``name=value`` put in place.

        Raises
        ------
        ValueError
            If one is no assignment, there is no such setting, or the value cannot be.
        """
        values = msgspec.structs.asdict(self)
        for assignment in assignments:
            name, sign, text = assignment.partition("=")
            if not sign:
                raise ValueError(f"{assignment!r}: write name=value")
            values[name.strip()] = text.strip()
        return _checked(values)


def _checked(values: dict[Any, object]) -> StyleSettings:
    """Return settings, numbers also from texts such as 1e-3; raise ValueError that says what a value should be."""
    kinds, checked = get_type_hints(StyleSettings, include_extras=True), {}
    for name, value in values.items():
        if name not in kinds:
            near = difflib.get_close_matches(str(name), kinds, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(kinds)}"
            raise ValueError(f"no setting is called {name!r}; {hint}")
        try:
            checked[name] = msgspec.convert(value, kinds[name], strict=False)
        except msgspec.ValidationError:
            raise ValueError(f"{name} is {value!r}: give {_wanted(kinds[name])}") from None
    return StyleSettings(**checked)


def _wanted(kind: object) -> str:
    match msgspec.inspect.type_info(kind):
        case msgspec.inspect.LiteralType(values=values):
            return f"one of {', '.join(values)}"
        case msgspec.inspect.IntType(ge=least, le=most):
            return f"a whole number from {least:g} to {most:g}"
        case msgspec.inspect.FloatType(ge=least, le=most):
            return f"a number from {least:g} " + (f"to {most:g}" if most else "up")
    return "a text"


def load_settings(path: str | os.PathLike) -> StyleSettings:
    """Read a YAML file of settings; those left out have their defaults.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no YAML, names an unknown setting, or gives a value that cannot be; the message names the file.
    """
    path = Path(path)
    try:
        values = msgspec.yaml.decode(path.read_bytes())
        if not isinstance(values, dict) or "style_image" not in values:
            raise ValueError("no settings; a file has lines such as style_image: picture.png")
        settings = _checked(values)
    except FileNotFoundError:
        raise FileNotFoundError(f"{printable(path)}: no such file of settings; styles/ has examples") from None
    except msgspec.DecodeError as error:
        raise ValueError(f"{printable(path)}: no YAML: {' '.join(str(error).split())}") from None
    except ValueError as error:
        raise ValueError(f"{printable(path)}: {error}") from None
    return msgspec.structs.replace(settings, style_image=os.path.normpath(path.parent / settings.style_image))


def save_settings(settings: StyleSettings, path: str | os.PathLike) -> None:
    """Write settings to a YAML file, `style_image` as it stands."""
    write_whole(path, msgspec.yaml.encode(settings))
