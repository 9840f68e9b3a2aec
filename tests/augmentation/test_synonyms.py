"""Synonyms of tiny WordNet and MyThes files, and files that are neither."""

from pathlib import Path

import pytest
from tiny_thesauri import write_mythes, write_wordnet

from instructrec_jax.augmentation import synonyms as module
from instructrec_jax.augmentation.synonyms import open_thesaurus


def test_a_word_has_the_synonyms_of_its_most_frequent_meaning(tmp_path: Path) -> None:
    found = open_thesaurus(str(write_wordnet(tmp_path / "wordnet")))
    assert found.synonyms("good") == ("fine",)  # the adjective; the noun comes first in the files
    assert found.synonyms("film") == ("movie",)  # of one word, and not of the second meaning, nor of the verb
    assert found.synonyms("dull") == ("boring",)  # without the mark of its syntax
    assert found.synonyms("old") == found.synonyms("unheard") == ()


def test_wordnet_without_counts_takes_the_first_part_of_speech(tmp_path: Path) -> None:
    assert open_thesaurus(str(write_wordnet(tmp_path / "plain", counts=False))).synonyms("good") == ("goodness",)


@pytest.mark.parametrize("encoding", ["UTF-8", "ISO8859-1"])
def test_mythes(tmp_path: Path, encoding: str) -> None:
    file = write_mythes(tmp_path / "th_xx.dat", encoding)
    for path in (file, file.with_suffix(".idx"), tmp_path):
        found = open_thesaurus(str(path))
        assert found.synonyms("good") == ("fine",)  # of the first meaning, one word, no related or opposite term
        assert found.synonyms("schön") == ("hübsch",)
        assert found.synonyms("book") == found.synonyms("fine") == ()


def refused(path: Path) -> str:
    with pytest.raises(ValueError) as error:
        open_thesaurus(str(path))
    return str(error.value)


def test_files_that_are_no_thesaurus_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(tmp_path / "nothing") == (
        f"augment.thesaurus: {tmp_path / 'nothing'} does not exist: name a folder of WordNet (index.noun ...) or a "
        "MyThes .dat file."
    )
    assert "is no thesaurus. WordNet has index.noun, MyThes th_LANGUAGE.dat." in refused(tmp_path)
    text = tmp_path / "words.txt"
    text.write_text("good, fine\n")
    assert "is no MyThes file: its first line 'good, fine' names no encoding." in refused(text)
    text.write_bytes(b"\x7fELF\x02\x00\x00 a program\n")
    assert "is no MyThes file: its first line '\\x7fELF" in refused(text)
    (tmp_path / "cut.dat").write_text("UTF-8\ngood fine\n")
    assert "is no MyThes file: line 2 should be word|meanings, but is 'good fine'." in refused(tmp_path / "cut.dat")
    (tmp_path / "blank.dat").write_text("")
    assert "blank.dat is empty" in refused(tmp_path / "blank.dat")
    (tmp_path / "none.dat").write_text("UTF-8\n")
    assert "none.dat lists no words" in refused(tmp_path / "none.dat")
    for name in ("th_a.dat", "th_b.dat"):
        write_mythes(tmp_path / name)
    assert "has several thesauri (th_a.dat, th_b.dat): name one of these files" in refused(tmp_path)
    monkeypatch.setattr(module, "WORDNET", tmp_path / "usr")
    module.open_thesaurus.cache_clear()
    with pytest.raises(ValueError, match="install Debian's wordnet-base, or name a folder"):
        open_thesaurus("")
    module.open_thesaurus.cache_clear()


def test_damaged_wordnets_are_named(tmp_path: Path) -> None:
    lacking = write_wordnet(tmp_path / "a")
    (lacking / "data.adv").unlink()
    assert refused(lacking) == f"augment.thesaurus: the WordNet folder {lacking} lacks data.adv."
    other = write_wordnet(tmp_path / "b")
    (other / "index.adj").write_text("good a\n")
    assert "index.adj: line 1 is no entry of a WordNet index: 'good a'." in refused(other)
    moved = write_wordnet(tmp_path / "c")
    (moved / "data.adj").write_text(" " + (moved / "data.adj").read_text())
    with pytest.raises(ValueError, match="data.adj has no meaning at byte .*: its index is of another one"):
        open_thesaurus(str(moved)).synonyms("good")
