"""The settings of a source of examples."""

from dataclasses import dataclass, field
from typing import Literal

from instructrec_jax.augmentation.augmenter import AugmentConfig
from instructrec_jax.data.fields import FieldsConfig

# Named, because --help shows a setting's comment only where its type is a plain name.
Kind = Literal["file", "datasets", "tfds", "interactions"]


@dataclass
class SourceConfig:
    """One source of examples."""

    path: str = ""  # A data file, a folder, a pattern like data/*.jsonl, a URL of one, or the name of a data set.
    kind: Kind = "file"  # file: jsonl, json, csv, tsv, parquet (.gz); datasets: HuggingFace's; interactions: prepared.
    targets: str = ""  # file only: text file whose line n is the output for line n of path (train.en, train.zh).
    name: str = ""  # Name of the source in reports; empty: its path.
    subset: str | None = None  # datasets only: configuration of the data set, for example sst2 of glue.
    split: str = "train"  # not of files: train, test, and of data sets train[:1000] ...
    streaming: bool = False  # file and datasets: read rows in order while training, instead of preparing all first.
    shuffle_block: int = 1000  # streaming only: shuffle within blocks of N rows; 1 keeps their order.
    images: str = ""  # Folder where paths of pictures and sounds start and must stay; empty: that of the data file.
    fields: FieldsConfig = field(default_factory=FieldsConfig)  # Columns of each field of an example.
    task: str = ""  # Task name of all examples; empty: each record's own.
    augment: AugmentConfig = field(default_factory=AugmentConfig)  # data.train and data.unlabeled only: changed copies.
    weight: float | None = None  # Share in a mixture, relative to the others; null: by number of examples.
    license: str = ""  # License of the source, for the model card; empty: that of README.md beside it, if stated.
