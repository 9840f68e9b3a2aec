"""Pictures of emoji in two drawing styles with their names, and a tiny CLIP to train on them from nothing.

    npm pack emoji-datasource-twitter@16.0.0 emoji-datasource-google@16.0.0 emojione@2.2.7
    python scripts/emoji_pictures.py --out emoji --archives *.tgz
    python scripts/emoji_pictures.py --out emoji --baselines        # after the first command

Writes `pictures/`, files of rows (columns image, caption, category), and `network/`: config.json, tokenizer and
settings without weights. The concepts are drawn once (seed 0): 80% are in `train.jsonl`, in the style of Twitter, and
in `new_style.jsonl`, in that of Google; the others are in `new_concepts.jsonl` (Twitter's style) and `new_both.jsonl`
(Google's), and no training sees their names. With the archive of EmojiOne, which is older and lacks a quarter of them,
`other_style.jsonl` has the training concepts in its style. `train_copies.jsonl` has each picture of `train.jsonl` and
`other_style.jsonl`, and eight copies of it, turned, shifted, resized and in other colors at random. The tokenizer's
vocabulary is that of the training captions. Settings are chosen by every eighth of the training concepts: in Google's
style they are in `validation_style.jsonl` (the others in `test_style.jsonl`), in both styles in
`drawn_validation.jsonl` (the others in `drawn_train.jsonl`).

For runs that draw (docs/images.md) it also writes `image_tokenizer/` (100 codes of an image), `coarse_tokenizer/` (36),
and `generator/`, a small Llama with a token for each of the coarse codes; all without weights.

`--baselines` prints recall@1 and @5 of names for pictures, with 95% intervals (2,000 bootstrap samples of pictures):
the names of the training pictures, in all styles of `train_copies.jsonl`, that are nearest in pixels, or in a histogram
of 64 colors. Names that no training picture has are ranked by the words that they share with the name of the nearest
one; ties count as in a random order.

Licenses: Twitter's pictures (Twemoji) are CC-BY 4.0; Google's (Noto Emoji) are under Apache 2.0, in part under the OFL;
EmojiOne's of version 2 are CC-BY 4.0.
"""

import argparse
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIDE = 32  # pixels of copies, and of what baselines compare
VISION = dict(num_hidden_layers=3, intermediate_size=256, image_size=24, patch_size=4)  # what the network sees with
STYLES = {"twitter": ("train", "new_concepts"), "google": ("new_style", "new_both")}  # seen concepts, new ones
SHARE = 0.8  # of concepts that are seen
DRAWN = 30  # pixels of a drawn picture
# pixels of what a code stands for, and the levels of its numbers
TOKENIZERS = {"image_tokenizer": (3, [8, 8, 8]), "coarse_tokenizer": (5, [8, 8, 8])}
VALIDATION = 8  # every eighth training concept chooses settings
COPIES = 8  # changed copies of each training picture, because training does not change pictures itself
SPREAD = 0.05  # of random weights, standard deviation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--archives", type=Path, nargs="*", default=[], help="the .tgz files of npm pack")
    parser.add_argument("--baselines", action="store_true", help="measure nearest pixels and colors")
    options = parser.parse_args()
    if options.archives:
        write_pictures(options.archives, options.out)
        captions = [row["caption"] for row in rows_of(options.out, "train")]
        write_network(options.out / "network", captions)
        write_drawing(options.out, captions)
    if options.baselines:
        measure_baselines(options.out)


# ---------------------------------------------------------------- pictures


