"""Generate text with a language model: `python -m instructrec_jax.generate RUN --prompt TEXT`.

    generate RUN --prompt TEXT                   an answer on the terminal, token by token
    generate RUN --image FILE --prompt TEXT      the same about a picture, with a network that reads pictures
    generate RUN --task image --prompt TEXT --out a.png   a picture of it; with --input, a grid
    generate HF_FOLDER --input FILE --out FILE   an answer per record: {"prompt": ...}, or instruction, input, messages

Prompts are rendered with the run's template, as in training; --raw turns this off. Decoding is greedy without
--temperature.
"""

import json
import sys
from contextlib import nullcontext
from dataclasses import fields
from functools import partial

from instructrec_jax.answering.checked_options import generate_options
from instructrec_jax.runs.config import main_guard, read_first

if __name__ == "__main__":  # before the imports below, which take a second or two
    read_first(lambda args: generate_options(__doc__, args))

from instructrec_jax.answering.drawing import draw_file
from instructrec_jax.answering.language_model import LanguageModel, Prompts, answer_shares, read_prompts, without_bytes
from instructrec_jax.distributed.heartbeat import heartbeat
from instructrec_jax.files import write_jsonl
from instructrec_jax.inference.generation_config import GenerationConfig
from instructrec_jax.ranking.catalogue import Catalogue


def main(args: list[str]) -> None:
    options, rest = generate_options(__doc__, args)
    if options.task == "image":
        return draw_file(options, args, rest)
    config = GenerationConfig(**{entry.name: getattr(options, entry.name) for entry in fields(GenerationConfig)})
    catalogue = None if options.catalogue is None else Catalogue.load(options.catalogue)
    if options.prompt is not None:
        asked = Prompts([{"prompt": options.prompt}], [options.prompt], ["the prompt"], [options.image])
    else:
        asked = read_prompts(options.input)
    on_terminal = options.prompt is not None and options.out is None and sys.stdout.isatty() and config.beams == 1
    streams = on_terminal if options.stream is None else options.stream
    model = LanguageModel(options.path, rest, step=options.step)
    if model.recommended:
        listed = ", ".join(f"{name} {value}" for name, value in model.recommended.items())
        print(f"note: generation_config.json recommends {listed}; only command-line options apply.", file=sys.stderr)
    show = partial(print, end="", flush=True)
    has_bar = streams or sys.stderr.isatty()
    with nullcontext() if has_bar else heartbeat(f"answering {len(asked.prompts):,} prompts"):
        answers = model.generate(
            asked.prompts,
            config,
            raw=options.raw,
            names=asked.names,
            show=show if streams else None,
            progress=True,
            images=asked.pictures,
        )
    if streams:
        print()
    pairs = zip(asked.records, answers, strict=True)
    written = [without_bytes(record) | {"generated": a.text, "finish": a.finish} for record, a in pairs]
    if catalogue is not None:
        shares = answer_shares(catalogue, written)
        told = ", ".join(f"{what} {share:.1%}" for what, share in shares.items())
        print(f"items named in {len(written):,} answers: {told}", file=sys.stderr)
    if options.out is not None:
        write_jsonl(options.out, written)
        print(f"written: {options.out}", file=sys.stderr)
    elif options.input is not None:
        for record in written:
            print(json.dumps(record, ensure_ascii=False))
    elif not streams:
        print(answers[0].text)


if __name__ == "__main__":
    main_guard(main)
