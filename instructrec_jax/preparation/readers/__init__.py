"""Readers of public recommendation data: folder or file → (Catalogue, Interactions).

One module per family of formats; `lines`, `items` and `interactions` hold their shared parts. Items without text are an
error, because the backbone reads items as text.
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
