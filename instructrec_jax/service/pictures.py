"""Pictures in requests: how many and how large, checked before anything is decoded."""

from collections.abc import Iterator

from instructrec_jax.data.example import BadExample
from instructrec_jax.data.media.picture_references import inline_media
from instructrec_jax.data.media.pictures import size_of
from instructrec_jax.service.errors import ServiceError
from instructrec_jax.service.settings import LimitsConfig

SEND = "send the picture itself, as data:image/png;base64,... (or image/jpeg)."


def bad_picture(error: BadExample) -> ServiceError:
    """The answer to a request with a picture that cannot be read."""
    said = {"URL": f"URLs are never fetched: {SEND}", "no such picture": f"files are never opened: {SEND}"}
    message = f"{error.field}: {said.get(error.reason, error.detail)}"
    return ServiceError(422, message, param=error.field, code="invalid")


def check_pictures(value: object, limits: LimitsConfig, name: str, *, together: bool = False) -> None:
    """Checks the pictures in a field of a request, wherever they stand in it.

    Args:
      together: whether they are of one prompt, which `limits.pictures` is for.

    Raises ServiceError (422) for more of them, or a larger one, than the limits allow. What is no picture passes.
    """
    found = [(place, data) for place, text in _texts(value, name) if (data := inline_media(text)) is not None]
    if together and len(found) > limits.pictures:
        message = f"the request has {len(found)} pictures; at most {limits.pictures} (limits.pictures)."
        raise ServiceError(422, message, code="limit")
    for place, data in found:
        size = size_of(data)
        if size is not None and size[0] * size[1] > limits.pixels:
            sides = f"{size[0]:,} × {size[1]:,} pixels"
            message = f"{place}: the picture has {sides}; at most {limits.pixels:,} (limits.pixels): make it smaller."
            raise ServiceError(422, message, param=place, code="limit")


def _texts(value: object, place: str) -> Iterator[tuple[str, str]]:
    """(place, text) of each text in a JSON value."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from _texts(each, f"{place}.{name}")
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from _texts(each, f"{place}[{number}]")
