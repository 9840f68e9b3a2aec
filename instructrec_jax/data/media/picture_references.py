"""Reads the pictures and sounds of a record: paths, bytes, base64, parts of messages. URLs are never fetched."""

import base64
import binascii
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from instructrec_jax.data.example import BadExample, show
from instructrec_jax.data.media.archives import archive_in
from instructrec_jax.data.media.picture import Media, Picture, Sound, bytes_of, digest_of
from instructrec_jax.remote import shown

# First bytes of JPEG, PNG, GIF, WebP and WAV (RIFF), BMP, TIFF; of FLAC, Ogg, MP3.
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\x00", b"MM\x00*", b"fLaC", b"OggS", b"ID3")
_MEDIA_URI = re.compile(r"data:(image|audio)/[\w.+-]+;base64,[A-Za-z0-9+/=\s]+\Z")
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")
_SHORTEST = 40  # characters of base64: fewer are the name of a file


@dataclass(frozen=True)
class PictureFolder:
    """Where the paths of pictures start, and where they may lead.

    Attributes:
      start: of relative paths; None: a record may not name files, as that of a client may not.
      others: further folders in which files may lie.
    """

    start: Path | None = None
    others: tuple[Path, ...] = ()

    def find(self, path: str) -> Path:
        """The absolute path of a picture. Raises ValueError for one that is not there or lies elsewhere."""
        if self.start is None:
            raise ValueError("names a file, but pictures are read from the record alone here: give it as base64.")
        start = self.start.absolute()
        found = start / Path(path).expanduser() if path.startswith("~") else start / path
        allowed = [folder.expanduser().resolve() for folder in (start, *self.others)]
        inside = archive_in(found)
        file = (found if inside is None else inside[0]).resolve()
        if not any(file.is_relative_to(folder) for folder in allowed):
            raise ValueError(
                f"lies outside of {' and '.join(map(str, allowed))} ({file}): name the folder of the pictures in "
                "`images` of the source."
            )
        if inside is None and not file.is_file():
            raise ValueError(f"is no file in {start}.")
        return found


NO_FILES = PictureFolder()


@dataclass(frozen=True)
class PictureFolders:
    """Where the pictures of the rows of some files are, by the names of the files in the rows' places."""

    names: tuple[str, ...] = ()
    folders: tuple[PictureFolder, ...] = ()

    def of(self, where: str) -> PictureFolder:
        """The folder of the pictures of the row at `where`, such as `data/a.jsonl, line 3`."""
        fitting = [pair for pair in zip(self.names, self.folders, strict=True) if where.startswith(pair[0])]
        return max(fitting, key=lambda pair: len(pair[0]), default=("", NO_FILES))[1]


NO_FOLDERS = PictureFolders()


def folders_of(files: Sequence[Path], images: str = "") -> tuple[PictureFolder, ...]:
    """Where the pictures of each data file are: beside it or, with `images`, in that folder; none beside a download."""

    def one(file: Path) -> PictureFolder:
        own = None if shown(file) != str(file) else file.parent
        if not images:
            return PictureFolder(own)
        return PictureFolder(Path(images).expanduser(), () if own is None else (own,))

    return tuple(map(one, files))


def read_sounds(value: object, folder: PictureFolder, place: str = "audio") -> tuple[Sound, ...]:
    """The sounds of a cell, as `read_pictures` reads pictures."""
    return _read(value, folder, place, Sound)


def read_pictures(value: object, folder: PictureFolder, place: str = "image") -> tuple[Picture, ...]:
    """The pictures of a cell: one, or a list of them.

    One is a path, bytes, base64, a data URI, {bytes, path} as in `datasets`, or a picture of Pillow.

    Raises:
      BadExample: a URL, a path that leads elsewhere, a missing or unreadable file, or a value of another type.
    """
    return _read(value, folder, place, Picture)


def _read(value: object, folder: PictureFolder, place: str, kind: type[Media]) -> tuple[Media, ...]:
    if value is None or isinstance(value, str | list | tuple) and not value:
        return ()
    if isinstance(value, list | tuple):
        return tuple(_one(each, folder, f"{place}[{number}]", kind) for number, each in enumerate(value))
    return (_one(value, folder, place, kind),)


def _one(value: object, folder: PictureFolder, place: str, kind: type[Media]) -> Media:
    if isinstance(value, bytes):
        return kind.of(value)
    if isinstance(value, Mapping) and set(value) & {"bytes", "path"}:
        own = value.get("bytes")
        return _one(value.get("path") if own is None else own, folder, place, kind)
    if isinstance(value, str):
        data = _written_out(value, place)
        return _file(value, folder, place, kind) if data is None else kind.of(data)
    if kind is Picture and hasattr(value, "save") and hasattr(value, "getbands"):
        return kind.of(_as_png(value))
    raise BadExample(place, "wrong type", f"expected a path, bytes, base64 or {{bytes, path}}, found {show(value)}.")


