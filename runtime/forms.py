"""Kinds of pictures that a network was trained on, or was not: what can be seen of a picture as it comes.

:mod:`echoir.forms` makes them; a checkpoint and a manifest list those that training used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from echoir.runtime.descriptor import Descriptor

if TYPE_CHECKING:
    from echoir.runtime.picture import Picture
    from echoir.runtime.streams.pixels import Format

FORMS: dict[str, str] = {  # and how people call one; those without words cannot be told by looking at a picture
    "rgb": "",
    "clipped": "",
    "gray": "a gray picture",
    "jpeg444": "a JPEG",
    "jpeg422": "a JPEG with halved chroma (4:2:2)",
    "jpeg420": "a JPEG with halved chroma (4:2:0)",
    "yuv420": "video with halved chroma (4:2:0)",
    "correlated": "",
    "clean": "",
}
_STEP = 16  # rows: a look at some of them tells whether all channels are equal


def form_of_picture(picture: Picture) -> str | None:
    """A key of :data:`FORMS`, or None where nothing is to be seen."""
    rows = picture.rgb[::_STEP]
    if picture.gray or (np.array_equal(rows[..., 0], rows[..., 1]) and np.array_equal(rows[..., 0], rows[..., 2])):
        return "gray"
    form = f"jpeg{(picture.extras.chroma or '').replace(':', '')}"
    return form if form in FORMS else None


def form_of_frames(format: Format) -> str | None:
    """The same of frames of video."""
    if format.kind == "gray":
        return "gray"
    return "yuv420" if format.shared == (1, 1) else None


def warning(form: str | None, network: Descriptor) -> str | None:
    """A line where a network says what it was trained on, and this form is not among it; else None."""
    if form is None or not network.forms or form in network.forms:
        return None
    known = ", ".join(network.forms)
    return f"{FORMS[form]}; the network was trained on other kinds ({known}) and may do little"
