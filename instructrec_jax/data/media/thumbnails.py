"""Small pictures for reports, as data URIs: a page with them needs no file beside it."""

import base64
import io

from instructrec_jax.data.media.picture import Picture, Sound
from instructrec_jax.data.media.pictures import decoded, on_white
from instructrec_jax.extras import require

SIDE = 128  # pixels of the longer side at most
QUALITY = 85  # of JPEG: 3 to 6 kB
START = "data:image/jpeg;base64,"


def blank_picture() -> Picture:
    """A white picture, for programs that are compiled before there is any other."""
    require("PIL", "pictures")
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (64, 64), "white").save(file, format="PNG")
    return Picture.of(file.getvalue())


def thumbnail(picture: Picture, side: int = SIDE) -> str:
    """A JPEG of at most `side` pixels along its longer side, never enlarged, as a data URI.

    "" for a sound, and where the file is gone, or cannot be shown with 8 bits per channel: a report says its name then.
    """
    if isinstance(picture, Sound):
        return ""
    file = io.BytesIO()
    try:
        shown = on_white(decoded(picture.read(), picture.name))
    except ValueError:
        return ""
    shown.thumbnail((side, side))
    shown.save(file, format="JPEG", quality=QUALITY, subsampling=0)
    return START + base64.b64encode(file.getvalue()).decode()
