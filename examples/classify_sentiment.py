"""Tune the small embedded network to tell good reviews from bad ones, then label new texts. Offline, about a minute.

python examples/classify_sentiment.py
"""

import random
from pathlib import Path

import instructrec_jax as ir
from instructrec_jax.answering.classifier import Classifier
from instructrec_jax.files import write_jsonl

FOLDER = Path("data/example_sentiment")
GOOD, BAD = "warm bright funny gripping moving".split(), "dull slow empty clumsy tired".split()
SUBJECTS = "film plot cast ending story score".split()


def reviews(count: int, seed: int) -> list[dict[str, str]]:
    """Reviews such as "A dull plot and an empty ending."."""
    draw, made = random.Random(seed), []
    for number in range(count):
        label, words = ("positive", GOOD) if number % 2 else ("negative", BAD)
        (a, b), (x, y) = draw.sample(SUBJECTS, 2), draw.sample(words, 2)
        made.append({"instruction": f"The {a} is {x} and the {b} is {y}.", "output": label})
    return made


def main() -> None:
    for name, count, seed in (("train", 200, 0), ("test", 40, 1)):
        write_jsonl(FOLDER / f"{name}.jsonl", reviews(count, seed))
    settings = f"""
run_dir: runs/example_sentiment
steps: 40
backbone: {{path: films}}
task: {{type: classification, labels: [negative, positive]}}
data:
  train: [{{path: {FOLDER}/train.jsonl}}]
  test: [{{path: {FOLDER}/test.jsonl}}]
optimizer: {{learning_rate: 5.0e-4}}
"""
    (FOLDER / "settings.yaml").write_text(settings, encoding="utf-8")
    run = ir.train_run(FOLDER / "settings.yaml")

    classifier = Classifier(run.path)
    texts = ["A gripping story with a funny cast.", "The ending is clumsy."]
    encoded = [classifier.encode(text, f"text {number}") for number, text in enumerate(texts)]
    for text, chances in zip(texts, classifier.members_of(encoded)[0], strict=True):
        best = int(chances.argmax())
        print(f"{classifier.labels[best]} ({chances[best]:.2f})  {text}")


if __name__ == "__main__":
    main()
