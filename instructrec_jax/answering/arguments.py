"""Command lines of the verbs that answer: one parser each."""

import argparse
import dataclasses
import typing
from pathlib import Path

from draccus.wrappers import docstring

from instructrec_jax.answering.out_of_scope import SCORES
from instructrec_jax.answering.requests import Request
from instructrec_jax.inference.generation_config import GenerationConfig

SETTINGS = "Any setting of train can follow: --config_path FILE, --data.test ..., --mesh.tensor 2."


def verb_parser(name: str, doc: str, epilog: str | None = None) -> argparse.ArgumentParser:
    """A parser whose help is the verb's docstring."""
    return argparse.ArgumentParser(
        prog=f"python -m instructrec_jax.{name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=epilog,
        allow_abbrev=False,
    )


def new_file(path: Path | None, option: str = "--out") -> Path | None:
    """The path of a file or folder to write. Raises ValueError where there is one already."""
    if path is not None and path.exists():
        raise ValueError(f"{path} exists already: choose another {option}.")
    return path


def evaluate_parser(doc: str) -> argparse.ArgumentParser:
    parser = verb_parser("evaluate", doc, SETTINGS)
    add = parser.add_argument
    add("path", type=Path, help="run directory, or HuggingFace folder")
    add("--split", choices=("test", "validation"), default="test", help="which sources to score on (default: test)")
    add("--step", type=int, help="which checkpoint of a run; default: the best")
    add("--out", type=Path, help="where the results go; default: RUN/evaluation or ./evaluation")
    add("--beside", type=Path, nargs="+", default=[], help="other runs to score on the same cases")
    add("--hybrid", nargs="+", default=[], help="runs or baselines (coKNN ...) to mix with")
    add("--rerank", type=Path, nargs="+", default=[], help="reranker runs applied to this run's top results")
    add("--retrieve", type=int, default=100, help="how many items --rerank reranks (default: 100)")
    add("--wordings", type=Path, help="prompt variants, one per line: re-evaluate the same cases with each")
    add("--lm_eval", nargs="+", default=[], metavar="TASK", help="tasks of EleutherAI's lm-eval instead")
    add("--lm_eval_tasks", type=Path, metavar="FOLDER", help="folder with further tasks of lm-eval (YAML)")
    add("--limit", type=int, help="examples of each task of lm-eval; default: all")
    add("--no_baselines", action="store_true", help="leave out the baselines")
    return parser


def generate_parser(doc: str) -> argparse.ArgumentParser:
    """Also one option for each field of GenerationConfig."""
    settings = "Settings of train can follow: --task.template chatml, --backbone.dtype bfloat16, --mesh.tensor 2."
    parser = verb_parser("generate", doc, settings)
    parser.add_argument("path", type=Path, help="run directory, or HuggingFace folder")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", help="what to answer")
    source.add_argument("--input", type=Path, help='file of records with "prompt", or instruction, input, messages')
    add = parser.add_argument
    add("--out", type=Path, help='where the records go, with "generated" and "finish"; default: stdout')
    add("--catalogue", type=Path, help="prepared folder: report shares of answers that name unknown or seen items")
    add("--raw", action="store_true", help="take prompts as they are, without a template")
    add("--step", type=int, help="which checkpoint of a run; default: the best")
    streams = "print the answer to --prompt token by token; default: on a terminal"
    add("--stream", action=argparse.BooleanOptionalAction, help=streams)
    hints = typing.get_type_hints(GenerationConfig)
    for entry in dataclasses.fields(GenerationConfig):
        text = docstring.get_attribute_docstring(GenerationConfig, entry.name).comment_inline
        if entry.name == "stop":
            add("--stop", action="append", default=[], metavar="TEXT", help=f"{text} (repeatable)")
            continue
        kind = next(k for k in (*typing.get_args(hints[entry.name]), hints[entry.name]) if k in (int, float))
        shown = "" if entry.default is None else f" (default: {entry.default})"
        add(f"--{entry.name}", type=kind, default=entry.default, metavar="N", help=text + shown)
    return parser


