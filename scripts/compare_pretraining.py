r"""Raw texts against texts with pairs, for equally many tokens: small networks trained from nothing, several seeds.

    python scripts/compare_pretraining.py texts.jsonl --held_out held.jsonl --questions qa.jsonl \
        --network models/small --random_init --out build/pretraining

Arms: raw (`synthesize --share 0`), rules, and with --synthesizer RUN model. Each is trained on documents of the same
texts for --tokens tokens (padding of packed rows does not count, so steps differ), with one tokenizer. Printed are, as
mean and standard deviation over the seeds, and as difference to raw by seed: the loss in nats per token on held-out raw
texts, and the loss and token accuracy of the answers to questions about unseen texts.

texts.jsonl and held.jsonl have a column text (and title), qa.jsonl context, question and answer. What shares 13 words
in a row with either of the test files is not trained on. --network is a folder of scripts/new_language_model.py with
--random_init, or a pretrained one without. The log says how many documents --max_length cuts.
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
from instructrec_jax.data.packing import fit
from instructrec_jax.files import read_jsonl, write_json
from instructrec_jax.runs.run import Run

MEASURES = (
    ("raw text, loss", "held_out", "loss"),
    ("answers, loss", "questions", "loss"),
    ("answers, token accuracy", "questions", "token accuracy"),
)


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--held_out", type=Path, required=True, help="raw texts that are not trained on")
    parser.add_argument("--questions", type=Path, required=True, help="questions about texts that are not trained on")
    parser.add_argument("--out", type=Path, required=True, help="folder of the documents, runs and results.json")
    parser.add_argument("--network", type=Path, required=True, help="folder, as of scripts/new_language_model.py")
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
            synthesize.main([str(options.texts), "--with", *how, *more])
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(options.seeds):
        for arm in arms:
            found.setdefault(arm, []).append(trained(arm, seed, options))
            write_json(options.out / "results.json", found)
    print(table(found))


def trained(arm: str, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """Trains a run, unless it is there, and measures it."""
    run = options.out / f"{arm}-{seed}"
    if not (run / "summary.json").exists():
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
    scores: dict[str, float] = {}
    whole = Run.open(run).evaluate([raw(str(row["text"])) for row in read_jsonl(options.held_out)])
    answers = Run.open(run, ["--task.train_on", "completions", "--data.truncate", "drop"])
    asked = answers.evaluate([question(row) for row in read_jsonl(options.questions)])
    for name, test, metric in MEASURES:
        value = (whole if test == "held_out" else asked).metrics[metric]
        assert value is not None
        scores[name] = value
    scores["tokens"] = sum(float(str(line["tokens"])) for line in read_jsonl(run / "metrics.jsonl") if "tokens" in line)
    print(f"{arm}, seed {seed}: {json.dumps(scores)}", file=sys.stderr)
    return scores


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
    return Example(instruction=f"{row['context']}\n\nQuestion: {row['question']}\nAnswer:", output=str(row["answer"]))


def table(found: dict[str, list[dict[str, float]]]) -> str:
    lines = [f"| {len(found['raw'])} seeds | {' | '.join(name for name, _, _ in MEASURES)} | tokens |"]
    lines.append("|---|---|---|---|---|")
    for arm, runs in found.items():
        cells = [_cell([each[name] for each in runs]) for name, _, _ in MEASURES]
        lines.append(f"| {arm} | {' | '.join(cells)} | {np.mean([each['tokens'] for each in runs]):,.0f} |")
    for arm in [arm for arm in found if arm != "raw"]:
        pairs = list(zip(found[arm], found["raw"], strict=True))
        cells = [_cell([one[name] - other[name] for one, other in pairs], "+") for name, _, _ in MEASURES]
        lines.append(f"| {arm} − raw | {' | '.join(cells)} | |")
    return "\n".join(lines)


def _cell(values: Sequence[float], sign: str = "") -> str:
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):{sign}.3f}{spread}"


if __name__ == "__main__":
    main()
