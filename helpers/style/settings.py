"""The settings of a style's training: a small YAML file, checked before anything is computed.

Called by `command`, `training` and lesson 10. ``styles/`` has the course's own.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import yaml
from msgspec import Meta

from helpers.files import printable, write_whole

__all__ = ["StyleSettings", "load_settings", "save_settings", "shortened"]

MAX_BYTES = 2**16  # of a file of settings

Pixels = Annotated[int, Meta(ge=40, le=4096)]  # the features look at an eighth of a side, 5 pixels at a time
Weight = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=1, le=10**9)]


class StyleSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a training depends on."""

    style_image: Annotated[str, Meta(min_length=1)]  # the picture whose style is learned; in a file, relative to it
    style_size: Pixels = 160  # its shorter side as the losses see it; results get strokes as large as they are then
    image_size: Pixels = 64  # sides of the training images
    width: Annotated[int, Meta(ge=1, le=512)] = 16  # filters of the network's first convolution
    features: Literal["imagenet", "random"] = "random"  # VGG16 with the weights that Keras downloads, or filters
    content_weight: Weight = 2.0  # what each loss counts in the total
    style_weight: Weight = 1.0
    learning_rate: Annotated[float, Meta(ge=1e-9, le=1)] = 0.001  # Adam's
    batch_size: Annotated[int, Meta(ge=1, le=1024)] = 4
    steps: Count = 300
    save_every: Count = 100  # steps from one checkpoint to the next
    seed: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0  # for the network's first weights and the images' order

    def changed(self, assignments: Iterable[str]) -> StyleSettings:
        """Return the settings with each ``name=value`` in its place; raise a ValueError that names a wrong one."""
        values = msgspec.structs.asdict(self)
        for assignment in assignments:
            name, sign, text = assignment.partition("=")
            if not sign:
                raise ValueError(f"{assignment!r}: write name=value")
            values[name.strip()] = text.strip()
        try:
            return msgspec.convert(values, StyleSettings, strict=False)  # texts as numbers, too
        except msgspec.ValidationError as error:
            raise ValueError(_reason(error)) from None


def _reason(error: Exception) -> str:
    known = f"; the settings are {', '.join(StyleSettings.__struct_fields__)}" if "unknown field" in str(error) else ""
    return shortened(" ".join(str(error).split())) + known


def shortened(text: str) -> str:
    """Return a text without its middle if it is long: a value in it may have any length."""
    return text if len(text) <= 400 else f"{text[:200]} … {text[-200:]}"


def load_settings(path: str | os.PathLike) -> StyleSettings:
    """Read a YAML file of settings; those left out have their defaults.

    A FileNotFoundError or a ValueError names the file, and what is wrong with it.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        _require_flat(data)
        settings = msgspec.yaml.decode(data, type=StyleSettings, strict=False)
    except FileNotFoundError:
        raise FileNotFoundError(f"{printable(path)}: no such file of settings; styles/ has examples") from None
    except (msgspec.DecodeError, yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{printable(path)}: {_reason(error)}") from None
    return msgspec.structs.replace(settings, style_image=os.path.normpath(path.parent / settings.style_image))


def _require_flat(data: bytes) -> None:
    """Refuse aliases, of which a few can stand for gigabytes, and lists in lists, which can overflow the stack."""
    if len(data) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES:,} bytes; settings are a few lines")
    collections = 0
    for event in yaml.parse(data):
        collections += isinstance(event, yaml.CollectionStartEvent)
        if collections > 1 or isinstance(event, yaml.AliasEvent):
            raise ValueError("settings are lines such as style_image: picture.png, without lists and aliases")


def save_settings(settings: StyleSettings, path: str | os.PathLike) -> None:
    """Write settings to a YAML file, `style_image` as it stands."""
    write_whole(path, msgspec.yaml.encode(settings))