def recommend_parser(doc: str) -> argparse.ArgumentParser:
    codes = "Exit code 1: a request of --input failed; 2: nothing could be done."
    parser = verb_parser("recommend", doc, f"Settings of train can follow: --mesh.tensor 2, ...\n{codes}")
    parser.add_argument("run", type=Path, help="run directory of a task that ranks a catalogue")
    add = parser.add_argument_group("one request").add_argument
    add("--user", metavar="ID", help="a user of the prepared folder, with their whole history")
    add("--history", action="append", default=[], metavar="TITLES", help='oldest first: "Alien; The Thing"')
    add("--instruction", default="", metavar="TEXT", help="the wish, in your own words")
    add("--exclude", action="append", default=[], metavar="TITLE", help="not this item (repeatable)")
    where = 'only items with this fact: genre=Horror, director!=..., "year>1990" (repeatable: all of them hold)'
    add("--where", action="append", default=[], metavar="CONDITION", help=where)
    add = parser.add_argument_group("many requests").add_argument
    fields = ", ".join(Request.__dataclass_fields__)
    add("--input", type=Path, metavar="FILE", help=f"JSONL or CSV of requests with {fields}")
    add("--out", type=Path, metavar="FILE", help=".jsonl or .csv to write; default: JSONL on stdout")
    add = parser.add_argument_group("answers").add_argument
    add("--k", type=int, default=10, help="how many items (default: 10)")
    add("--format", choices=("table", "json"), default="table", help="for one request (default: table)")
    add("--include_seen", action="store_true", help="items of the history may be recommended again")
    unknown = "titles that are not in the catalogue: an error (default), or left out with a note"
    add("--on_unknown", choices=("error", "skip"), default="error", help=unknown)
    add("--no_evidence", action="store_true", help="do not find out what moved each item: much faster")
    add = parser.add_argument_group("models and items").add_argument
    add("--rerank", metavar="RUN2[=W]", help="a run that reranks the best items of RUN; W: its weight, from 0 to 1")
    add("--hybrid", metavar="OTHER[=W]", help="a run or baseline to mix in; W: its weight; default: as tuned")
    add("--retrieve", type=int, metavar="N", help="how many items --rerank reranks (default: as tuned, else 100)")
    add("--items", type=Path, metavar="FILE", help="new items: title, and perhaps id, text, facts")
    add("--step", type=int, help="which checkpoint of RUN; default: the best")
    return parser


def assist_parser(doc: str) -> argparse.ArgumentParser:
    parser = verb_parser("assist", doc)
    add = parser.add_argument
    add("run", type=Path, help="run directory of a classification task: the intents")
    add("request", nargs="?", help="what the customer says; without it and --input: stdin, one a line")
    add("--actions", type=Path, help="YAML: intents with action, reply and required slots")
    add("--slots", type=Path, help="run directory of a token_classification task with BIO labels")
    add("--input", help=".txt file, one request a line, or JSONL, CSV ... file")
    add("--text_field", help="field of the records of --input; default: text, else instruction")
    add("--out", type=Path, help="JSONL file for the answers; default: stdout")
    add("--threshold", type=float, help="lowest score in scope; default: as tuned, else nothing is out of scope")
    add("--score", choices=SCORES, help="the out-of-scope score; default: as tuned, or max_probability")
    add("--instruction", default="", help="the instruction before each text in training, if any")
    tune = "files of requests of both kinds: tune the out-of-scope threshold on them"
    add("--tune_threshold", nargs=2, metavar=("IN_SCOPE", "OUT_OF_SCOPE"), help=tune)
    rate = "share of the out-of-scope requests that may pass, for --tune_threshold (default: 0.05)"
    add("--false_positive_rate", type=float, default=0.05, help=rate)
    return parser


def watch_parser(doc: str) -> argparse.ArgumentParser:
    parser = verb_parser("watch", doc)
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="run directories of one classification task")
    add("--input", default="-", help="JSONL, CSV ... file; default: stdin, a JSON object a line")
    add("--out", type=Path, help="JSONL file for the alerts; default: stdout")
    add("--scores", type=Path, help="JSONL file for every record's label and the score after it")
    for name in ("text", "entity", "time"):
        add(f"--{name}_field", default=name, metavar="NAME", help=f"default: {name}")
    add("--timezone", default="UTC", help="of times without a zone, such as Asia/Shanghai (default: UTC)")
    add("--late", default="0s", help="how late a record may come, such as 1h; later ones are bad (default: 0s)")
    add("--window", default="7d", help="length of the rolling window: 36h, 7d, 2w (default: 7d)")
    band = "scores outside raise an alert (default: -0.4 0.4)"
    add("--band", nargs=2, type=float, default=(-0.4, 0.4), metavar=("LOW", "HIGH"), help=band)
    margin = "how far the score must return inside the band before a new alert (default: 0.1)"
    add("--hysteresis", type=float, default=0.1, help=margin)
    add("--least", type=int, default=3, help="fewest records in the window that make a score (default: 3)")
    add("--values", help='value of each label, JSON; default: {"positive": 1, "neutral": 0, "negative": -1}')
    add("--weight", choices=("equal", "certainty"), default="equal", help="of records in a score (default: equal)")
    add("--draws", type=int, default=0, help="Monte Carlo dropout passes for each record (default: 0)")
    add("--seed", type=int, default=0, help="random seed for --draws (default: 0)")
    add("--instruction", default="", help="the instruction before each text in training, if any")
    add("--batch", type=int, default=64, help="records labeled at a time, at most (default: 64)")
    add("--on_bad_record", choices=("error", "skip"), default="error", help="skip: count them (default: error)")
    return parser
