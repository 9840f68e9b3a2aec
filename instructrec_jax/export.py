"""Export a tuned model from its run directory: `python -m instructrec_jax.export RUN --out FOLDER`.

    --format hf     a HuggingFace folder (config, tokenizer, safetensors), with LoRA merged into the weights
    --format peft   the LoRA matrices (and a trained head) in PEFT's format
    --format orbax  all parameters as a plain orbax checkpoint, with metadata.json
    --format gguf   a file of llama.cpp: language models, and BERT's embeddings
    --format compressed-tensors   a HuggingFace folder with weights of 8 or 4 bits, for vLLM and transformers
    --format onnx   an encoder with its head, for onnxruntime
    --format stablehlo   any encoder or decoder, for programs with jax and numpy only

An hf folder opens in transformers, with the head where HuggingFace has that head. A retrieval or similarity model opens
in sentence-transformers, with the same vectors. FOLDER/README.md says what opens the folder,
and has the run's model card (report --card).
"""

from instructrec_jax.answering.arguments import export_parser, parse_options
from instructrec_jax.runs.config import main_guard, read_first

if __name__ == "__main__":  # before the imports below, which take a second or two
    read_first(lambda args: parse_options(export_parser(__doc__), args))

from instructrec_jax.answering.exporting import export
from instructrec_jax.distributed.heartbeat import heartbeat
from instructrec_jax.evaluation.layout import text_width
from instructrec_jax.evaluation.tables import wrapped


def main(args: list[str]) -> None:
    options = parse_options(export_parser(__doc__), args)
    with heartbeat(f"writing {options.out}"):
        uses = export(
            options.run, options.out, format=options.format, step=options.step, dtype=options.dtype, part=options.part
        )
    print("\n".join([f"written: {options.out}", *(wrapped(use, "", "  ", text_width()) for use in uses)]))


if __name__ == "__main__":
    main_guard(main)
