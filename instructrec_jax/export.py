"""Export a tuned model from its run directory: `python -m instructrec_jax.export RUN --out FOLDER [--format hf]`.

orbax   FOLDER/params, a plain orbax checkpoint of the parameters, and FOLDER/metadata.json. Opens without this
        package: `orbax.checkpoint.StandardCheckpointer().restore(FOLDER.absolute() / "params")`.
hf      a HuggingFace folder (config, tokenizer, safetensors) for `transformers`, with LoRA merged into the weights and
        the head where HuggingFace has that head. A retrieval or similarity model also opens in sentence-transformers,
        with the same vectors; its head is also written as retrieval_head.safetensors.
peft    the LoRA matrices (and a trained head) in PEFT's format.
"""

from instructrec_jax.answering.arguments import export_parser, parse_options
from instructrec_jax.answering.exporting import export
from instructrec_jax.runs.config import main_guard


def main(args: list[str]) -> None:
    options = parse_options(export_parser(__doc__), args)
    export(options.run, options.out, format=options.format, step=options.step, dtype=options.dtype, part=options.part)
    print(f"written: {options.out}")


if __name__ == "__main__":
    main_guard(main)
