"""A folder with all that README and docs name: tiny networks under the hub's names, tiny data sets, the configs."""

import csv
import json
import random
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from byte_tokenizer import byte_tokenizer
from conftest import tiny_config
from flax import nnx
from PIL import Image
from transformers import (
    CLIPConfig,
    MT5Config,
    MT5ForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from instructrec_jax.backbones.reading import build_backbone
from instructrec_jax.backbones.writing import save_pretrained
from instructrec_jax.files import read_jsonl, write_jsonl
from instructrec_jax.parsing import read_yaml
from instructrec_jax.preparation import films

CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SENTIMENTS = {"negative": "a dull film", "neutral": "a film", "positive": "a good bright film"}
Record = Mapping[str, Any]


def build(folder: Path, root: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    shutil.copytree(root / "configs", folder / "configs")
    (folder / "scripts").symlink_to(root / "scripts")
    networks(folder, tokenizer)
    films.prepare(folder / "data/films")
    for file, keep in (("train", 48), ("validation", 12), ("test", 24), ("slices", 20)):
        path = folder / f"data/films/instructions/{file}.jsonl"
        rows = read_jsonl(path)
        write_jsonl(path, rows[:: max(1, len(rows) // keep)][:keep])
    texts(folder)
    shop(folder)
    movielens(folder / "data/ml-latest-small")


def networks(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    for name in ("sentence-transformers/all-MiniLM-L6-v2", "distilbert/distilroberta-base"):
        config = tiny_config(len(tokenizer), max_position_embeddings=512, num_attention_heads=2)
        save_pretrained(folder / name, build_backbone(config, rngs=nnx.Rngs(1)), config)
        tokenizer.save_pretrained(folder / name)
    torch.manual_seed(0)
    chats = byte_tokenizer(chat_template=CHAT, eos_token="<|im_end|>")
    sizes: dict[str, Any] = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
    sizes |= dict(head_dim=32, intermediate_size=64, vocab_size=len(chats), max_position_embeddings=4096)
    ids = dict(eos_token_id=chats.eos_token_id, pad_token_id=0, bos_token_id=None)
    Qwen3ForCausalLM(Qwen3Config(**sizes, **ids)).save_pretrained(folder / "Qwen/Qwen3-0.6B")
    chats.save_pretrained(folder / "Qwen/Qwen3-0.6B")
    clip(folder / "openai/clip-vit-base-patch32", tokenizer)
    pairs = byte_tokenizer(eos=True)
    small = MT5Config(vocab_size=len(pairs), d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    small.update(dict(decoder_start_token_id=0, pad_token_id=0, eos_token_id=pairs.eos_token_id))
    MT5ForConditionalGeneration(small).save_pretrained(folder / "google/mt5-small")
    pairs.save_pretrained(folder / "google/mt5-small")


def clip(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A tiny CLIP with its settings of pictures, and a picture beside it."""
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    words = dict(vocab_size=len(tokenizer), eos_token_id=tokenizer.sep_token_id)
    config = CLIPConfig(text_config=sizes | words, vision_config=sizes | dict(image_size=32, patch_size=16))
    save_pretrained(folder, build_backbone(config, rngs=nnx.Rngs(1)), config)
    tokenizer.save_pretrained(folder)
    settings = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}, "crop_size": 32}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    Image.effect_noise((60, 40), 90).convert("RGB").save(folder.parents[1] / "photo.png")


def texts(folder: Path) -> None:
    """Labels, tags, chats and parallel texts."""
    sentiments = [(text, label) for label, text in SENTIMENTS.items() if label != "neutral"] * 12
    reviews = [
        {"instruction": "Is this review positive?", "input": text, "output": label} for text, label in sentiments
    ]
    write_jsonl(folder / "reviews.jsonl", reviews)
    write_jsonl(folder / "held_out.jsonl", reviews[:4])
    several = [(f"{text} {number}", label) for number, (text, label) in enumerate(sentiments)]
    table(folder / "reviews.csv", ["text", "label"], several)
    write_jsonl(
        folder / "stanfordnlp/imdb/train.jsonl", [{"text": t, "label": int(lb == "positive")} for t, lb in sentiments]
    )
    intents = ["order_status", "refund", "complaint"]
    asked = [{"instruction": f"please help me with my {intent}", "output": intent} for intent in intents * 8]
    write_jsonl(folder / "intents.jsonl", asked)
    tagged = {"instruction": "Find the names.", "input": "send it to Ada", "output": ["O", "O", "O", "B-name"]}
    write_jsonl(folder / "slots.jsonl", [tagged] * 16)
    orders = [
        {"instruction": "Name a city.", "input": "", "output": "Paris"},
        {"instruction": "Name a river.", "output": "Po"},
    ]
    (folder / "alpaca.json").write_text(json.dumps(orders * 40), encoding="utf-8")
    chat = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Good day."}]
    write_jsonl(folder / "chats.jsonl", [{"messages": chat}] * 40)
    (folder / "train.en").write_text("good day\nthank you\n" * 8, encoding="utf-8")
    (folder / "train.zh").write_text("你好\n谢谢\n" * 8, encoding="utf-8")
    known = list(read_yaml(folder / "configs/customer_service/actions.yaml")["intents"])
    splits(folder / "data/banking77", [{"instruction": f"a request about {n}", "output": n} for n in known] * 8)
    headlines = [{"instruction": text, "output": label} for label, text in SENTIMENTS.items()]
    splits(folder / "data/phrasebank", headlines * 24)
    splits(folder / "data/finance", [{"text": text, "label": label} for label, text in SENTIMENTS.items()] * 24)
    splits(folder / "data/instructions", [{k: v for k, v in order.items() if v} for order in orders] * 60)


def splits(folder: Path, rows: Sequence[Record]) -> None:
    write_jsonl(folder / "train.jsonl", rows)
    for name in ("validation", "test"):
        write_jsonl(folder / f"{name}.jsonl", rows[:12])


def table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def choices(users: int, items: int) -> list[tuple[int, int, int]]:
    """(user, item, time): each user has most of the items, in an order of their own."""
    draw = random.Random(0)
    return [(u, i, time) for u in range(users) for time, i in enumerate(draw.sample(range(items), items - 3))]


def shop(folder: Path) -> None:
    rows = [(f"u{user}", f"i{item}", 5, time) for user, item, time in choices(10, 12)]
    table(folder / "ratings.csv", ["user", "item", "rating", "timestamp"], rows)
    names = "lamp desk chair shelf sofa bed rug clock vase mirror stool bench".split()
    table(folder / "items.csv", ["item", "title"], [(f"i{number}", name) for number, name in enumerate(names)])


def movielens(folder: Path) -> None:
    folder.mkdir(parents=True)
    years = [1979, 1982, *range(1984, 1994)]
    titles = ["Alien", "Thing, The", *(f"Film {letter}" for letter in "ABCDEFGHIJ")]
    films_of = [(n + 1, f"{t} ({y})", "Horror|Sci-Fi") for n, (t, y) in enumerate(zip(titles, years, strict=True))]
    table(folder / "movies.csv", ["movieId", "title", "genres"], films_of)
    rated = [(user + 1, item + 1, 4.0, 1000 + time) for user, item, time in choices(12, 12)]
    table(folder / "ratings.csv", ["userId", "movieId", "rating", "timestamp"], rated)
