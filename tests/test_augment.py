"""The verb `augment`."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from helpers import task_config
from tiny_runs import untrained_run
from tiny_thesauri import write_wordnet

from instructrec_jax.answering.rewriting import Source
from instructrec_jax.augment import main
from instructrec_jax.augmentation.augmenter import AugmentConfig
from instructrec_jax.files import read_jsonl
from instructrec_jax.runs.config import ConfigError

TEXTS = ["a good film about war", "the old book of love", "very dull music on 12 discs"]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    labels = ("war", "love", "music")
    rows = "".join(f"{text},{label}\n" for text, label in zip(TEXTS, labels, strict=True))
    (tmp_path / "train.csv").write_text(f"text,label\n{rows}")
    return tmp_path / "train.csv"


def test_words_are_changed_and_pairs_shown(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, thesaurus = tmp_path / "more.jsonl", write_wordnet(tmp_path / "wordnet")
    options = ["--synonyms", "1.0", "--thesaurus", str(thesaurus), "--copies", "1", "--data.store", "memory"]
    main([str(table), "--out", str(out), *options])
    rows = read_jsonl(out)
    changed = [row["instruction"] for row in rows if "origin" in row]
    assert changed == ["a fine movie about war", "very boring music on 12 discs"]
    assert [row["instruction"] for row in rows if "origin" not in row] == TEXTS
    assert rows[1]["origin"] == {"made_from": f"{table}, line 2", "augmented_by": "synonyms"}
    said = capsys.readouterr().err
    assert "3 examples, 3 copies made, 2 written\n       1 left out: not changed" in said
    assert f"written: {out} and {tmp_path / 'more.html'}" in said and (tmp_path / "more.html").exists()
    with pytest.raises(ValueError, match="exists already"):
        main([str(table), "--out", str(out), *options])


def test_settings_name_sources_and_methods_and_options_replace_them(table: Path, tmp_path: Path) -> None:
    settings = tmp_path / "my.yaml"
    settings.write_text(
        f"task: {{type: classification}}\ndata: {{store: memory, train: [{{path: {table}, "
        "augment: {swap: 1.0, copies: 5}}]}\n"
    )
    main([str(settings), "--out", str(tmp_path / "a.jsonl"), "--only_copies"])
    assert {row["origin"]["augmented_by"] for row in read_jsonl(tmp_path / "a.jsonl")} == {"swap"}  # type: ignore[index]
    main([str(settings), "--out", str(tmp_path / "b.jsonl"), "--swap", "0", "--delete", "0.5", "--only_copies"])
    rows = read_jsonl(tmp_path / "b.jsonl")
    assert {row["origin"]["augmented_by"] for row in rows} == {"delete"}  # type: ignore[index]
    assert all(row["output"] in str(row["instruction"]).split() for row in rows)


def test_words_with_capitals_may_change_where_this_is_asked_for(table: Path, tmp_path: Path) -> None:
    table.write_text("text,label\nThe Dull Film Of 1999,war\n")
    thesaurus = ["--synonyms", "1.0", "--thesaurus", str(write_wordnet(tmp_path / "wordnet"))]
    options = [*thesaurus, "--copies", "1", "--data.store", "memory", "--only_copies"]
    main([str(table), "--out", str(tmp_path / "free.jsonl"), *options, "--capitalized"])
    assert [row["instruction"] for row in read_jsonl(tmp_path / "free.jsonl")] == ["The Boring Movie Of 1999"]
    with pytest.raises(ValueError, match="changes none of the first 1 texts"):
        main([str(table), "--out", str(tmp_path / "names.jsonl"), *options])


def test_networks_have_the_protection_that_is_set(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    got = []

    def filler(path: Path, rate: float, config: AugmentConfig) -> Callable[[Sequence[Source]], list[str]]:
        got.append(config)
        return lambda sources: [source.text.replace("Bad", "Poor") for source in sources]

    monkeypatch.setattr("instructrec_jax.augment.MaskFiller", filler)
    table.write_text("text,label\na Bad film,war\n")
    settings = tmp_path / "my.yaml"
    settings.write_text(
        f"task: {{type: classification}}\ndata: {{store: memory, train: [{{path: {table}, "
        "augment: {capitalized: true, protect: [film]}}]}\n"
    )
    options = ["--mask_fill", "0.5", "--fill_with", str(tmp_path), "--only_copies"]
    main([str(settings), "--out", str(tmp_path / "a.jsonl"), *options])
    assert [row["instruction"] for row in read_jsonl(tmp_path / "a.jsonl")] == ["a Poor film"]
    assert got == [AugmentConfig(capitalized=True, protect=["film"])]
    with pytest.raises(ValueError, match="--copies is 0: choose 1 to 100"):
        main([str(settings), "--out", str(tmp_path / "b.jsonl"), *options, "--copies", "0"])


def test_a_page_that_is_there_is_kept(table: Path, tmp_path: Path) -> None:
    (tmp_path / "more.html").write_text("mine")
    with pytest.raises(ValueError, match=r"more\.html exists already"):
        main([str(table), "--out", str(tmp_path / "more.jsonl"), "--swap", "1.0", "--data.store", "memory"])
    assert (tmp_path / "more.html").read_text() == "mine"


def test_a_teacher_that_knows_nothing_leaves_few(table: Path, checkpoint: Path, tmp_path: Path) -> None:
    with open(table, "a") as file:
        file.write("an old film set in space,space\nthe book of crime,crime\n")
    teacher = untrained_run(tmp_path / "run", task_config("classification", tmp_path), checkpoint, 64)
    options = ["--swap", "0.5", "--typos", "0.5", "--copies", "8", "--only_copies", "--data.store", "memory"]
    main([str(table), "--out", str(tmp_path / "all.jsonl"), *options])
    main([str(table), "--out", str(tmp_path / "some.jsonl"), *options, "--teacher", str(teacher)])
    every, some = read_jsonl(tmp_path / "all.jsonl"), read_jsonl(tmp_path / "some.jsonl")
    assert 0 < len(some) < len(every) and all(row in every for row in some)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "a.csv", "--swap", "0.1"], "JSON lines are written, so name a file FILE.jsonl"),
        (["--out", "a.jsonl"], "no method is set"),
        (["--out", "a.jsonl", "--swap", "1.1"], r"data\.train\[0\]\.augment\.swap is 1\.1: a rate is a share"),
        (["--out", "a.jsonl", "--swap", "1.0", "--copies", "0"], r"copies is 0: choose 1 to 100"),
        (["--out", "a.jsonl", "--mask_fill", "0.1"], "--mask_fill and --fill_with belong together"),
        (["--out", "a.jsonl", "--similar", "0.1", "0.2"], "--similar and --vectors belong together"),
        (["--out", "a.jsonl", "--synonyms", "0.1", "--thesaurus", "train.csv"], "is no MyThes file"),
        (["--out", "a.jsonl", "--swap", "0.1", "--task.type", "translation"], "cannot take swap"),
        (["--out", "a.jsonl", "--paraphrase", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be(options: list[str], message: str, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(table.parent)
    with pytest.raises(ValueError, match=message):
        main([str(table), *options, "--data.store", "memory"])
    assert not list(table.parent.glob("a.*"))


def test_a_misspelled_option_is_named(table: Path) -> None:
    with pytest.raises(ConfigError, match="there is no option 'synonims'. Did you mean 'synonyms'"):
        main([str(table), "--out", "a.jsonl", "--synonims", "0.1"])
