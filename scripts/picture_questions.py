"""Makes questions about pictures of the package easy-vqa, and a small network to train on them from nothing.

    pip install easy-vqa
    python scripts/picture_questions.py --out easy_vqa

Writes `train.jsonl`, `validation.jsonl` and `test.jsonl` (columns image, instruction, output) beside the pictures, and
`network/`: config.json, preprocessor_config.json and tokenizer of a small LLaVA without weights. The pictures of the
validation (every twentieth of the package's training) are in no other file. It prints what is right without looking:
the most frequent answer of training, and that of each question.
"""

import argparse
import importlib.util
import json
import re
import shutil
from collections import Counter, defaultdict
from pathlib import Path

SIDE = 64  # of a picture, pixels
HELD_OUT = 20  # of so many pictures of training, one is for validation
WORD = r" ?[a-z]+|\?|\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    options = parser.parse_args()
    found = importlib.util.find_spec("easy_vqa")
    if found is None or found.origin is None:
        parser.error("easy-vqa is not installed: pip install easy-vqa")
    rows = read_rows(Path(found.origin).parent / "data", options.out)
    for split, some in rows.items():
        (options.out / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
        print(f"{split}: {len(some):,} questions about {len({row['image'] for row in some}):,} pictures")
    (most, _), *_ = Counter(row["output"] for row in rows["train"]).most_common(1)
    said: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in rows["train"]:
        said[row["instruction"]][row["output"]] += 1
    by_question = {asked: counts.most_common(1)[0][0] for asked, counts in said.items()}
    guesses = {
        f"always {most!r}": [most == row["output"] for row in rows["test"]],
        "by the question alone": [by_question.get(row["instruction"], most) == row["output"] for row in rows["test"]],
    }
    for name, right in guesses.items():
        print(f"test, {name}: {sum(right) / len(right):.1%} right")
    write_network(
        options.out / "network", [text for row in rows["train"] for text in (row["instruction"], row["output"])]
    )


def read_rows(package: Path, out: Path) -> dict[str, list[dict[str, str]]]:
    """The rows of the three files; the pictures are copied to `out`."""
    rows: dict[str, list[dict[str, str]]] = {"train": [], "validation": [], "test": []}
    for split in ("train", "test"):
        shutil.copytree(package / split / "images", out / split)
        for question, answer, number in json.loads((package / split / "questions.json").read_text()):
            own = "validation" if split == "train" and number % HELD_OUT == 0 else split
            rows[own].append({"image": f"{split}/{number}.png", "instruction": question, "output": answer})
    return rows


def write_network(folder: Path, texts: list[str]) -> None:
    """A small LLaVA without weights, and a tokenizer of the words of `texts`."""
    import transformers
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    special = ["<pad>", "<end>", "<start>", "<image>", "<unk>"]
    words = sorted({word for text in texts for word in re.findall(WORD, text)} | {"\n"})
    vocabulary = [*special, *words]
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(vocabulary)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), "isolated")
    core.decoder = decoders.Fuse()
    names = {"pad_token": "<pad>", "eos_token": "<end>", "bos_token": "<start>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, extra_special_tokens={"image_token": "<image>"}, **names
    ).save_pretrained(folder)
    transformers.LlavaConfig(
        text_config=dict(
            model_type="llama",
            vocab_size=len(vocabulary),
            hidden_size=96,
            initializer_range=0.1,  # the usual 0.02 is that of wide networks
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            intermediate_size=192,
            max_position_embeddings=256,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=2,
        ),
        vision_config=dict(
            model_type="clip_vision_model",
            hidden_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=128,
            image_size=SIDE,
            patch_size=16,
        ),
        image_token_index=special.index("<image>"),
        vision_feature_layer=-1,
        architectures=["LlavaForConditionalGeneration"],
    ).save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    process = {"image_processor_type": "CLIPImageProcessor", "size": size, "crop_size": size, "do_convert_rgb": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(process) + "\n")


if __name__ == "__main__":
    main()
