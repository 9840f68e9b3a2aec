"""Records of a .tar shard as WebDataset writes it: the files of one key (000.jpg, 000.json, 000.cls) are a record.

jpg, png, webp, gif, bmp, tif   image: the picture, or a list of them (000.left.png, 000.right.png)
json                            its fields
txt                             text
cls                             label: a number, or a name
others                          a column of their name, as bytes
"""

import json
from pathlib import Path, PurePosixPath

from instructrec_jax.data.example import BadExample
from instructrec_jax.data.media.archives import members, read_member
from instructrec_jax.remote import shown

PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")


class TarRows:
    """The records of a .tar, in its order. Pictures stay in it and are named as `shard.tar/000.jpg`.

    Raises ValueError for a file that is no such archive, or holds no files.
    """

    columns = None

    def __init__(self, file: Path) -> None:
        self.file = file
        found: dict[str, list[str]] = {}
        for name in members(file):
            if not PurePosixPath(name).name.startswith("."):
                found.setdefault(_parts(name)[0], []).append(name)
        self.records = list(found.items())
        if not self.records:
            raise ValueError(f"file {shown(file)}: it holds no records; remove it from the sources or fill it.")

    def __len__(self) -> int:
        return len(self.records)

    def where(self, index: int) -> str:
        return f"{shown(self.file)}, key {self.records[index][0]}"

    def row(self, index: int) -> dict[str, object]:
        key, names = self.records[index]
        row: dict[str, object] = {}
        pictures = []
        for name in names:
            ending = _parts(name)[1]
            if ending.rpartition(".")[2] in PICTURES:
                pictures.append(f"{self.file.name}/{name}")
                continue
            for column, value in self._columns(name, ending).items():
                if column in row:
                    raise BadExample(column, "two values", f"two files of the key {key} give it: remove one.")
                row[column] = value
        if pictures:
            row["image"] = pictures[0] if len(pictures) == 1 else sorted(pictures)
        return row if "id" in row else {**row, "id": key}

    def _columns(self, name: str, ending: str) -> dict[str, object]:
        data = read_member(self.file, name)
        if ending not in ("json", "txt", "cls"):
            return {ending: data}
        try:
            text = data.decode("utf-8-sig")
            if ending == "json":
                fields = json.loads(text)
                if not isinstance(fields, dict):
                    raise BadExample(name, "malformed file", "the JSON of a record must be an object.")
                return fields
        except ValueError as error:
            if isinstance(error, BadExample):
                raise
            raise BadExample(name, "malformed file", f"{error}; write it as UTF-8.") from None
        if ending == "txt":
            return {"text": text}
        return {"label": int(text) if text.strip().isdecimal() else text.strip()}


def _parts(name: str) -> tuple[str, str]:
    """(key, ending) of a file: a/000 and left.png of a/000.left.png."""
    path = PurePosixPath(name)
    first, _, ending = path.name.partition(".")
    return str(path.with_name(first)) if first else name, ending.lower()
