"""An audit on a terminal and as a page: everything is escaped, and nothing is requested."""

from dataclasses import replace

from report_files import EVIL

from instructrec_jax.labeling.audit import Audit, LabelAudit, Planted
from instructrec_jax.labeling.audit_report import page, sentence, shown, summary
from instructrec_jax.labeling.findings import MEANING, Finding

LABEL = Finding("label", "train", 3, EVIL, EVIL, EVIL, EVIL, True, 0.01, EVIL, 0.9)
LEAK = Finding("leak", "train", 4, "", "a.jsonl, line 5", EVIL, "b", True, other=EVIL, other_label="c", similarity=0.91)
AUDIT = Audit(
    {"train": 1200, "test": 7},
    [LEAK, LABEL, replace(LABEL, number=5)],
    [],
    LabelAudit("TF-IDF of words", 0.875, 0.031, [(EVIL, "b", 3)], Planted(2, 50, 60, 45)),
)


def test_the_page_is_safe() -> None:
    html = page(AUDIT, EVIL)
    assert "<script" not in html and "<img" not in html and "\x1b" not in html and "\x00" not in html
    assert "default-src 'none'" in html and "&lt;script&gt;" in html
    assert "recall 0.900" in html and "precision at least 0.750" in html and "estimated 3.1% are wrong" in html
    assert all(f"{kind}: {meaning}" in html for kind, meaning in MEANING.items())


def test_the_terminal_is_safe() -> None:
    text = shown(AUDIT)
    assert "\x1b" not in text and "\x00" not in text and all(len(line) <= 100 for line in text.split("\n"))
    assert "0 of 1,200 training examples stay." in text
    assert [line.split() for line in text.split("\n") if line.startswith(("leak ", "label "))] == [
        ["leak", "1", "1"],
        ["label", "2", "2"],
    ]


def test_sentences() -> None:
    label = replace(LABEL, text="my card", label="a", suggested="b")
    assert sentence(label) == "'my card' (a): rather b, 0.90 to 0.01"
    assert sentence(replace(LEAK, text="my card", other="test t-1")) == (
        "train a.jsonl, line 5 'my card' (b): 0.91 like test t-1 (c)"
    )


def test_the_numbers_as_json() -> None:
    found = summary(AUDIT)
    assert found["findings"]["label"] == {"found": 2, "dropped": 2}
    assert found["labels"]["planted"]["recall"] == 0.9
    assert summary(replace(AUDIT, labels=None, unaudited="why"))["labels"] == "why"
