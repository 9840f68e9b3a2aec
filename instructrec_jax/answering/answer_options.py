"""Options of `explain` for counterfactuals, and for the training examples behind an answer."""

import argparse
from pathlib import Path


def add_answer_options(parser: argparse.ArgumentParser) -> None:
    """Adds both groups of options."""
    add = parser.add_argument
    add("--counterfactual", action="store_true", help="instead, the smallest change with another answer")
    add("--to", metavar="NAME", help="with this answer: a label, candidate, item or text")
    add("--budget", type=int, default=500, metavar="N", help="answers of a search at most (default: 500)")
    add("--thesaurus", type=Path, metavar="PATH", help="WordNet or MyThes; default: /usr/share/wordnet")
    add("--examples", type=int, metavar="K", help="instead, the K training examples behind the answer")
    similarity = "of gradients: cosine (default) or dot (TracIn)"
    add("--similarity", choices=("cosine", "dot"), default="cosine", help=similarity)
    projection = "numbers of a projection; 0: all (default: 4096)"
    add("--projection", type=int, default=4096, metavar="D", help=projection)
    add("--batch", type=int, default=8, metavar="N", help="gradients in memory at a time (default: 8)")
