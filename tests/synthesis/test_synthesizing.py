"""The file of pairs: what is read, kept, removed and counted; and runs that are trained on it."""

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from byte_tokenizer import byte_tokenizer
from synthesis_texts import RIVER, TOWN, random_text
from tiny_runs import changed, language_run
from transformers import Qwen3Config, Qwen3ForCausalLM

from instructrec_jax.data.example import Example
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.files import read_jsonl, write_jsonl
from instructrec_jax.metrics.language import script_words
from instructrec_jax.runs.data import RunData
from instructrec_jax.runs.model import open_task
from instructrec_jax.synthesis import synthesizing as module
from instructrec_jax.synthesis.documents import gets_pairs
from instructrec_jax.synthesis.grounding import NOT_IN_TEXT, Pair
from instructrec_jax.synthesis.model_pairs import ModelSynthesizer, synthesizer_prompt, written_pairs
from instructrec_jax.synthesis.overlap import Overlap, read_overlap
from instructrec_jax.synthesis.passages import Passage
from instructrec_jax.synthesis.synthesizing import IN_TEST, REPEATED, Report, Synthesis, by_rules, synthesize_file
from instructrec_jax.tasks.generation.writing_config import LanguageModelConfig
from instructrec_jax.train import train

ROWS = [{"text": TOWN, "title": "The university town of Freiburg", "id": "town"}, {"text": RIVER}]
NONE = Overlap(13)


def made(folder: Path, rows: Sequence[dict[str, Any]], make: Any = None, **settings: Any) -> tuple[Report, list[Any]]:
    overlap = settings.pop("overlap", NONE)
    write_jsonl(folder / "texts.jsonl", rows)
    out = folder / "out.jsonl"
    maker = make or by_rules(settings.get("seed", 0))
    report, _ = synthesize_file(str(folder / "texts.jsonl"), maker, out, Synthesis(**settings), overlap)
    return report, read_jsonl(out)


def saying(*pairs: Pair) -> Any:
    """Makes the same pairs of every passage."""
    return lambda block: [(list(pairs), Counter()) for _ in block]


def test_pairs_of_both_languages(tmp_path: Path) -> None:
    report, rows = made(tmp_path, ROWS)
    assert report.records == report.passages == 2 and report.written == len(rows) == report.rules.total()
    assert Counter(row["origin"]["rule"] for row in rows) == report.rules
    assert {row["origin"]["made_from"] for row in rows} == {
        "town, passage 1",
        f"{tmp_path / 'texts.jsonl'}, line 2, passage 1",
    }
    assert {row.get("input") for row in rows} == {TOWN, RIVER, None}  # None: the instruction says it all
    assert {row["origin"]["rule"] for row in rows} >= {"title", "cloze", "order", "yes_no", "keywords", "fact: when"}


def test_documents_and_their_share(tmp_path: Path) -> None:
    rng = random.Random(1)
    rows = [{"text": f"{TOWN} {random_text(rng)}", "id": str(n)} for n in range(40)]
    report, documents = made(tmp_path, rows, form="documents", share=0.5, chain=2)
    assert len(documents) == report.passages - sum(report.removed.values())
    every = [(row, row["messages"][0]["content"]) for row in documents]
    assert all(len(row["messages"]) == 1 for row in documents)
    assert 0 < report.bare < len(documents) and report.bare == sum("rule" not in row["origin"] for row in documents)
    for row, text in every:
        rules = row["origin"].get("rule", "").split(", ")
        assert len(rules) <= 2
        if rules == [""]:
            assert "".join(text.split()) in "".join("".join(str(each["text"]) for each in rows).split())
    nothing, bare = made(tmp_path, rows, form="documents", share=0.0)
    assert nothing.bare == len(bare) == len(documents) and not nothing.rules
    raw = [text for row, text in every if "rule" not in row["origin"]]
    assert any(not gets_pairs(Passage(text), 0.5, 0) for text in raw)


