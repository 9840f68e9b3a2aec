"""The verbs' command lines: one parser each."""

import argparse
import dataclasses
import re
import typing
from pathlib import Path
from typing import NoReturn

from draccus.wrappers import docstring

from instructrec_jax.answering.answer_options import add_answer_options
from instructrec_jax.answering.argument_types import (
    input_file,
    picture_file,
    run_path,
    share,
    whole_numbers,
)
from instructrec_jax.answering.requests import Request
from instructrec_jax.answering.uncertainty_arguments import add_sets, add_uncertainty
from instructrec_jax.inference.generation_config import GenerationConfig
from instructrec_jax.metrics.out_of_domain import SCORES
from instructrec_jax.planning import ARCHITECTURES
from instructrec_jax.runs.config import ConfigError, check_names, name_files
from instructrec_jax.runs.help_text import fitted_help
from instructrec_jax.runs.settings_tree import nearest

SETTINGS = (
    "All settings of train are options too: --config_path FILE, --data.test new.csv, --mesh.tensor 2.\n"
    "`train --help all` lists them."
)


class VerbParser(argparse.ArgumentParser):
    """A parser whose errors are one line, as those of settings are."""

    synopsis = ""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}. `{self.prog} --help` lists the options.")

    def format_help(self) -> str:
        return super().format_help().replace(self.format_usage(), f"usage: {self.synopsis} [options]\n", 1)


def verb_parser(name: str, doc: str, epilog: str | None = None) -> argparse.ArgumentParser:
    """A parser whose help is the verb's docstring; its first line ends with the command."""
    what, _, command = doc.partition("\n")[0].partition(": `")
    parser = VerbParser(
        prog=f"python -m instructrec_jax.{name}",
        description=fitted_help("\n".join([what.rstrip(".") + ".", *doc.split("\n")[1:]])),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=None if epilog is None else "\n".join(map(fitted_help, epilog.splitlines())),
        allow_abbrev=False,
    )
    parser.synopsis = command.rstrip("`.") or parser.prog
    return parser


