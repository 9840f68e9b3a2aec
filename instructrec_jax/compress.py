"""Compress a tuned run or an untuned network: `python -m instructrec_jax.compress RUN_OR_FOLDER --out FOLDER`.

    --weights int8 --activations int8   products of integers: a quarter of the bytes, and faster
    --weights int4 --method gptq        an eighth of the bytes; saves memory only
    --limit 0.5%                        refuse a larger loss of the task's metric

FOLDER is a run directory: evaluate, predict, generate, recommend, serve and export open it, and training with
`--init_from FOLDER --lora.rank 8` starts from it. FOLDER/compression.json has the errors of all layers.
"""

from instructrec_jax.answering.arguments import compress_parser, parse_with_settings
from instructrec_jax.compression.compress import compress, shown
from instructrec_jax.compression.quantization import Quantization
from instructrec_jax.distributed.launch import refuse_others
from instructrec_jax.runs.config import main_guard


def main(args: list[str]) -> None:
    options, rest = parse_with_settings(compress_parser(__doc__), args)
    refuse_others("compress")
    how = Quantization(
        weights=options.weights,
        activations=options.activations,
        group=options.group,
        method=options.method,
        keep=tuple(options.keep),
        keep_above=options.keep_above,
        embeddings=not options.dense_embeddings,
    )
    found = compress(
        options.path,
        options.out,
        how,
        settings=rest,
        step=options.step,
        calibration=options.calibration,
        limit=options.limit,
    )
    print(f"{shown(found)}\n\nwritten: {options.out}")


if __name__ == "__main__":
    main_guard(main)