def test_order_of_the_records_and_of_their_windows_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(2)
    rows = [{"text": random_text(rng) + TOWN[n : n + 150], "id": str(n)} for n in range(30)]

    def written(rows: Sequence[dict[str, Any]]) -> list[str]:
        return sorted(f"{row['instruction']}\n{row['output']}" for row in made(tmp_path, rows)[1])

    first = written(rows)
    monkeypatch.setattr(module, "WINDOW", 3)
    assert written(rows[::-1]) == first and len(set(first)) == len(first) > 30


def test_repeats_are_removed(tmp_path: Path) -> None:
    pairs = saying(Pair("r", "Where?", "Freiburg"), Pair("r", "Where?", "Freiburg"), Pair("r", "Where?", "Germany"))
    report, rows = made(tmp_path, [ROWS[0], {"text": TOWN}, {"text": f"{TOWN} Well."}], pairs)
    assert [(row["instruction"], row["output"]) for row in rows] == [("Where?", "Freiburg"), ("Where?", "Germany")]
    assert report.removed == {REPEATED: 1} and report.dropped == {REPEATED: 4}


def test_what_is_not_grounded_is_dropped_and_counted(tmp_path: Path) -> None:
    def make(block: Sequence[Passage]) -> list[tuple[list[Pair], Counter[str]]]:
        return [([Pair("model", "Where?", "Cologne"), Pair("model", "Who?", "masters")], Counter({"bad": 2}))] * len(
            block
        )

    report, rows = made(tmp_path, ROWS[:1], make)
    assert [row["output"] for row in rows] == ["masters"] and report.dropped == {NOT_IN_TEXT: 1, "bad": 2}
    assert "1 pairs by model" in str(report) and f"1 pairs dropped: {NOT_IN_TEXT}" in str(report)


def test_nothing_shares_an_ngram_with_a_test_file(tmp_path: Path) -> None:
    rng = random.Random(3)
    rows = [{"text": random_text(rng) or "x", "id": str(n)} for n in range(60)]
    tests = [{"question": row["text"][20:80]} for row in rows[::4]] + [{"question": "Answer yes or no"}]
    write_jsonl(tmp_path / "test.jsonl", tests)
    overlap = read_overlap([str(tmp_path / "test.jsonl")], 4)
    known = {tuple(g) for test in tests for g in _grams(test["question"], 4)}
    report, out = made(tmp_path, rows, overlap=overlap, passage=30)
    assert report.removed[IN_TEST] > 5 and report.dropped[IN_TEST] > 0 and out
    for row in out:
        for text in (row.get("input", ""), f"{row['instruction']}\n{row['output']}"):
            assert not known & {tuple(g) for g in _grams(text, 4)}
    full, _ = made(tmp_path, rows, passage=30)
    assert full.passages == report.passages and full.written > report.written


def _grams(text: str, length: int) -> list[list[str]]:
    words = script_words(text)
    return [words[start : start + length] for start in range(len(words) - length + 1)]


def test_records_without_a_text_are_counted_and_named(tmp_path: Path) -> None:
    german = "Die Stadt liegt am Rand des Waldes und ist alt."
    rows: list[dict[str, Any]] = [ROWS[0], {"text": ""}, {"text": None}, {"title": "t"}, {"text": 3}, {"text": german}]
    rows += [{"text": ["A first one.", "A second one."]}, {"text": RIVER, "title": 3}]
    report, _ = made(tmp_path, rows)
    assert report.bad == {"empty field text": 2, "missing field text": 1, "wrong type text": 1, "wrong type title": 1}
    assert report.foreign == 2 and "line 2" in report.first_bad
    assert "2 passages without pairs: in neither English nor Chinese" in str(report)
    with pytest.raises(ValueError, match=r"no pair is left(.|\n)*the record has words\. Select another: --text_field"):
        made(tmp_path / "new", [{"words": TOWN}])
    assert not (tmp_path / "new" / "out.jsonl").exists() and len(list((tmp_path / "new").iterdir())) == 1
    report, _ = made(tmp_path, [{"words": TOWN}], text="words")
    assert report.written