def parse_with_settings(parser: argparse.ArgumentParser, args: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """(the verb's own options, the remaining arguments: settings of train).

    Raises ConfigError for an argument that is neither, with the nearest option or setting.
    """
    check_names(args, own_options(parser))  # first: a misspelled option would also be reported as a missing one
    options, rest = parser.parse_known_args(args)
    paths: list[Path] = getattr(options, "paths", [])
    if files := [path for path in paths[1:] if path.suffix in (".yaml", ".yml")]:  # settings behind the run
        options.paths, rest = [path for path in paths if path not in files], [*map(str, files), *rest]
    return options, name_files(rest)


def parse_options(parser: argparse.ArgumentParser, args: list[str]) -> argparse.Namespace:
    """The options of a verb without settings. Raises ConfigError for another argument, with the nearest option."""
    own = own_options(parser)
    for name in (arg[2:].split("=")[0] for arg in args if arg.startswith("--") and arg != "--"):
        if name not in own:
            near = nearest(name, own)
            hint = f" Did you mean {near!r}?" if near else ""
            raise ConfigError(f"there is no option {name!r}.{hint} `{parser.prog} --help` lists the options.")
    return parser.parse_intermixed_args(args)


def own_options(parser: argparse.ArgumentParser) -> set[str]:
    """The names of a parser's options, without dashes."""
    return {"help", *re.findall(r"--([\w-]+)", parser.format_usage())}


def new_file(path: Path | None, option: str = "--out") -> Path | None:
    """The path of a file or folder to write. Raises ValueError if it exists."""
    if path is not None and path.exists():
        raise ValueError(f"{path} exists already: choose another {option}.")
    return path


def evaluate_parser(doc: str) -> argparse.ArgumentParser:
    parser = verb_parser("evaluate", doc, SETTINGS)
    add = parser.add_argument
    where = "run directory, HuggingFace folder; --shots: or YAML"
    add("paths", type=run_path, nargs="+", metavar="RUN", help=where)
    split = "test (default) or validation: sources of the cases"
    add("--split", choices=("test", "validation"), default="test", metavar="NAME", help=split)
    add("--step", type=int, metavar="N", help="step of the checkpoint; default: the best")
    add("--out", type=Path, metavar="FOLDER", help="results; default: RUN/evaluation or ./evaluation")
    average = "of an ensemble: probability, logit or rank"
    add("--average", choices=("probability", "logit", "rank"), metavar="HOW", help=average)
    weights = "of --average: equal (default), or tuned"
    add("--weights", choices=("equal", "tuned"), default="equal", metavar="HOW", help=weights)
    add_uncertainty(parser)
    add("--beside", type=run_path, nargs="+", default=[], metavar="R", help="other runs")
    add("--hybrid", nargs="+", default=[], metavar="R", help="runs or baselines that are mixed in")
    add("--rerank", type=run_path, nargs="+", default=[], metavar="R", help="reranker runs")
    add("--retrieve", type=int, default=100, metavar="N", help="items that --rerank reranks (default: 100)")
    add("--wordings", type=Path, metavar="FILE", help="prompt variants, one per line")
    add("--lm_eval", nargs="+", default=[], metavar="TASK", help="tasks of lm-eval")
    add("--lm_eval_tasks", type=Path, metavar="DIR", help="your own lm-eval tasks (YAML)")
    add("--limit", type=int, metavar="N", help="examples per lm-eval task; default: all")
    add("--no_baselines", action="store_true", help="do not score baselines")
    add("--shots", type=whole_numbers, metavar="N,N", help="training examples of each label")
    add("--seeds", type=int, default=5, metavar="N", help="of --shots: draws of examples (default: 5)")
    add("--explanations", type=int, metavar="N", help="examples of data.validation to explain")
    add("--by", nargs="+", default=[], metavar="FIELD", help="fields whose values are measured apart")
    add("--robust", metavar="SUITE", help="behavioral tests: default, bias, YAML file, checklist:FOLDER")
    add("--robust_limit", type=share, metavar="SHARE", help="exit with 1 where a test fails more often: 20%%")
    return parser


def tune_parser(doc: str) -> argparse.ArgumentParser:
    parser = verb_parser("tune", doc, SETTINGS)
    add = parser.add_argument
    add("--trials", type=int, required=True, metavar="N", help="settings to try, also those of earlier calls")
    add("--space", type=Path, metavar="FILE", help="YAML of settings and their ranges; default: the task's")
    add("--out", type=Path, default=Path("tuned"), metavar="FOLDER", help="of the search (default: tuned)")
    add("--search_seed", type=int, default=0, metavar="N", help="random seed of the proposals (default: 0)")
    return parser


def export_parser(doc: str) -> argparse.ArgumentParser:
    parser = verb_parser("export", doc)
    add = parser.add_argument
    add(
        "run",
        type=run_path,
        help="run directory; for gguf, onnx, stablehlo, compressed-tensors also a HuggingFace folder",
    )
    formats = "what to write, see above (default: hf)"
    choices = ("hf", "peft", "orbax", "gguf", "onnx", "stablehlo", "compressed-tensors")
    add("--format", choices=choices, default="hf", help=formats)
    add("--out", type=Path, required=True, help="folder to write; must not exist")
    add("--step", type=int, help="step of the checkpoint; default: the best")
    dtype = (
        "float32, float16, bfloat16 (default: the pretrained checkpoint's (hf), float32 (orbax)); gguf: F32, F16 "
        "(default), "
        "BF16, Q8_0, Q4_0, Q4_1; compressed-tensors: W8A8 (default), W4A16"
    )
    add("--dtype", metavar="NAME", help=dtype)
    add("--part", metavar="TASK", help="for a multitask run: the subtask whose head is written (hf, peft)")
    return parser


def compress_parser(doc: str) -> argparse.ArgumentParser:
    parser = verb_parser("compress", doc, SETTINGS)
    add = parser.add_argument
    add("path", type=run_path, help="run directory, or HuggingFace folder")
    add("--out", type=Path, required=True, help="run directory to write; must not exist")
    add("--step", type=int, help="step of the checkpoint; default: the best")
    add("--layers", type=int, metavar="N", help="prune: layers that are left; the result is dense")
    add("--heads", type=int, metavar="N", help="prune: attention heads that are left in each layer")
    add("--width", type=int, metavar="N", help="prune: features of the MLP that are left in each layer")
    add("--vocabulary", action="store_true", help="prune: leave only the tokens that the data use")
    chosen = "what pruning goes by: influence, the loss without a layer, or random (default: influence)"
    add("--criterion", choices=("influence", "loss", "random"), default="influence", help=chosen)
    add("--weights", choices=("int8", "int4", "nf4"), help="codes of the weights (default: int8)")
    add("--activations", choices=("none", "int8"), default="none", help="int8: products of integers (default: none)")
    groups = "inputs that share a scale; default: all for int8, 64 for 4 bits"
    add("--group", type=int, choices=(32, 64, 128), help=groups)
    add("--sparsity", metavar="SHARE", help="set weights to zero: 50%%, or 2:4 (2 of 4 neighbors); no faster")
    methods = "codes: rtn (round to nearest, default), smoothquant, gptq; zeros: magnitude, wanda (default), sparsegpt"
    add("--method", choices=("rtn", "smoothquant", "gptq", "magnitude", "wanda", "sparsegpt"), help=methods)
    add("--keep", nargs="+", default=[], metavar="PATTERN", help="layers that stay as they are, as in lora.targets")
    above = "also those whose outputs have a larger relative error, such as 0.2"
    add("--keep_above", type=float, metavar="ERROR", help=above)
    add("--dense_embeddings", action="store_true", help="keep the embedding table (default: int8, row by row)")
    texts = "examples of data.train for the choice of codes and the errors of the layers (default: 128)"
    add("--calibration", type=int, default=128, metavar="N", help=texts)
    add("--limit", type=share, help="largest loss of the task's metric: 0.5%% or 0.005; more is an error")
    return parser


def plan_parser(doc: str) -> argparse.ArgumentParser:
    architectures = sorted(file.stem for file in ARCHITECTURES.glob("*.json"))
    parser = verb_parser("plan", doc, f"{SETTINGS}\nArchitectures without a folder: {', '.join(architectures)}.")
    add = parser.add_argument
    add("--topology", required=True, help="chip type and topology: v5e:4x4, v5p:4x4x4; cpu:8")
    add("--slices", type=int, default=1, help="number of slices of this topology (default: 1)")
    add("--search", action="store_true", help="try mesh sizes, remat and accumulation; rank what fits")
    add("--items", type=int, help="also plan the index of a catalogue with this number of items")
    return parser


def generate_parser(doc: str) -> argparse.ArgumentParser:
    """The options of generate, including one for each field of GenerationConfig."""
    settings = (
        "All settings of train are options too: --task.template chatml, --backbone.dtype bfloat16, --mesh.tensor 2."
    )
    parser = verb_parser("generate", doc, settings)
    parser.add_argument("path", type=run_path, help="run directory, or HuggingFace folder")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", help="the prompt")
    source.add_argument(
        "--input", type=input_file, help='file of records with "prompt", or instruction, input, messages; and image'
    )
    add = parser.add_argument
    add("--task", choices=("text", "image"), default="text", help="image: of a text_to_image run (default: text)")
    out = 'JSONL file for the records with "generated" and "finish"; default: stdout. Of --task image: a .png or .jpg'
    add("--out", type=Path, help=out)
    add("--samples", type=int, default=1, metavar="N", help="pictures of each prompt, in one grid (default: 1)")
    add("--catalogue", type=Path, help="prepared folder: report the share of named items that are unknown or seen")
    picture = "picture beside --prompt (repeatable), for networks that read pictures"
    add("--image", type=input_file, action="append", default=[], metavar="FILE", help=picture)
    add("--raw", action="store_true", help="do not apply the run's template")
    add("--step", type=int, help="step of the checkpoint; default: the best")
    streams = "print the answer to --prompt token by token (default: on a terminal)"
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


def predict_parser(doc: str) -> argparse.ArgumentParser:
    parser = verb_parser("predict", doc, SETTINGS)
    add = parser.add_argument
    add("path", type=run_path, help="run directory; with --vectors also a HuggingFace folder")
    add("--text", help="one text, answered on stdout")
    add(
        "--input",
        type=input_file,
        metavar="FILE",
        help="jsonl, json, csv, tsv or parquet file (also .gz) or its URL; -: JSON lines on stdin",
    )
    add("--out", type=Path, metavar="FILE", help=".jsonl, .csv, .tsv or .parquet; default: JSON lines on stdout")
    either = parser.add_mutually_exclusive_group()
    embeddings = "write embeddings instead: --out FILE.npy or FILE.parquet"
    either.add_argument("--vectors", action="store_true", help=embeddings)
    bad = "skip: list it in OUT.rejected.jsonl instead (default: error)"
    add("--on_bad_row", choices=("error", "skip"), default="error", help=bad)
    add("--k", type=int, default=10, help="number of items, for tasks that rank them (default: 10)")
    add_sets(parser, either)
    add("--step", type=int, help="step of the checkpoint; default: the best")
    return parser


def explain_parser(doc: str) -> argparse.ArgumentParser:
    parser = verb_parser("explain", doc, SETTINGS)
    add = parser.add_argument
    add("path", type=run_path, metavar="RUN", help="run directory")
    add("text", nargs="?", metavar="TEXT", help="one text")
    add("--image", type=Path, metavar="FILE", help="a picture, alone or beside TEXT")
    add("--input", type=input_file, metavar="FILE", help="jsonl, json, csv, tsv, parquet file; or its URL")
    add("--out", type=Path, metavar="FILE", help=".jsonl or .html file; default: stdout")
    add("--target", metavar="NAME", help="label, candidate, item; default: the answer")
    add("--against", metavar="NAME", help="why the target and not this one")
    add("--word", help="only the tag of this word, or this written token")
    methods = "integrated (gradients; default), gradient (times input), occlusion, rollout (of attention)"
    choices = ("integrated", "gradient", "occlusion", "rollout")
    add("--method", choices=choices, nargs="+", default=["integrated"], metavar="NAME", help=methods)
    baseline = "what stands for the words: mask (default; else zero), pad, zero, or the mean word of data.validation"
    add("--baseline", choices=("mask", "pad", "zero", "mean"), help=baseline)
    add("--max_steps", type=int, default=512, metavar="N", help="of the integral, a power of two (default: 512)")
    add("--faithful", action="store_true", help="instead, test the methods on data.validation")
    add("--limit", type=int, default=100, metavar="N", help="examples of --faithful (default: 100)")
    add("--step", type=int, help="step of the checkpoint; default: the best")
    add_answer_options(parser)
    return parser


def augment_parser(doc: str) -> argparse.ArgumentParser:
    parser = verb_parser("augment", doc, SETTINGS)
    add = parser.add_argument
    add("source", metavar="SOURCE", help="data file, or settings (.yaml), whose data.train is read")
    add("--out", type=Path, required=True, metavar="FILE", help=".jsonl file to write; pairs to look at are beside it")
    for name, what in (
        ("synonyms", "share of words replaced by a synonym"),
        ("delete", "share of words left out"),
        ("swap", "share of words that change places with the next one"),
        ("typos", "share of words with a typing error"),
    ):
        add(f"--{name}", type=float, metavar="RATE", help=what)
    add("--copies", type=int, metavar="N", help="copies of each example and method that draws (default: 3)")
    add("--thesaurus", metavar="PATH", help="WordNet folder or MyThes file; default: /usr/share/wordnet")
    add("--capitalized", action="store_true", help="change words with capitals, too, which are taken for names else")
    add("--mask_fill", type=float, metavar="RATE", help="share of words filled in by --fill_with")
    add("--fill_with", type=run_path, metavar="RUN", help="run or HuggingFace folder of a masked language model")
    back = "translate there and back: two runs, or two pairs of Apertium (eng-spa spa-eng)"
    add("--back_translation", nargs=2, metavar=("THERE", "BACK"), help=back)
    add(
        "--paraphrase", type=run_path, metavar="RUN", help="run or folder of a language model that follows instructions"
    )
    add("--teacher", type=run_path, metavar="RUN", help="keep copies for which this run predicts the same label")
    add(
        "--similar",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="keep copies within these cosines to the example",
    )
    add("--vectors", metavar="RUN", help="run or HuggingFace folder whose sentence vectors --similar compares")
    add("--only_copies", action="store_true", help="leave out the examples themselves")
    return parser


def synthesize_parser(doc: str) -> argparse.ArgumentParser:
    parser = verb_parser("synthesize", doc)
    add = parser.add_argument
    add("texts", type=input_file, metavar="TEXTS", help="jsonl, json, csv, tsv, parquet or txt file, or its URL")
    add("--with", required=True, dest="maker", metavar="MAKER", help="rules, or run or folder of a language model")
    add("--out", type=Path, required=True, metavar="FILE", help=".jsonl file to write")
    forms = "an example of each pair, or the texts with chains of pairs (default: pairs)"
    add("--form", choices=("pairs", "documents"), default="pairs", help=forms)
    add("--share", type=share, help="documents: share of the passages that get pairs (default: all)")
    add("--chain", type=int, metavar="N", help="documents: pairs of a passage at most (default: 5)")
    add("--passage", type=int, default=300, metavar="N", help="words or Chinese characters of a passage (default: 300)")
    add("--test", nargs="+", default=[], metavar="FILE", help="files of which nothing may be in what is written")
    add("--ngram", type=int, metavar="N", help="words in a row shared with --test that are too many (default: 13)")
    for name in ("text", "title"):
        add(f"--{name}_field", default=name, metavar="NAME", help=f"column with the {name} (default: {name})")
    add("--seed", type=int, default=0, metavar="N", help="of what the rules choose (default: 0)")
    add("--show", type=int, default=3, metavar="N", help="print N of the pairs (default: 3)")
    return parser


def audit_parser(doc: str) -> argparse.ArgumentParser:
    parser = verb_parser("audit", doc, SETTINGS)
    add = parser.add_argument
    add("source", metavar="SOURCE", help="YAML file of settings, run directory, or file of labeled texts")
    add("--out", type=Path, metavar="FOLDER", help="clean.jsonl, findings.jsonl, audit.json and report.html")
    features = "of the classifier (default: vectors where backbone.path is set, else tfidf)"
    add("--features", choices=("tfidf", "vectors"), help=features)
    rule = "of confident learning: prune by class, by noise rate, or what both find (default: class)"
    add("--rule", choices=("both", "class", "noise_rate"), default="class", help=rule)
    add("--folds", type=int, default=5, metavar="K", help="of the out-of-fold predictions (default: 5)")
    similarity = "Jaccard similarity of near-duplicates; 1: equal texts only (default: .8)"
    add("--similarity", type=float, default=0.8, metavar="SHARE", help=similarity)
    plant = "also flip this share of the labels, and measure how many are found (default: 0)"
    add("--plant", type=float, default=0.0, metavar="SHARE", help=plant)
    return parser


def label_parser(doc: str) -> argparse.ArgumentParser:
    parser = verb_parser("label", doc, SETTINGS)
    add = parser.add_argument
    add("path", type=run_path, metavar="RUN", help="run directory; with --simulate also a HuggingFace folder")
    add("--pool", required=True, metavar="FILE", help="jsonl, json, csv, tsv or parquet file of texts")
    add("--out", type=Path, metavar="FOLDER", help="folder of the session, or of curves.json")
    choices = ("breaking_ties", "entropy", "bald", "badge", "core_set", "random")
    how = f"how texts are chosen: {', '.join(choices)} (default: breaking_ties)"
    add("--strategy", choices=choices, nargs="+", default=["breaking_ties"], metavar="NAME", help=how)
    add("--batch", type=int, default=20, metavar="N", help="texts of a round (default: 20)")
    add("--rounds", type=int, default=5, metavar="N", help="rounds (default: 5)")
    add("--who", default="", metavar="NAME", help="who labels")
    page = "ask on a page in the browser of this machine, at this port (default: 8765; 0: any)"
    add("--page", type=int, nargs="?", const=8765, metavar="PORT", help=page)
    add(
        "--second",
        action="store_true",
        help="label what others labeled (again, where you disagree), without what the model thinks",
    )
    add("--simulate", action="store_true", help="learning curves from the labels of the pool")
    add("--first", type=int, default=100, metavar="N", help="random labels that a curve begins with (default: 100)")
    add("--seeds", type=int, default=5, metavar="N", help="curves of a strategy (default: 5)")
    add("--reach", type=share, default=0.8, metavar="SHARE", help="accuracy to count labels for (default: .8)")
    return parser


def recommend_parser(doc: str) -> argparse.ArgumentParser:
    codes = "Exit status 1: some requests of --input failed; 2: an error stopped the command."
    parser = verb_parser("recommend", doc, f"{SETTINGS}\n{codes}")
    parser.add_argument("run", type=run_path, help="run directory of a ranking task")
    add = parser.add_argument_group("one request").add_argument
    add("--user", metavar="ID", help="user id of the prepared folder; sets the history")
    add("--history", action="append", default=[], metavar="TITLES", help='titles, oldest first: "Alien; The Thing"')
    add("--instruction", default="", metavar="TEXT", help="the request in your own words")
    like = "items whose pictures are like this one; with a request, both count alike"
    add("--image", type=picture_file, metavar="FILE", help=like)
    add("--exclude", action="append", default=[], metavar="TITLE", help="leave out this item (repeatable)")
    where = 'only items with this fact: genre=Horror, director!=..., "year>1990" (repeatable; all must hold)'
    add("--where", action="append", default=[], metavar="CONDITION", help=where)
    add = parser.add_argument_group("many requests").add_argument
    fields = ", ".join(Request.__dataclass_fields__)
    add("--input", type=input_file, metavar="FILE", help=f"JSONL or CSV of requests with {fields}")
    add("--out", type=Path, metavar="FILE", help=".jsonl or .csv file for the answers; default: JSONL on stdout")
    add = parser.add_argument_group("answers").add_argument
    add("--k", type=int, default=10, help="number of items (default: 10)")
    add("--format", choices=("table", "json"), default="table", help="output for one request (default: table)")
    add("--include_seen", action="store_true", help="also recommend items of the history")
    unknown = "titles missing from the catalogue: error (default), or skip with a note"
    add("--on_unknown", choices=("error", "skip"), default="error", help=unknown)
    add("--no_evidence", action="store_true", help="do not compute evidence: much faster")
    add = parser.add_argument_group("models and items").add_argument
    add("--rerank", metavar="RUN2[=W]", help="run that reranks the best items of RUN; W: its weight, 0 to 1")
    add(
        "--hybrid",
        metavar="OTHER[=W]",
        help="run or baseline mixed in, with weight W (default: as tuned); none: also not what training chose",
    )
    add("--retrieve", type=int, metavar="N", help="number of items to rerank (default: as tuned, else 100)")
    add("--items", type=input_file, metavar="FILE", help="file of new items: title; optional: id, text, facts")
    add("--step", type=int, help="step of RUN's checkpoint; default: the best")
    return parser


def assist_parser(doc: str) -> argparse.ArgumentParser:
    parser = verb_parser("assist", doc)
    add = parser.add_argument
    add("run", type=run_path, help="run directory of a classification task whose labels are intents")
    add("request", nargs="?", help="the customer's request; default: stdin, one per line")
    add("--actions", type=Path, help="YAML file: intents with action, reply and required slots")
    add("--slots", type=run_path, help="run directory of a token_classification task with BIO labels")
    add("--input", help=".txt file with one request per line, or JSONL, CSV ... file")
    add("--text_field", help="field with the request in --input; default: text, else instruction")
    add("--out", type=Path, help="JSONL file for the answers; default: stdout")
    add("--threshold", type=float, help="lowest score in scope; default: as abstain says, or tuned, else none")
    add("--score", choices=SCORES, help="the out-of-scope score; default: as tuned, else max_probability")
    add("--instruction", default="", help="the instruction before each text in training, if any")
    tune = "files of requests: tune the out-of-scope threshold on them"
    add("--tune_threshold", nargs=2, metavar=("IN_SCOPE", "OUT_OF_SCOPE"), help=tune)
    rate = "highest share of out-of-scope requests accepted, for --tune_threshold (default: 0.05)"
    add("--false_positive_rate", type=float, default=0.05, help=rate)
    return parser


def watch_parser(doc: str) -> argparse.ArgumentParser:
    parser = verb_parser("watch", doc)
    add = parser.add_argument
    add("runs", nargs="+", type=run_path, metavar="RUN", help="run directories of one classification task")
    add("--input", default="-", help="JSONL, CSV ... file; default: stdin, one JSON object per line")
    add("--out", type=Path, help="JSONL file for the alerts; default: stdout")
    add("--scores", type=Path, help="JSONL file for each record's label and its entity's score")
    for name in ("text", "entity", "time"):
        add(f"--{name}_field", default=name, metavar="NAME", help=f"field with the {name} (default: {name})")
    add("--timezone", default="UTC", help="time zone of times without one, such as Asia/Shanghai (default: UTC)")
    add("--late", default="0s", help="longest delay of a record, such as 1h; later ones are bad (default: 0s)")
    add("--window", default="7d", help="length of the rolling window: 36h, 7d, 2w (default: 7d)")
    band = "a score outside raises an alert (default: -0.4 0.4)"
    add("--band", nargs=2, type=float, default=(-0.4, 0.4), metavar=("LOW", "HIGH"), help=band)
    margin = "how far the score must return inside the band before a new alert (default: 0.1)"
    add("--hysteresis", type=float, default=0.1, help=margin)
    add("--least", type=int, default=3, help="minimum number of records in the window for an alert (default: 3)")
    add("--values", help='value of each label, JSON; default: {"positive": 1, "neutral": 0, "negative": -1}')
    add(
        "--weight",
        choices=("equal", "certainty"),
        default="equal",
        help="weight of a record in the score (default: equal)",
    )
    add("--draws", type=int, default=0, help="Monte Carlo dropout passes per record (default: 0)")
    add("--seed", type=int, default=0, help="random seed for --draws (default: 0)")
    add("--instruction", default="", help="the instruction before each text in training, if any")
    add("--batch", type=int, default=64, help="largest batch of records (default: 64)")
    add(
        "--on_bad_record",
        choices=("error", "skip"),
        default="error",
        help="skip: leave them out and count them (default: error)",
    )
    return parser


def report_parser(doc: str) -> argparse.ArgumentParser:
    parser = verb_parser("report", doc)
    add = parser.add_argument
    add("run", type=run_path, help="run directory")
    add("--card", action="store_true", help="write model_card.md instead of report.html")
    power = "of --card: power of a device while training; energy = watts × devices × hours"
    add("--watts", type=float, metavar="W", help=power)
    return parser
