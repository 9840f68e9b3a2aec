r"""Raw texts against texts with pairs, for equally many tokens: small networks trained from nothing, several seeds.

    python scripts/compare_pretraining.py texts.jsonl --held_out held.jsonl --questions qa.jsonl \
        --network models/small --random_init --out build/pretraining

Arms: raw (`synthesize --share 0`), rules, and with --synthesizer RUN model. Each is trained on documents of the same
texts for --tokens tokens (padding of packed rows does not count, so steps differ), with one tokenizer. Printed are the
means over the seeds, and the differences from raw, paired by seed, with their 95% intervals (Student's t): the loss in
nats per token on held-out raw texts, the loss and token accuracy of the answers to questions about unseen texts, and,
of questions with candidates, how often the right one is the likeliest.

texts.jsonl and held.jsonl have a column text (--text_field names another, which may be a list of sentences), and
title. qa.jsonl has context, question and answer, or is a data file of this project, such as held-out tasks of
`scripts/public_data.py t0`. What shares 13 words in a row with either of the test files is not trained on. --network is
a folder of scripts/new_language_model.py with --random_init, or a pretrained one without. The log says how many
documents --max_length cuts.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from instructrec_jax import synthesize, train
from instructrec_jax.data.example import Example, Message
from instructrec_jax.data.mixture import permutation
from instructrec_jax.data.packing import fit
from instructrec_jax.files import read_jsonl, write_json
from instructrec_jax.labeling.simulate import interval
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks.generation.summarization import join

RAW, LOSS, TOKENS, CHOICES = "raw text, loss", "answers, loss", "answers, token accuracy", "right choices"


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--held_out", type=Path, required=True, help="raw texts that are not trained on")
    parser.add_argument("--questions", type=Path, required=True, help="questions about texts that are not trained on")
    parser.add_argument("--out", type=Path, required=True, help="folder of the documents, runs and results.json")
    parser.add_argument("--network", type=Path, required=True, help="folder, as of scripts/new_language_model.py")
    parser.add_argument("--text_field", default="text", help="column of the texts")
    parser.add_argument("--most", type=int, help="held-out texts, and questions, that are measured on; without it: all")
    parser.add_argument("--random_init", action="store_true", help="the folder has no weights")
    parser.add_argument("--synthesizer", type=Path, help="run of a language model that writes pairs: another arm")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=1_200_000, help="tokens of a run (default: 1,200,000)")
    parser.add_argument("--rows", type=int, default=2, help="packed rows of a step")
    parser.add_argument("--max_length", type=int, default=1024)
    parser.add_argument("--chain", type=int, default=4)
    parser.add_argument("--learning_rate", type=float, default=1.5e-3)
    options = parser.parse_args(args)
    arms = {"raw": ["rules", "--share", "0"], "rules": ["rules"]}
    arms |= {"model": [str(options.synthesizer)]} if options.synthesizer else {}
    tests = ["--test", str(options.held_out), str(options.questions)]
    options.out.mkdir(parents=True, exist_ok=True)
    for arm, how in arms.items():
        file = options.out / f"{arm}.jsonl"
        if not file.exists():
            more = ["--form", "documents", "--chain", str(options.chain), "--show", "0", "--out", str(file), *tests]
            synthesize.main([str(options.texts), "--with", *how, "--text_field", options.text_field, *more])
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(options.seeds):
        for arm in arms:
            found.setdefault(arm, []).append(trained(arm, seed, options))
            write_json(options.out / "results.json", found)
    print(table(found))


def trained(arm: str, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """Trains a run, or resumes it, and measures it."""
    run = options.out / f"{arm}-{seed}"
    if not (run / "report.html").exists():  # written at the end
        settings: dict[str, object] = {
            "run_dir": run,
            "seed": seed,
            "steps": steps_of(options.out / f"{arm}.jsonl", options),
            "backbone.path": options.network,
            "backbone.random_init": str(options.random_init).lower(),
            "task.type": "language_model",
            "task.template": "plain",
            "task.train_on": "all",
            "data.train": options.out / f"{arm}.jsonl",
            "data.batch_rows": options.rows,
            "data.max_length": options.max_length,
            "data.truncate": "right",
            "optimizer.learning_rate": options.learning_rate,
            "optimizer.warmup": 0.05,
        }
        train.main([part for name, value in settings.items() for part in (f"--{name}", str(value))])
    scores = measured(run, options)
    scores["tokens"] = max(float(str(line.get("tokens", 0))) for line in read_jsonl(run / "metrics.jsonl"))  # so far
    print(f"{arm}, seed {seed}: {json.dumps(scores)}", file=sys.stderr)
    return scores


def measured(run: Path, options: argparse.Namespace) -> dict[str, float]:
    """The losses and accuracies of a run."""
    texts = [raw(text_of(row[options.text_field])) for row in some(options.held_out, options.most)]
    questions = [question(row) for row in some(options.questions, options.most)]
    answers = Run.open(run, ["--task.train_on", "completions", "--data.truncate", "left"]).evaluate(questions).metrics
    found = {
        RAW: Run.open(run).evaluate(texts).metrics["loss"],
        LOSS: answers["loss"],
        TOKENS: answers["token accuracy"],
    }
    if chosen := [each for each in questions if each.candidates]:
        # without the training data, whose documents would be taken for the labels
        chooser = Run.open(run, ["--task.type", "choice", "--data.truncate", "left", "--data.train", "[]"])
        found[CHOICES] = chooser.evaluate(chosen).metrics["accuracy"]
    return {name: float(value) for name, value in found.items() if value is not None}


def some(file: Path, most: int | None) -> list[dict[str, object]]:
    """The first `most` rows, in random order."""
    rows = read_jsonl(file)
    return [rows[number] for number in permutation(len(rows), 0).tolist()[:most]]


def steps_of(file: Path, options: argparse.Namespace) -> int:
    """The steps in which a run sees --tokens tokens of the packed documents."""
    tokenizer = AutoTokenizer.from_pretrained(options.network)
    documents = [f"\n{row['messages'][0]['content']}" for row in read_jsonl(file)]  # type: ignore[index]
    lengths = np.array([len(ids) + 1 for ids in tokenizer(documents, verbose=False)["input_ids"]])
    lengths = lengths.clip(max=options.max_length)
    rows = fit(lengths, options.max_length, longest_first=False).rows
    return round(options.tokens / (int(lengths.sum()) / rows * options.rows))


def raw(text: str) -> Example:
    return Example(instruction="", messages=(Message("assistant", text),))


def question(row: dict[str, object]) -> Example:
    """An example in this project's format, or a question with its context."""
    if "question" in row:
        return Example(
            instruction=f"{row['context']}\n\nQuestion: {row['question']}\nAnswer:", output=str(row["answer"])
        )
    candidates = row.get("candidates") or ()
    assert isinstance(candidates, list | tuple)
    return Example(instruction=str(row["instruction"]), output=str(row["output"]), candidates=tuple(candidates))


def text_of(value: object) -> str:
    """A text, or the join of its sentences."""
    return join([str(each).strip() for each in value]) if isinstance(value, list) else str(value)


def table(found: dict[str, list[dict[str, float]]]) -> str:
    measures = list(found["raw"][0])
    lines = [f"| {len(found['raw'])} seeds | {' | '.join(measures)} |", "|---" * (len(measures) + 1) + "|"]
    for arm, runs in found.items():
        means = {name: np.mean([each[name] for each in runs]) for name in measures}
        cells = [f"{value:,.0f}" if name == "tokens" else f"{value:.3f}" for name, value in means.items()]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    for arm in [arm for arm in found if arm != "raw"]:
        pairs = list(zip(found[arm], found["raw"], strict=True))
        cells = [difference([one[n] - other[n] for one, other in pairs]) for n in measures if n != "tokens"]
        lines.append(f"| {arm} − raw | {' | '.join(cells)} | |")
    return "\n".join(lines)


def difference(values: Sequence[float]) -> str:
    """The mean, and its 95% interval over seeds."""
    if len(values) == 1:
        return f"{values[0]:+.3f}"
    mean, low, high = interval(values)
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"


if __name__ == "__main__":
    main()
