"""Readers of public recommendation data: a folder or file in → (Catalogue, Interactions).

One file per family of formats; `lines` holds what all share about files, `items` and `interactions` what all share
about their content. Items that have no text are an error: a backbone reads them as text.
"""

from instructrec_jax.preparation.readers.amazon import read_amazon
from instructrec_jax.preparation.readers.goodbooks import read_goodbooks
from instructrec_jax.preparation.readers.lines import BadLines
from instructrec_jax.preparation.readers.movielens import read_movielens
from instructrec_jax.preparation.readers.recbole import read_recbole
from instructrec_jax.preparation.readers.sequences import read_p5, read_sasrec, read_sequences
from instructrec_jax.preparation.readers.table import read_table

__all__ = [
    "BadLines",
    "read_amazon",
    "read_goodbooks",
    "read_movielens",
    "read_p5",
    "read_recbole",
    "read_sasrec",
    "read_sequences",
    "read_table",
]