def test_lines_of_a_text_file(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text(f"{TOWN}\n\n{RIVER}\n", encoding="utf-8")
    report, _ = synthesize_file(str(tmp_path / "texts.txt"), by_rules(0), tmp_path / "o.jsonl", Synthesis(), NONE)
    assert report.records == 2 and report.written > 10


@pytest.mark.parametrize("settings", [{"share": -0.1}, {"share": 1.1}, {"chain": 0}, {"passage": 19}, {"shown": -1}])
def test_settings_that_cannot_be(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"--{next(iter(settings)).replace('shown', 'show')}"):
        Synthesis(**settings)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny language model that reads long texts, byte by byte."""
    folder, tokenizer = tmp_path_factory.mktemp("network"), byte_tokenizer()
    torch.manual_seed(0)
    sizes: dict[str, Any] = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)
    sizes |= dict(head_dim=16, intermediate_size=32, vocab_size=len(tokenizer), max_position_embeddings=1024)
    ids = dict(eos_token_id=tokenizer.eos_token_id, pad_token_id=0, bos_token_id=None)
    Qwen3ForCausalLM(Qwen3Config(**sizes, **ids)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("form", ["pairs", "documents"])
def test_training_takes_the_file_as_it_is(form: Any, network: Path, tmp_path: Path) -> None:
    made(tmp_path, ROWS, form=form, chain=2, passage=40)
    task = LanguageModelConfig(template="plain", train_on="all" if form == "documents" else "completions")
    config = changed(
        language_run(network, tmp_path, task=task, data__max_length=1024, steps=1),
        data__train=[SourceConfig(str(tmp_path / "out.jsonl"))],
        data__store="memory",
        data__batch_size=None,
        data__batch_rows=8,
    )
    rows = read_jsonl(tmp_path / "out.jsonl")
    assert rows and len(RunData(config).examples("train")) == len(rows)
    examples = [Example.from_record(row) for row in rows]
    built = open_task(config, network)
    encoded = built.encode(examples)
    for each, example in zip(encoded, examples, strict=True):  # whole, and of a document every token is trained on
        text = built.context.tokenizer.decode(each.text.tokens)
        said = example.messages[0].content if form == "documents" else example.output
        assert text.endswith(f"\n{said}</s>") and (form == "pairs" or text == f"\n{said}</s>")
        supervised = int(each.target.supervised.sum())
        assert supervised == (len(each.text.tokens) - 1 if form == "documents" else supervised) and supervised
    train(config)
    assert (Path(config.run_dir) / "summary.json").exists()


def test_a_tuned_synthesizer_writes_pairs_and_only_grounded_ones_stay(network: Path, tmp_path: Path) -> None:
    texts = [f"It is a town in the {where}, and {who} was there." for where in ("east", "west") for who in ("Al", "Bo")]
    target = written_pairs([("What is it?", "a town"), ("Who?", "Al")])
    rows = [synthesizer_prompt(Passage(text)).to_record() | {"output": target} for text in texts]
    write_jsonl(tmp_path / "tuning.jsonl", rows * 2)
    config = changed(
        language_run(network, tmp_path, data__max_length=384, steps=80, optimizer__learning_rate=1e-2),
        data__train=[SourceConfig(str(tmp_path / "tuning.jsonl"))],
        data__validation=[],
        data__test=[],
        data__store="memory",
        checkpoint__every=80,
        evaluation__every=0,
    )
    train(config)
    make = ModelSynthesizer(config.run_dir, max_new_tokens=48)
    report, written = made(
        tmp_path, [{"text": text} for text in texts[:2]] + [{"text": "It is the old sea of that."}], make
    )
    said = [(row["instruction"], row["output"], row["input"]) for row in written]
    assert said == [("What is it?", "a town", texts[0]), ("Who?", "Al", texts[0])]
    assert report.dropped[REPEATED] == 1 and report.dropped[NOT_IN_TEXT] >= 1 and report.rules == {"model": 2}
    assert report.dropped.total() >= 4  # the pairs of the second text, and what was made up about the third