def _written_out(value: str, place: str) -> bytes | None:
    """The bytes that a text stands for; None: it is a path."""
    if value.startswith("data:"):
        head, comma, rest = value.partition(",")
        if not comma or not head.endswith(";base64"):
            raise BadExample(place, "wrong type", f"a data URI must be data:TYPE;base64,..., found {show(value)}.")
        return _decoded(rest, place)
    if _URL.match(value):
        detail = f"found the URL {show(value)}, and URLs are never fetched: download the file and name its path."
        raise BadExample(place, "URL", detail)
    if len(value) < _SHORTEST or not re.fullmatch(r"[A-Za-z0-9+/\s]+={0,2}\s*", value):
        return None
    try:
        first = base64.b64decode(value[:16])
    except binascii.Error:
        return None
    return _decoded(value, place) if first.startswith(_SIGNATURES) else None


def inline_media(value: str) -> bytes | None:
    """The bytes of a picture or sound that a text holds (a data URI or base64); None: it is another text."""
    if value.startswith("data:") and not _MEDIA_URI.match(value):
        return None
    try:
        return _written_out(value, "")
    except BadExample:
        return None


def _decoded(text: str, place: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except binascii.Error as error:
        raise BadExample(place, "not base64", f"{error}: {show(text)}.") from None


def _file(path: str, folder: PictureFolder, place: str, kind: type[Media]) -> Media:
    try:
        found = folder.find(path)
        return kind(digest_of(bytes_of(found)), str(found))
    except (OSError, ValueError) as error:  # ValueError, too, for a path with a NUL
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BadExample(place, f"no such {kind.noun}", f"{show(path)} {said}") from None


def _as_png(value: Any) -> bytes:
    file = io.BytesIO()
    value.save(file, format="PNG")
    return file.getvalue()


# ---------------------------------------------------------------- pictures inside of messages

_HOLDERS = ("image", "image_url", "path", "bytes", "base64", "data", "url")


@dataclass(frozen=True)
class _Part:
    """A part of type image of a message: its place, and the value of its picture; None: that is in a column."""

    place: str
    value: object


def row_pictures(
    columns: Mapping[str, object], messages: object, folder: PictureFolder
) -> tuple[object, tuple[Picture, ...]]:
    """(the messages, with parts that hold no picture any more; the pictures of a row).

    A part of a message is {"type": "image"} alone, whose picture is in a column; or has it under `image`, `path`,
    `bytes`, `base64`, `data` or `url` (a data URI), or as OpenAI's {"type": "image_url", "image_url": {"url": ...}}.

    Raises BadExample for a picture as `read_pictures`, for pictures in two places, and for parts without one.
    """
    parts: list[_Part] = []
    if isinstance(messages, list | tuple):
        messages = [_without_pictures(turn, f"messages[{number}]", parts) for number, turn in enumerate(messages)]
    own = [part for part in parts if part.value is not None]
    held = [_one(part.value, folder, part.place, Picture) for part in own]
    found = {name: read_pictures(value, folder, name) for name, value in columns.items()} | {"messages": tuple(held)}
    there = [name for name, pictures in found.items() if pictures]
    if len(there) > 1:
        raise BadExample(there[0], "two places", f"pictures stand in {' and '.join(there)}: keep them in one of these.")
    pictures = found[there[0]] if there else ()
    if parts and len(parts) != len(pictures):
        lacking = next((part for part in parts if part.value is None), parts[-1])
        detail = f"there are {len(parts)} parts of type 'image', but {len(pictures)} pictures: each needs its own."
        raise BadExample(lacking.place, "unlike numbers", detail)
    return messages, pictures


def _without_pictures(turn: object, place: str, parts: list[_Part]) -> object:
    content = turn.get("content") if isinstance(turn, Mapping) else None
    if not isinstance(turn, Mapping) or not isinstance(content, list | tuple):
        return turn
    left = []
    for number, part in enumerate(content):
        if isinstance(part, Mapping) and part.get("type") in ("image", "image_url"):
            value = next((part[name] for name in _HOLDERS if part.get(name) is not None), None)
            value = value["url"] if isinstance(value, Mapping) and "url" in value else value
            parts.append(_Part(f"{place}.content[{number}]", value))
            part = {name: value for name, value in part.items() if name not in _HOLDERS} | {"type": "image"}
        left.append(part)
    return {**turn, "content": left}


# ---------------------------------------------------------------- pictures in a store that may move


def numbered(pictures: tuple[Media, ...], folders: tuple[PictureFolder, ...]) -> tuple[Media, ...]:
    """The pictures with the number of a folder in place of the folder where their paths start."""

    def short(each: Media) -> Media:
        for number, folder in enumerate(folders):
            start = "" if folder.start is None else f"{folder.start.absolute()}/"
            if start and each.path.startswith(start):
                return replace(each, path=f"\x00{number}\x00{each.path.removeprefix(start)}")
        return each

    return tuple(map(short, pictures))


def placed(pictures: tuple[Media, ...], folders: tuple[PictureFolder, ...]) -> tuple[Media, ...]:
    """The inverse of `numbered`."""

    def long(each: Media) -> Media:
        if not each.path.startswith("\x00"):
            return each
        _, number, path = each.path.split("\x00", 2)
        start = folders[int(number)].start
        assert start is not None
        return replace(each, path=f"{start.absolute()}/{path}")

    return tuple(map(long, pictures))
