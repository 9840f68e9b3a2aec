"""Write changed copies of training examples: `python -m instructrec_jax.augment SOURCE --out FILE`.

    augment train.csv --out more.jsonl --synonyms 0.1 --delete 0.1   words changed
    augment my.yaml --out more.jsonl               what data.train[].augment of these settings trains on
    augment train.csv --out more.jsonl --mask_fill 0.15 --fill_with BERT      words filled in by a network
    augment train.csv --out more.jsonl --back_translation eng-spa spa-eng     there and back
    augment train.csv --out more.jsonl --paraphrase RUN --teacher RUN         other words, checked by a classifier

Numbers, names, answers and label words stay, and tags go with their words; --task.type names a task with tags.
Each copy has origin.made_from, and origin.augmented_by. FILE.html shows twenty pairs, and what was left out and why.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from instructrec_jax.answering.arguments import augment_parser, new_file, parse_with_settings
from instructrec_jax.runs.config import Config, main_guard, parse, read_first

if __name__ == "__main__":  # before the imports below, which take a second or two
    read_first(lambda args: parse_with_settings(augment_parser(__doc__), args))

from instructrec_jax.answering.augmenting import Keep, agrees, augment_file, similar
from instructrec_jax.answering.rewriting import BackTranslator, MaskFiller, Paraphraser, Rewriter
from instructrec_jax.augmentation.augmenter import METHODS, MOST_COPIES, AugmentConfig
from instructrec_jax.runs.data import RunData


def main(args: list[str]) -> None:
    options, rest = parse_with_settings(augment_parser(__doc__), args)
    out = new_file(options.out)
    assert out is not None
    if out.suffix != ".jsonl":
        raise ValueError(f"--out {out}: JSON lines are written, so name a file FILE.jsonl.")
    new_file(out.with_suffix(".html"))
    for one, other in (("mask_fill", "fill_with"), ("similar", "vectors")):
        if (getattr(options, one) is None) != (getattr(options, other) is None):
            raise ValueError(f"--{one} and --{other} belong together: give both of them, or none.")
    data = RunData(_settings(options, rest))
    low, high = options.similar or (0.0, 0.0)
    filters: list[Keep] = [] if options.similar is None else [similar(low, high, options.vectors)]
    filters += [] if options.teacher is None else [agrees(options.teacher)]
    report = augment_file(data, _rewriters(options, data), filters, out, originals=not options.only_copies)
    print(f"{report}\nwritten: {out} and {out.with_suffix('.html')}", file=sys.stderr)


def _settings(options: argparse.Namespace, rest: list[str]) -> Config:
    """The settings of SOURCE, with the options in place of those of each source."""
    if Path(options.source).suffix in (".yaml", ".yml"):
        config = parse(Config, ["--config_path", options.source, *rest])
    else:
        named = any(arg.split("=")[0] == "--task.type" for arg in rest)
        config = parse(
            Config, ["--data.train", options.source, *([] if named else ["--task.type", "language_model"]), *rest]
        )
    names = (*METHODS, "copies", "thesaurus")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    given |= {"capitalized": True} if options.capitalized else {}
    changed = [replace(source.augment, **given) for source in config.data.train]
    every = zip(config.data.train, changed, strict=True)
    # without a method, settings are those of the networks, where no source has one
    sources = [replace(source, augment=how if how or not any(changed) else AugmentConfig()) for source, how in every]
    return replace(config, data=replace(config.data, train=sources))


def _rewriters(options: argparse.Namespace, data: RunData) -> dict[str, tuple[Rewriter, int]]:
    copies = AugmentConfig.copies if options.copies is None else options.copies
    if not 1 <= copies <= MOST_COPIES:
        raise ValueError(f"--copies is {copies}: choose 1 to {MOST_COPIES}.")
    found: dict[str, tuple[Rewriter, int]] = {}
    if options.mask_fill is not None:
        own = [source.augment for source in data.config.data.train]
        stay = AugmentConfig(capitalized=any(e.capitalized for e in own), protect=sum([e.protect for e in own], []))
        found["mask_fill"] = MaskFiller(options.fill_with, options.mask_fill, stay), copies
    if options.back_translation is not None:
        found["back_translation"] = BackTranslator(*options.back_translation), 1
    if options.paraphrase is not None:
        found["paraphrase"] = Paraphraser(options.paraphrase, data.config.seed), copies
    return found


if __name__ == "__main__":
    main_guard(main)
