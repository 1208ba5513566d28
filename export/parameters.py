"""What the options of ``echoir-export`` are written as on a command line."""

from __future__ import annotations

from typing import Any

import click


class TileType(click.ParamType):  # type: ignore[type-arg]
    """``256``, or ``HEIGHTxWIDTH``, in pixels; or ``free``."""

    name = "tile"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int] | str:
        if isinstance(value, tuple) or value == "free":
            return value
        sides = value.split("x")
        if len(sides) not in (1, 2) or not all(side.isdecimal() for side in sides):
            self.fail(f"{value!r} is not a size such as 256 or 256x384", param, ctx)
        height, width = (int(side) for side in (sides * 2)[:2])
        if not height or not width:
            self.fail(f"{value!r}: both sides must be at least a pixel", param, ctx)
        return height, width


class PictureType(click.ParamType):  # type: ignore[type-arg]
    """``WIDTHxHEIGHT`` in pixels, as pictures are named; gives (height, width)."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        width, _, height = value.partition("x")
        if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
            self.fail(f"{value!r} is not a size such as 1920x1080", param, ctx)
        return int(height), int(width)


class OverlapType(click.ParamType):  # type: ignore[type-arg]
    """A number of pixels, or ``auto``."""

    name = "overlap"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if isinstance(value, int) or value == "auto":
            return value
        if not value.isdecimal():
            self.fail(f"{value!r} is neither a number of pixels nor 'auto'", param, ctx)
        return int(value)


class BatchType(click.ParamType):  # type: ignore[type-arg]
    """A number of tiles, or ``dynamic``."""

    name = "batch"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if value == "dynamic":
            return None
        if not str(value).isdecimal() or int(value) < 1:
            self.fail(f"{value!r} is neither a number of tiles nor 'dynamic'", param, ctx)
        return int(value)
