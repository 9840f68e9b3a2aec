"""The settings of the forms of `prepare` that read the user's own files, or a prepared folder."""

from dataclasses import dataclass, field
from typing import Literal

from instructrec_jax.data.data_config import DataConfig
from instructrec_jax.data.fields import FieldsConfig
from instructrec_jax.data.templates import TemplateName
from instructrec_jax.masking.masker import MaskConfig
from instructrec_jax.ranking.quantizers import QuantizerName

ShownKind = Literal["file", "datasets"]


@dataclass(kw_only=True)
class InspectConfig:
    """Show what data files would become and, with `out`, write a configuration that trains on them."""

    out: str = ""
    """the YAML file to write; the splits go to a folder beside it (my.yaml: my.data/); empty: only show"""
    files: list[str] = field(default_factory=list)
    """data files: jsonl, json, csv, tsv or parquet, also .gz; given without --files"""
    backbone: str | None = None
    """HuggingFace folder or hub id; by default all-MiniLM-L6-v2; language models have no default"""
    target: str | None = None
    """column to learn to predict, where several may be meant"""
    seed: int = 0
    """of the splits"""
    validation: float = 0.1
    """share of the rows for validation"""
    test: float = 0.1
    """share of the rows for test"""
    overwrite: bool = False
    """replace `out` and its folder of splits"""
    kind: ShownKind = "file"
    """without `out`: datasets: FILE is a data set of HuggingFace, by name or folder"""
    split: str = "train"
    """without `out`: of a data set"""
    fields: FieldsConfig = field(default_factory=FieldsConfig)
    """without `out`: columns of each field of an example, as data.train's"""
    template: TemplateName = "auto"
    """without `out`: as task.template"""
    enable_thinking: bool | None = None
    """without `out`: as task.enable_thinking"""
    max_length: int = DataConfig.max_length
    """without `out`: as data.max_length"""


@dataclass
class MaskFilesConfig(MaskConfig):
    """Write the rows of data files as JSON lines, with placeholders in place of personal data."""

    # secret, credentials (of URLs), iban, national_id, card, email, mac, ip, phone; [all]: each of them
    kinds: list[str] = field(default_factory=lambda: ["all"])
    files: list[str] = field(default_factory=list)
    """data files: jsonl, json, csv, tsv or parquet, also .gz; given without --files"""
    out: str = ""
    """the .jsonl file to write; must not exist"""
    columns: list[str] = field(default_factory=list)
    """columns whose texts are masked, also those inside of lists and objects; empty: all"""
    overwrite: bool = False
    """replace `out`"""


@dataclass
class IdsConfig:
    """Name the items of a prepared folder by codes, and write a language model whose vocabulary has these."""

    catalogue: str
    """prepared folder with the items"""
    encoder: str
    """network or run whose vectors of the items' texts are divided: similar items share their first codes"""
    network: str
    """HuggingFace folder of a decoder or encoder–decoder, with or without weights"""
    out: str
    """folder to write: that network with the codes as tokens; backbone.path of a task.type generative"""
    quantizer: QuantizerName = "kmeans"
    """kmeans: residual k-means; fsq: rounded principal components; rqvae: a trained autoencoder with codebooks"""
    levels: int = 3
    """levels of the quantizer; one more distinguishes items that these leave together"""
    codes: int = 256
    """codes of a level"""
    alignment: bool = False
    """also write instructions that tie codes to titles, wishes and histories; test.jsonl: in other wordings"""
    noun: str = "item"
    """noun for items in these: film, game, book, product, item"""
    seed: int = 0
    """of the quantizer and of the new rows of the word embeddings"""
    overwrite: bool = False
    """replace `out` if it was written by this"""
