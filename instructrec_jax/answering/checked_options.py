"""The options of verbs some of which exclude others: what contradicts itself is refused before jax is imported."""

from argparse import Namespace
from pathlib import Path

from instructrec_jax.answering.arguments import (
    evaluate_parser,
    generate_parser,
    new_file,
    parse_with_settings,
    predict_parser,
    recommend_parser,
)

Options = tuple[Namespace, list[str]]  # a verb's own options, and the settings of train
REQUEST = ("user", "history", "instruction", "image", "exclude", "where")  # options of `recommend` that ask one thing


def evaluate_options(doc: str, args: list[str]) -> Options:
    options, rest = parse_with_settings(evaluate_parser(doc), args)
    if len(options.paths) == 1 and options.average is None and options.weights != "equal":
        raise ValueError("--weights is for an ensemble: give several runs and --average.")
    if options.robust_limit is not None and not options.robust:
        raise ValueError("--robust_limit is for behavioral tests: give --robust, too.")
    return options, rest


def predict_options(doc: str, args: list[str]) -> Options:
    options, rest = parse_with_settings(predict_parser(doc), args)
    if (options.text is None) == (options.input is None):
        raise ValueError("give --text TEXT or --input FILE (- for stdin).")
    if options.out is not None and options.input in (None, Path("-")):
        raise ValueError("--out needs --input FILE; for a text or stdin, redirect stdout.")
    return options, rest


def generate_options(doc: str, args: list[str]) -> Options:
    options, rest = parse_with_settings(generate_parser(doc), args)
    new_file(options.out)
    if options.task != "image" and options.samples != 1:
        raise ValueError("--samples is for --task image: leave it out.")
    if options.task != "image" and options.image and options.prompt is None:
        raise ValueError("--image is for --prompt: a record names its pictures in the column image, or images.")
    return options, rest


def recommend_options(doc: str, args: list[str]) -> Options:
    options, rest = parse_with_settings(recommend_parser(doc), args)
    given = ", ".join(f"--{name}" for name in REQUEST if getattr(options, name))
    if options.input is not None and given:
        raise ValueError(f"{given} cannot be combined with --input: put it into the file.")
    if options.out is not None and options.input is None:
        raise ValueError("--out needs --input; for one request, use --format json > FILE.")
    return options, rest
