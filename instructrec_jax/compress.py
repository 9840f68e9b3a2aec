"""Compress a tuned run or an untuned network: `python -m instructrec_jax.compress RUN_OR_FOLDER --out FOLDER`.

    --weights int8 --activations int8   products of integers: a quarter of the bytes, and faster
    --weights int4 --method gptq        an eighth of the bytes; saves memory only
    --layers 4                          a dense network of fewer layers; --heads, --width, --vocabulary likewise
    --sparsity 2:4                      zeros among the weights; neither smaller nor faster
    --limit 0.5%                        refuse a larger loss of the task's metric

FOLDER is a run directory: evaluate, predict, generate, recommend, serve and export open it, and training with
`--init_from FOLDER --lora.rank 8` starts from it; a pruned one recovers with `--init_from FOLDER` and distil.teachers.
FOLDER/compression.json has the errors of all layers, or what each criterion would leave.
"""

import argparse

from instructrec_jax.answering.arguments import compress_parser, parse_with_settings
from instructrec_jax.runs.config import main_guard, read_first

if __name__ == "__main__":  # before the imports below, which take a second or two
    read_first(lambda args: parse_with_settings(compress_parser(__doc__), args))

from instructrec_jax.compression.compress import compress, shown
from instructrec_jax.compression.prune import prune, shown_pruned
from instructrec_jax.compression.pruning import Pruning
from instructrec_jax.compression.quantization import Quantization
from instructrec_jax.compression.sparsify import shown_sparse, sparsify
from instructrec_jax.compression.sparsity import Sparsity
from instructrec_jax.distributed.launch import refuse_others


def main(args: list[str]) -> None:
    options, rest = parse_with_settings(compress_parser(__doc__), args)
    refuse_others("compress")
    how = Pruning(options.layers, options.heads, options.width, options.vocabulary, options.criterion)
    shared = dict(settings=rest, step=options.step, calibration=options.calibration, limit=options.limit)
    if how.on and options.sparsity is not None:
        raise ValueError("--sparsity beside pruning: prune first, train, and then compress the result a second time.")
    if options.sparsity is not None:
        _refuse_codes(options, "method", "keep")
        sparsity = Sparsity.of(options.sparsity, options.method or "wanda", options.keep)
        said = shown_sparse(sparsify(options.path, options.out, sparsity, **shared))
    elif how.on:
        _refuse_codes(options)
        said = shown_pruned(prune(options.path, options.out, how, **shared))
    else:
        said = shown(compress(options.path, options.out, _quantization(options), **shared))
    print(f"{said}\n\nwritten: {options.out}")


def _quantization(options: argparse.Namespace) -> Quantization:
    return Quantization(
        weights=options.weights or "int8",
        activations=options.activations,
        group=options.group,
        method=options.method or "rtn",
        keep=tuple(options.keep),
        keep_above=options.keep_above,
        embeddings=not options.dense_embeddings,
    )


def _refuse_codes(options: argparse.Namespace, *shared: str) -> None:
    """Raises ValueError for options of codes, but the `shared` ones, beside those of pruning or sparsity."""
    off = compress_parser(__doc__).parse_args([str(options.path), "--out", str(options.out)])
    names = ("weights", "activations", "group", "method", "keep", "keep_above", "dense_embeddings")
    given = [name for name in names if name not in shared and getattr(options, name) != getattr(off, name)]
    if given:
        raise ValueError(f"--{given[0]} is for codes: prune first, train, and then compress the result a second time.")


if __name__ == "__main__":
    main_guard(main)
