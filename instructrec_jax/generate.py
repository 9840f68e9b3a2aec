"""Write answers with a language model: `python -m instructrec_jax.generate RUN_OR_HF_FOLDER --prompt "..."`.

    generate RUN --prompt TEXT               an answer on the terminal, as it is written
    generate HF_FOLDER --input FILE --out FILE   one answer a record: {"prompt": ...}, or instruction, input, messages

Prompts are written as in training, by the run's template; --raw takes them as they are. Without --temperature the
likeliest token is taken each time.
"""

import dataclasses
import json
import sys

from instructrec_jax.answering.arguments import generate_parser, new_file
from instructrec_jax.answering.language_model import LanguageModel, answer_shares, read_prompts
from instructrec_jax.files import write_jsonl
from instructrec_jax.inference.generation_config import GenerationConfig
from instructrec_jax.ranking.catalogue import Catalogue
from instructrec_jax.runs.config import check_names, main_guard


def main(args: list[str]) -> None:
    options, rest = generate_parser(__doc__).parse_known_args(args)
    names = {entry.name for entry in dataclasses.fields(GenerationConfig)}
    values = {name: getattr(options, name) for name in names} | {"stop": tuple(options.stop)}
    config = GenerationConfig(**values)
    own = names | {"prompt", "input", "out", "catalogue", "raw", "step", "stream"}
    check_names(rest, own)
    new_file(options.out)
    catalogue = None if options.catalogue is None else Catalogue.load(options.catalogue)
    if options.prompt is not None:
        records, prompts, where = [{"prompt": options.prompt}], [options.prompt], ["the prompt"]
    else:
        records, prompts, where = read_prompts(options.input)
    on_terminal = options.prompt is not None and options.out is None and sys.stdout.isatty() and config.beams == 1
    streams = on_terminal if options.stream is None else options.stream
    model = LanguageModel(options.path, rest, step=options.step)
    if model.recommended:
        wishes = ", ".join(f"{name} {value}" for name, value in model.recommended.items())
        print(f"note: generation_config.json recommends {wishes}; only what the options say is done.", file=sys.stderr)

    def show(piece: str) -> None:
        print(piece, end="", flush=True)

    answers = model.generate(
        prompts, config, raw=options.raw, names=where, show=show if streams else None, progress=True
    )
    if streams:
        print()
    written = [
        record | {"generated": answer.text, "finish": answer.finish}
        for record, answer in zip(records, answers, strict=True)
    ]
    if catalogue is not None:
        shares = answer_shares(catalogue, written)
        told = ", ".join(f"{what} {share:.1%}" for what, share in shares.items())
        print(f"of the items named in {len(written):,} answers: {told}", file=sys.stderr)
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
