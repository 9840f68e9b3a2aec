"""Makes questions about pictures of the package easy-vqa, and small networks to train on them from nothing.

    pip install easy-vqa
    python scripts/picture_questions.py --out data/easy_vqa
    python -m instructrec_jax.train --config_path configs/easy_vqa_tower.yaml
    python -m instructrec_jax.export runs/easy_vqa_tower --out models/easy_vqa_tower
    python scripts/picture_questions.py --out data/easy_vqa --tower models/easy_vqa_tower
    python -m instructrec_jax.train --config_path configs/easy_vqa.yaml

The first call writes `train.jsonl`, `validation.jsonl` and `test.jsonl` (columns image, instruction, output) beside the
pictures; `named_train.jsonl` and `named_validation.jsonl` (image, output: color and shape, where the questions and
answers of the same file tell both); and `tower/`, a small SigLIP image network without weights. The pictures of the
validation (every twentieth of the package's training) are in no other file. It prints what is right without looking:
the most frequent answer of training, and that of each question.

The second call writes `network/`: a small Gemma 3 with the weights of the trained image network, the others random, and
a tokenizer of the words. It reads a picture as one token, the mean of the image network's patches.
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
WORD = r" ?[a-z]+|\?|\n+"
SHAPES = ("circle", "rectangle", "triangle")
TOWER = dict(
    model_type="siglip_vision_model",
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=128,
    image_size=SIDE,
    patch_size=8,
    initializer_range=0.05,  # the usual 0.02 is that of wide networks
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--tower", type=Path, help="folder of the trained image network: write network/ alone")
    options = parser.parse_args()
    if options.tower is not None:
        train = options.out / "train.jsonl"
        if not train.exists():
            parser.error(f"{train} does not exist: call the script without --tower first.")
        rows = [json.loads(line) for line in train.read_text().splitlines()]
        texts = [text for row in rows for text in (row["instruction"], row["output"])]
        write_network(options.out / "network", options.tower, texts)
        return
    found = importlib.util.find_spec("easy_vqa")
    if found is None or found.origin is None:
        parser.error("easy-vqa is not installed: pip install easy-vqa")
    write_data(Path(found.origin).parent / "data", options.out)
    write_folder(options.out / "tower", TOWER, "Siglip")


def write_data(package: Path, out: Path) -> None:
    """Writes the files of questions and names, and prints two baselines."""
    rows = read_rows(package, out)
    files = rows | {f"named_{split}": named(rows[split]) for split in ("train", "validation")}
    for name, some in files.items():
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
        print(f"{name}: {len(some):,} rows about {len({row['image'] for row in some}):,} pictures")
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


def read_rows(package: Path, out: Path) -> dict[str, list[dict[str, str]]]:
    """The rows of the three files; the pictures are copied to `out`."""
    rows: dict[str, list[dict[str, str]]] = {"train": [], "validation": [], "test": []}
    for split in ("train", "test"):
        shutil.copytree(package / split / "images", out / split)
        for question, answer, number in json.loads((package / split / "questions.json").read_text()):
            own = "validation" if split == "train" and number % HELD_OUT == 0 else split
            rows[own].append({"image": f"{split}/{number}.png", "instruction": question, "output": answer})
    return rows


def named(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Color and shape of each picture whose questions tell both: what they name is there, unless they are denied."""
    colors = {row["output"] for row in rows if row["instruction"].startswith("what")} - {*SHAPES}
    found: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for row in rows:
        asked = row["instruction"].rstrip("?").split()
        denied = "not" in asked or "no" in asked
        true = [*asked, row["output"]] if row["output"] != ("yes" if denied else "no") else []
        kinds = {word: "shape" if word in SHAPES else "color" for word in true if word in colors or word in SHAPES}
        found[row["image"]] |= {kind: word for word, kind in kinds.items()}
    both = {image: names for image, names in found.items() if len(names) == 2}
    return [{"image": image, "output": f"{names['color']} {names['shape']}"} for image, names in both.items()]


def write_network(folder: Path, tower: Path, texts: list[str]) -> None:
    """A small Gemma 3 with the weights of the image network `tower`, and a tokenizer of the words of `texts`."""
    import transformers
    from flax import nnx
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    from instructrec_jax.backbones.decoder import Decoder
    from instructrec_jax.backbones.reading import load_backbone
    from instructrec_jax.backbones.writing import save_pretrained

    special = ["<pad>", "<end>", "<start>", "<image_soft_token>", "<start_of_image>", "<end_of_image>", "<unk>"]
    words = sorted({word for text in texts for word in re.findall(WORD, text)} | {"\n", "\n\n"})
    vocabulary = [*special, *words]
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(vocabulary)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), "isolated")
    core.decoder = decoders.Fuse()
    names = {"pad_token": "<pad>", "eos_token": "<end>", "bos_token": "<start>", "unk_token": "<unk>"}
    images = dict(zip(("image_token", "boi_token", "eoi_token"), special[3:6], strict=True))
    decoder = dict(
        model_type="gemma3_text",
        vocab_size=len(vocabulary),
        hidden_size=96,
        initializer_range=0.1,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=24,
        query_pre_attn_scalar=24,
        intermediate_size=192,
        max_position_embeddings=256,
        sliding_window=256,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    ids = {f"{name}_index": special.index(token) for name, token in images.items()}
    tokens = dict(mm_tokens_per_image=1, eos_token_id=1, architectures=["Gemma3ForConditionalGeneration"])
    vision = {**TOWER, "vision_use_head": False}
    write_folder(
        folder, dict(model_type="gemma3", text_config=decoder, vision_config=vision, **ids, **tokens), "Gemma3"
    )
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, extra_special_tokens=images, **names)
    tokenizer.save_pretrained(folder)
    whole = load_backbone(folder, random_init=True, images=True, rngs=nnx.Rngs(0))
    trained = nnx.state(load_backbone(tower, images=True, rngs=nnx.Rngs(0)).module, nnx.Param)
    del trained["pooler"]  # its attention pooling, which Gemma 3 lacks
    assert isinstance(whole.module, Decoder) and whole.module.reader is not None
    nnx.update(whole.module.reader.vision, trained)
    save_pretrained(folder, whole.module, whole.config)


def write_folder(folder: Path, config: dict[str, object], processor: str) -> None:
    """config.json and preprocessor_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    size = {"height": SIDE, "width": SIDE}
    process = {"image_processor_type": f"{processor}ImageProcessor", "size": size, "do_convert_rgb": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(process) + "\n")


if __name__ == "__main__":
    main()
