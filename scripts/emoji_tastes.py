"""A catalogue of emoji of which only the pictures tell what users like, and a tiny CLIP for its pictures.

    npm pack emoji-datasource-twitter@16.0.0 emoji-datasource-google@16.0.0
    python scripts/emoji_tastes.py --out tastes --archives emoji-datasource-*.tgz

The concepts are drawn once (seed 0). Half of them teach the image network: `OUT/network_data/` has their pictures, in
Twitter's style and with changed copies, and their names (`train_copies.jsonl`), and `network/` a CLIP without weights
(see `emoji_pictures.py`). Of the others, those with one color on at least half of their pixels are the items of
`OUT/catalogue/`, in Twitter's style. Their titles and texts are codes that say nothing.

Each user likes one color, or one category of emoji (`--taste category`): 3 of 4 items are drawn from it, the others
from all, and instructions state the taste ("Something green."). Nine items of each taste are cold: they occur in no
training history. Tastes are equally frequent, and cold items equally often right, so that no fixed order of them is
better than chance. A test case asks for a cold item of the taste among all cold ones, or for a known one that the user
does not have among all known ones (its candidates).

`perfect`, which is printed, is the expected NDCG@10 of a ranker that knows the taste and nothing more; `chance` that of
a random order.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

import emoji_pictures
import numpy as np
from PIL import Image

from instructrec_jax.data.example import Example
from instructrec_jax.files import write_jsonl
from instructrec_jax.ranking.catalogue import Catalogue, Splits

USERS, ITEMS = 972, 10  # users, and items of each in training
SHARE = 0.75  # of a user's items that follow the taste
COLD = 9  # items of each taste that no training history has
WORDINGS = ("Something {}.", "I like {} things.", "Show me {} ones.", "Something {} again, please.")
GAINS = 1 / np.log2(np.arange(2, 12))  # of the ranks that NDCG@10 counts
GROUPS = ("cold items", "known items")
# Degrees of hue; black, gray and white have little saturation.
HUES = {"orange": (14, 40), "yellow": (40, 66), "green": (66, 165), "blue": (165, 255), "purple": (255, 345)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--archives", type=Path, nargs="+", required=True, help="the two .tgz files of npm pack")
    parser.add_argument("--taste", choices=("color", "category"), default="color", help="what users like one of")
    options = parser.parse_args()
    source = options.out / "network_data"
    emoji_pictures.SHARE, emoji_pictures.COPIES, emoji_pictures.SPREAD = 0.5, 4, 0.02
    emoji_pictures.VISION = dict(num_hidden_layers=4, intermediate_size=512, image_size=32, patch_size=8)
    emoji_pictures.write_pictures(options.archives, source)
    captions = [row["caption"] for row in emoji_pictures.rows_of(source, "train")]
    emoji_pictures.write_network(options.out / "network", captions)
    write_catalogue(source, options.out / "catalogue", options.taste)


def write_catalogue(source: Path, folder: Path, taste: str) -> None:
    """The catalogue and its instructions, from the concepts that the network does not see."""
    (folder / "pictures").mkdir(parents=True)
    rng = np.random.default_rng(0)
    tastes: list[str] = []
    for row in emoji_pictures.rows_of(source, "new_concepts"):
        with Image.open(source / row["image"]) as file:
            color, share = main_color(file)
        if share >= 0.5:
            (folder / "pictures" / f"{len(tastes)}.png").write_bytes((source / row["image"]).read_bytes())
            tastes.append(color if taste == "color" else row["category"].lower().replace(" & ", " or "))
    names = [f"Item {code:06d}" for code in rng.choice(10**6, len(tastes), replace=False)]
    images = [f"pictures/{number}.png" for number in range(len(tastes))]
    catalogue = Catalogue([f"e{number}" for number in range(len(tastes))], names, names, {"image": images})
    catalogue.save(folder)
    write_users(catalogue, np.array(tastes), folder, rng)


def write_users(catalogue: Catalogue, tastes: np.ndarray, folder: Path, rng: np.random.Generator) -> None:
    """Histories, and instructions that state a taste; a case of each group for each user in validation and in test."""
    kinds = sorted(taste for taste in set(tastes.tolist()) if (tastes == taste).sum() >= 3 * COLD)
    chosen = {taste: rng.permutation(np.flatnonzero(tastes == taste))[:COLD] for taste in kinds}
    cold = np.zeros(len(catalogue), bool)
    cold[np.concatenate(list(chosen.values()))] = True
    examples: dict[str, list[Example]] = {"train": [], "validation": [], "test": []}
    parts: dict[str, list[np.ndarray]] = {name: [] for name in examples}
    listed = {"cold items": np.flatnonzero(cold), "known items": np.flatnonzero(~cold)}
    candidates = {name: tuple(catalogue.ids[item] for item in items) for name, items in listed.items()}
    for user in range(USERS):
        taste, turn = kinds[user % len(kinds)], user // len(kinds)
        follows = rng.random(ITEMS) < SHARE
        liked = np.flatnonzero(~cold & (tastes == taste))
        items = np.array([rng.choice(liked if each else np.flatnonzero(~cold)) for each in follows], np.int32)
        known = rng.choice(np.setdiff1d(liked, items), 2, replace=False)
        asked = dict(zip(GROUPS, (chosen[taste][[turn % COLD, (turn + 1) % COLD]], known), strict=True))
        for number, split in enumerate(examples):
            parts[split].append(items if not number else np.array([asked[n][number - 1] for n in GROUPS], np.int32))
            groups = GROUPS if number else ("",)
            for name in groups:
                history, output = (items, asked[name][number - 1]) if number else (items[:-1], items[-1])
                examples[split].append(
                    Example(
                        instruction=str(rng.choice(WORDINGS)).format(taste),
                        output=catalogue.ids[output],
                        history=tuple(catalogue.ids[item] for item in history),
                        id=f"{split}-{user}-{name}".rstrip("-"),
                        candidates=candidates.get(name, ()),
                        origin={"user": f"u{user}", "split": split, **({"group": name} if name else {})},
                    )
                )
    Splits([f"u{user}" for user in range(USERS)], *parts.values()).save(folder, catalogue)
    for split, made in examples.items():
        write_jsonl(folder / "instructions" / f"{split}.jsonl", (example.to_record() for example in made))
    told = {"users": USERS, "items": len(catalogue), "cold": int(cold.sum()), "tastes": dict(Counter(tastes.tolist()))}
    perfect = {name: perfect_ndcg(tastes[items], kinds, name) for name, items in listed.items()}
    chance = {name: float(GAINS.sum() / len(items)) for name, items in listed.items()}
    (folder / "tastes.json").write_text(json.dumps(told | {"perfect": perfect, "chance": chance}, indent=1))
    print(f"{told}\nperfect NDCG@10: {perfect}\nchance: {chance}")


def perfect_ndcg(tastes: np.ndarray, kinds: list[str], group: str) -> float:
    """Of a random order of the candidates of the taste; about SHARE · ITEMS of the known ones are in the history."""
    found = []
    for taste in kinds:
        count = int((tastes == taste).sum())
        if group == "known items":
            count = round(count * (1 - 1 / count) ** (SHARE * ITEMS))
        found.append(GAINS[:count].sum() / count)
    return float(np.mean(found))


def main_color(picture: Image.Image) -> tuple[str, float]:
    """The most frequent color, and its share of the pixels that are not transparent."""
    small = picture.convert("RGBA").resize((32, 32))
    seen = np.asarray(small)[..., 3] > 128
    hue, saturation, value = np.moveaxis(np.asarray(small.convert("RGB").convert("HSV"), np.float64)[seen], -1, 0)
    hue, saturation, value = hue * 360 / 255, saturation / 255, value / 255
    colored = (saturation > 0.35) & (value > 0.25)
    counts = {name: int((colored & (hue >= low) & (hue < high)).sum()) for name, (low, high) in HUES.items()}
    counts["red"] = int(colored.sum()) - sum(counts.values())
    counts["black"] = int((~colored & (value < 0.35)).sum())
    counts["gray"] = int((~colored & (value >= 0.35) & (value < 0.85)).sum())
    counts["white"] = int((~colored & (value >= 0.85)).sum())
    best = max(counts, key=lambda name: counts[name])
    return best, counts[best] / max(1, int(seen.sum()))


if __name__ == "__main__":
    main()
