"""Rows of HuggingFace `datasets` and of `tensorflow-datasets`, by number."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from instructrec_jax.data.example import BadExample
from instructrec_jax.extras import require

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


def class_names(features: object, path: str = "") -> dict[str, list[str]]:
    """Label names of every class column of `datasets` or tfds features, by (dotted) column."""
    names = getattr(features, "names", None)
    if isinstance(names, list):
        return {path: list(names)}
    if hasattr(features, "feature"):  # a list of classes
        return class_names(features.feature, path)
    found: dict[str, list[str]] = {}
    if hasattr(features, "items"):
        for name, feature in features.items():
            found |= class_names(feature, f"{path}.{name}" if path else name)
    return found


class DatasetRows:
    """The rows of a HuggingFace `Dataset`; only the columns that the mapping needs are decoded."""

    def __init__(self, dataset: "Dataset", name: str, wanted: set[str]) -> None:
        self.columns: list[str] = dataset.column_names
        self.dataset = encoded_media(dataset.with_format(None)).select_columns([c for c in self.columns if c in wanted])
        self.length, self.name = len(dataset), name

    def __len__(self) -> int:
        return self.length

    def row(self, index: int) -> dict[str, object]:
        return self.dataset[index] if self.dataset.column_names else {}

    def where(self, index: int) -> str:
        return f"{self.name}[{index}]"


def encoded_media(dataset: "Dataset") -> "Dataset":
    """The data set with pictures and sounds as {bytes, path} in place of decoded ones."""
    from datasets import Audio, Image, List

    for name, feature in dataset.features.items():
        for kind in (Audio, Image):
            if isinstance(feature, kind):
                dataset = dataset.cast_column(name, kind(decode=False))
            elif isinstance(getattr(feature, "feature", None), kind):
                dataset = dataset.cast_column(name, List(kind(decode=False)))
    return dataset


def fingerprint_of(dataset: "Dataset") -> str:
    """The data set's own fingerprint, which changes with its content and transformations."""
    return str(dataset._fingerprint)


def open_dataset(path: str, subset: str | None, split: str, streaming: bool) -> "Dataset | IterableDataset":
    require("datasets", f"source {path}: kind datasets")
    import datasets

    folder = Path(path).expanduser()
    saved = any((folder / name).exists() for name in ("dataset_dict.json", "state.json"))
    place = str(folder) if folder.exists() else path
    try:
        if not saved:
            return datasets.load_dataset(place, subset, split=split, streaming=streaming)
        dataset = datasets.load_from_disk(place)
    except Exception as error:
        hint = "check path, subset and split, and for a hub id the connection to the hub"
        message = f"cannot be opened ({_brief(error)}); {hint}."
        raise ValueError(f"data set {path} (split {split}): {message}") from error
    if isinstance(dataset, datasets.DatasetDict):
        if split not in dataset:
            raise ValueError(f"data set {path}: no split {split!r}; it has {', '.join(dataset)}.")
        dataset = dataset[split]
    elif split != "train":
        raise ValueError(f"data set {path}: a single data set without splits; drop split: {split}.")
    return dataset.to_iterable_dataset() if streaming else dataset


def _brief(error: Exception) -> str:
    """The first line of another library's error message (the traceback has the rest)."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"


class TfdsRows:
    """The rows of a `tensorflow-datasets` data source, with bytes decoded and numpy values as Python's own."""

    columns = None

    def __init__(self, data: Sequence[Mapping[str, object]], name: str) -> None:
        self.data, self.name = data, name

    def __len__(self) -> int:
        return len(self.data)

    def row(self, index: int) -> dict[str, object]:
        return {name: _plain(value) for name, value in self.data[index].items()}

    def where(self, index: int) -> str:
        return f"{self.name}[{index}]"


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadExample("", "not UTF-8", f"{error}; write the text as UTF-8.") from None
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def open_tfds(path: str, split: str) -> tuple[Sequence[Mapping[str, object]], object]:
    """The data source and its features. The files must be in ArrayRecord format; TensorFlow is not needed."""
    for package in ("array_record", "importlib_resources", "tensorflow_datasets"):
        require(package, f"source {path}: kind tfds")
    import tensorflow_datasets as tfds

    folder = Path(path).expanduser()
    try:
        if folder.is_dir():
            builder = tfds.builder_from_directory(folder)
        else:
            builder = tfds.builder(path, file_format="array_record")
            builder.download_and_prepare()
        return builder.as_data_source(split=split), builder.info.features
    except Exception as error:
        hint = "check the name or folder (with dataset_info.json), the split, and that the format is ArrayRecord"
        message = f"cannot be opened ({_brief(error)}); {hint}."
        raise ValueError(f"data set {path} (split {split}): {message}") from error
