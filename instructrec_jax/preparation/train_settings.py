"""train.yaml of a prepared folder: a configuration that trains a recommender on it as it is."""

import math
from collections.abc import Mapping

import yaml

from instructrec_jax.files import check_type
from instructrec_jax.parsing import YamlDumper

FILE = "train.yaml"
BATCH = 64
EPOCHS = 2


def train_settings(card: Mapping[str, object], out: str, run: str) -> str:
    """The text of train.yaml.

    Args:
      card: of the folder.
      out: the folder, as the user named it.
      run: name of the run directory.
    """
    counts = check_type(card["examples"], dict[str, int], "card.json, examples")
    batch = min(BATCH, max(8, counts["train"] // 4))
    steps = min(5_000, max(20, math.ceil(EPOCHS * counts["train"] / batch)))
    every = max(1, math.ceil(steps / 5))
    sources = {name: [_source(card, out, name)] for name in ("train", "validation", "test") if counts[name]}
    data = "\n".join(f"  {name}: {_flow(each)}" for name, each in sources.items())
    return f"""\
# Made by `prepare` for {card["items"]:,} items and {counts["train"]:,} training examples. Change what you like.
run_dir: {_flow(f"runs/{run}")}
seed: 0
steps: {steps}  # about {steps * batch / max(1, counts["train"]):.0f} epochs
backbone:
  path: sentence-transformers/all-MiniLM-L6-v2  # or the folder or hub id of another encoder
task:
  type: retrieval  # ranks all items by the similarity of their vectors to the request's
  catalogue: {_flow(out)}
  softmax: in_batch  # the other items of a batch are negatives; full: all items, for small catalogs
  projection: 384
  temperature: 0.05
data:
{data}
  batch_size: {batch}  # larger batches have more negatives
  max_length: 128
  truncate: left  # a long history loses its oldest items
optimizer:
  learning_rate: 0.0001
  head_learning_rate: 0.0003
evaluation:
  every: {every}
checkpoint:
  every: {every}
"""


def _source(card: Mapping[str, object], out: str, split: str) -> dict[str, str]:
    if "instructions" in card:  # made from the interactions when they are read
        return {"path": out, "kind": str(card["instructions"]), "split": split}
    return {"path": f"{out}/instructions/{split}.jsonl"}


def _flow(value: object) -> str:
    return yaml.dump([value], Dumper=YamlDumper, default_flow_style=True, width=10**9, allow_unicode=True).strip()[1:-1]