def write_pictures(archives: list[Path], out: Path) -> None:
    concepts: dict[str, dict[str, str]] = {}
    styles: dict[str, set[str]] = {}
    others = [archive for archive in archives if archive.name.startswith("emojione")]
    for archive in sorted(set(archives) - set(others)):
        with tarfile.open(archive) as opened:
            listed = json.loads(opened.extractfile("package/emoji.json").read())  # type: ignore[union-attr]
            style = next(style for style in STYLES if style in archive.name)
            files = {member.name.rpartition("/")[2]: member for member in opened if f"/{style}/64/" in member.name}
            (out / "pictures" / style).mkdir(parents=True, exist_ok=True)
            styles[style] = set()
            for each in listed:
                if each["name"] and each["image"] in files:
                    file = opened.extractfile(files[each["image"]])
                    assert file is not None
                    (out / "pictures" / style / each["image"]).write_bytes(file.read())
                    styles[style].add(each["image"])
                    concepts[each["image"]] = {"caption": each["name"].lower(), "category": each["category"]}
    both = sorted(set.intersection(*styles.values()))
    names = [concepts[image]["caption"] for image in both]
    both = [image for image, name in zip(both, names, strict=True) if names.count(name) == 1]
    seen = set(np.random.default_rng(0).permutation(len(both))[: round(SHARE * len(both))].tolist())
    for style, splits in STYLES.items():
        for split, wanted in zip(splits, (True, False), strict=True):
            chosen = [image for number, image in enumerate(both) if (number in seen) == wanted]
            rows = [{"image": f"pictures/{style}/{image}", **concepts[image]} for image in chosen]
            (out / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            print(f"{split}: {len(rows):,} pictures")
    write_validation(out)
    for archive in others:
        write_other_style(archive, out)
    write_copies(out)


def write_validation(out: Path) -> None:
    """Training concepts that choose settings, and the others; the rows of both styles are in the same order."""
    twitter, google = (rows_of(out, split) for split in ("train", "new_style"))
    files = {"drawn_train": twitter + google, "drawn_validation": twitter + google}
    files |= {"test_style": google, "validation_style": google}
    for name, rows in files.items():
        chosen = [
            json.dumps(row) + "\n"
            for number, row in enumerate(rows)
            if (number % len(google) % VALIDATION == VALIDATION - 1) == ("validation" in name)
        ]
        (out / f"{name}.jsonl").write_text("".join(chosen))


def write_other_style(archive: Path, out: Path) -> None:
    """The training concepts as EmojiOne draws them; its names of files leave out joiners and variation selectors."""
    rows = {plain(Path(row["image"]).stem): row for row in rows_of(out, "train")}
    written = []
    (out / "pictures" / "emojione").mkdir(exist_ok=True)
    with tarfile.open(archive) as opened:
        for member in opened:
            folder, _, name = member.name.rpartition("/")
            row = rows.get(plain(Path(name).stem))
            if folder == "package/assets/png" and row:
                file = opened.extractfile(member)
                assert file is not None
                image = f"pictures/emojione/{Path(row['image']).name}"
                (out / image).write_bytes(file.read())
                written.append(row | {"image": image})
    (out / "other_style.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))
    print(f"other_style: {len(written):,} pictures")


def plain(stem: str) -> str:
    return "-".join(code for code in stem.split("-") if code not in ("fe0f", "200d"))


def learned_rows(out: Path) -> list[dict[str, str]]:
    """The rows of training pictures, in all styles that it sees."""
    return [row for name in ("train", "other_style") if (out / f"{name}.jsonl").is_file() for row in rows_of(out, name)]


def write_copies(out: Path) -> None:
    (out / "pictures" / "copies").mkdir(exist_ok=True)
    rng, rows = np.random.default_rng(0), learned_rows(out)
    written = list(rows)
    for row in rows:
        with Image.open(out / row["image"]) as file:
            picture = file.convert("RGBA").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        for copy in range(COPIES):
            style, file_name = Path(row["image"]).parts[1:]
            name = f"pictures/copies/{style}-{Path(file_name).stem}-{copy}.png"
            changed(picture, rng).save(out / name)
            written.append(row | {"image": name})
    (out / "train_copies.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))
    print(f"train_copies: {len(written):,} pictures")


def changed(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """On white: turned by up to 15 degrees, of 0.7 to 1.2 times the size, shifted by up to a tenth; other colors."""
    side, angle, size = picture.size[0], np.deg2rad(rng.uniform(-15, 15)), rng.uniform(0.7, 1.2)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / size
    center = np.full(2, side / 2)
    shift = center - turn @ (center + rng.uniform(-0.1, 0.1, 2) * side)
    matrix = (*turn[0], shift[0], *turn[1], shift[1])
    moved = picture.transform(picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    whole = Image.alpha_composite(Image.new("RGBA", moved.size, "white"), moved).convert("RGB")
    values = np.asarray(whole, np.float64) * rng.uniform(0.7, 1.3, 3) + rng.uniform(-30, 30)
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def rows_of(out: Path, split: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (out / f"{split}.jsonl").read_text().splitlines()]


def write_network(folder: Path, captions: list[str]) -> None:
    """A tiny CLIP without weights, and a byte-level BPE of the captions."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    special = ["<pad>", "<start>", "<unk>", "<end>"]
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1500, special_tokens=special, initial_alphabet=alphabet)
    core.train_from_iterator(captions, trainer)
    ends = [("<start>", 1), ("<end>", 3)]
    core.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=ends)
    names = dict(pad_token="<pad>", bos_token="<start>", unk_token="<unk>", eos_token="<end>")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, **names)
    tokenizer.save_pretrained(folder)
    shape = dict(hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=512)
    sizes: dict[str, Any] = shape | {"initializer_range": SPREAD}
    ids = dict(vocab_size=len(tokenizer), pad_token_id=0, bos_token_id=1, eos_token_id=3)
    config = transformers.CLIPConfig(
        text_config=sizes | dict(max_position_embeddings=31) | ids,
        vision_config=sizes | VISION,
        projection_dim=128,
    )
    config.architectures = ["CLIPModel"]
    config.save_pretrained(folder)
    side = dict(height=VISION["image_size"], width=VISION["image_size"])
    processor = dict(image_processor_type="CLIPImageProcessor", size=side, do_center_crop=False, do_convert_rgb=True)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def write_drawing(out: Path, captions: list[str]) -> None:
    """Two tokenizers of images, and a Llama that writes the codes of the coarse one; all without weights."""
    sizes = dict(model_type="fsq_tokenizer", image_size=DRAWN, num_channels=3, hidden_size=64, num_hidden_layers=2)
    side = dict(height=DRAWN, width=DRAWN)
    processor = dict(image_processor_type="ViTImageProcessor", size=side, do_convert_rgb=True, resample=3)
    for name, (patch, levels) in TOKENIZERS.items():
        folder = out / name
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(sizes | dict(patch_size=patch, levels=levels), indent=2))
        (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2))

    import transformers

    folder, special = out / "generator", ["<pad>", "<end>"]
    core = byte_level_bpe(captions, special, 1000)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<end>")
    tokenizer.add_tokens([f"<code_{code}>" for code in range(int(np.prod(TOKENIZERS["coarse_tokenizer"][1])))])
    tokenizer.save_pretrained(folder)
    transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=384,
        max_position_embeddings=192,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)


def byte_level_bpe(texts: list[str], special: list[str], size: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    return core


# ---------------------------------------------------------------- baselines


def measure_baselines(out: Path) -> None:
    train = learned_rows(out)
    measures: dict[str, Callable[[np.ndarray], np.ndarray]] = {"pixels": lambda x: x.reshape(-1), "colors": histogram}
    for split in ("test_style", "new_concepts", "new_both"):
        cases = rows_of(out, split)
        names = [row["caption"] for row in cases]
        for title, measure in measures.items():
            known, asked = (np.stack([measure(pixels(out, row)) for row in rows]) for rows in (train, cases))
            distances = (known**2).sum(1) + (asked**2).sum(1)[:, None] - 2 * asked @ known.T
            if split == "test_style":  # all names are known
                own = [[number for number, row in enumerate(train) if row["caption"] == name] for name in names]
                scores = np.stack([-distances[:, numbers].min(1) for numbers in own], axis=1)
            else:
                nearest = [train[best]["caption"] for best in distances.argmin(1)]
                scores = np.array([[shared(one, other) for other in names] for one in nearest])
            print(f"{split}, nearest {title}: {', '.join(recall(scores, k) for k in (1, 5))} of {len(names):,}")


def pixels(out: Path, row: dict[str, str]) -> np.ndarray:
    """float64 [side, side, 3] from 0 to 1, on white."""
    with Image.open(out / row["image"]) as file:
        picture = file.convert("RGBA").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    ground = Image.new("RGBA", picture.size, "white")
    return np.asarray(Image.alpha_composite(ground, picture).convert("RGB"), np.float64) / 255


def histogram(values: np.ndarray) -> np.ndarray:
    bins = np.minimum((values.reshape(-1, 3) * 4).astype(int), 3) @ [16, 4, 1]
    return np.bincount(bins, minlength=64) / len(bins)


def shared(one: str, other: str) -> float:
    """The share of words that two names have in common."""
    first, second = set(one.split()), set(other.split())
    return len(first & second) / len(first | second)


def recall(scores: np.ndarray, k: int) -> str:
    """recall@k where case i is item i, the expectation over the order of ties, with its interval."""
    own = np.diag(scores)[:, None]
    better, tied = (scores > own).sum(1), (scores == own).sum(1)
    hits = np.clip((k - better) / tied, 0, 1)
    rng = np.random.default_rng(0)
    drawn = [hits[rng.integers(0, len(hits), len(hits))].mean() for _ in range(2000)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"@{k} {hits.mean():.1%} [{low:.1%}, {high:.1%}]"


if __name__ == "__main__":
    main()
