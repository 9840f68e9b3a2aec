import base64
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest
from report_files import EVIL, evaluation, examples

from instructrec_jax.data.media.thumbnails import START
from instructrec_jax.evaluation import report
from instructrec_jax.evaluation.report import write_report
from instructrec_jax.evaluation.tables import format_table
from instructrec_jax.evaluation.terms import terms_in
from instructrec_jax.files import append_jsonl, write_json, write_text

pytestmark = pytest.mark.usefixtures("charts_are_drawn")

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """What a browser would see: elements with their attributes and all text; every tag must be closed."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.open, self.text = [], [], ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


def fill(folder, text="plain", metric="NDCG@10"):
    """A whole run directory whose every free text is `text`."""
    write_json(folder / "summary.json", {"title": text, "facts": {text: text, "Steps": 120}})
    write_json(folder / "evaluation.json", evaluation(text, metric, text) | {"report": text})
    write_json(folder / "examples.json", examples(text))
    write_text(folder / "config.yaml", f"seed: 3\nname: {text}\n".replace("\ud83d", "?"))  # YAML is UTF-8
    for step in range(0, 121, 10):
        row = {"loss": 3 / (step + 1), "learning_rate": 1e-3, "tokens_per_second": 900.0, "seconds": 1.0}
        append_jsonl(folder / "metrics.jsonl", [{"kind": "train", "step": step, **row}])
    append_jsonl(folder / "metrics.jsonl", [{"kind": "train", "step": 130, "loss": None, "learning_rate": 1e-3}])
    scores = {metric: 0.2, "perplexity": 12.5, "seconds": 9.0}
    append_jsonl(folder / "metrics.jsonl", [{"kind": "evaluation", "step": 100, **scores}])
    append_jsonl(folder / "skipped.jsonl", [{"reason": text}, {"reason": "empty"}, {"reason": text}])


def page_of(folder):
    path = write_report(folder)
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_everything_the_run_left_is_shown(tmp_path):
    fill(tmp_path, "Moon (2009)")
    page = page_of(tmp_path)
    for text in (
        "Best NDCG@10: Moon (2009) with 0.3457, 3.5 times the next (popularity, 0.1000)",
        "95% interval",
        "+0.2000 to +0.3000",
        "3 invalid examples skipped",
        "2 × Moon (2009)",
        "The loss was not a finite number in 1 of 14 logged steps.",
        "something in space Moon (2009)",
        "★ target: Moon (2009)",
        "seed: 3",
        "Steps",
    ):
        assert text in page.text, text
    assert "there is no" not in page.text
    alts = [attributes["alt"] for tag, attributes in page.elements if tag == "img"]
    titles = ["Loss", "NDCG@10", "perplexity", "Learning rate", "Tokens per second (padding excluded)"]
    assert [alt.split(" by step")[0] for alt in alts] == titles
    assert "training 0.0248 at step 120" in alts[0]


def test_the_best_of_each_column_is_marked(tmp_path):
    write_json(tmp_path / "evaluation.json", evaluation())
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert re.findall(r'<td [^>]*class="best">\s*([^<\s]*)', html) == ["1.2500", "0.3457"]  # mse: the lower


def test_the_verdict_knows_the_direction_of_a_metric(tmp_path):
    write_json(tmp_path / "evaluation.json", evaluation())
    html = write_report(tmp_path).read_text(encoding="utf-8")
    verdicts = re.findall(r'<td class="word (\w+)">', html)
    assert verdicts == ["better", "worse", "neutral"]


@pytest.mark.parametrize("text", [EVIL, "\ud83d half", "$\\frac{", "_hidden", "映画 🎬", "x" * 5000])
def test_hostile_text_stays_text_and_the_page_stays_alone(tmp_path, text):
    fill(tmp_path, text, metric=text[:60] if text.isascii() else "NDCG@10")
    page = page_of(tmp_path)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form", "svg"}
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        assert not {"href", "srcset", "action"} & set(attributes)
        if "src" in attributes:
            assert attributes["src"].startswith("data:image/svg+xml;base64,")
    policies = [a["content"] for t, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f]", page.text)
    assert text.split("\x1b")[0].replace("\ud83d", "�") in page.text


def test_nothing_is_loaded_from_anywhere(tmp_path):
    fill(tmp_path)
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert "http://" not in html and "https://" not in html and "@import" not in html and "url(" not in html
    for data in re.findall(r"base64,([^\"]+)", html):
        drawing = ElementTree.fromstring(base64.b64decode(data))  # well-formed
        for element in drawing.iter():
            assert not element.tag.endswith(("script", "image", "foreignObject"))
            for name, value in element.attrib.items():
                assert not name.endswith("href") or value.startswith("#")


def test_an_empty_run_directory_says_what_is_missing(tmp_path):
    page = page_of(tmp_path)
    for name in ("evaluation.json", "summary.json", "metrics.jsonl", "examples.json", "config.yaml"):
        assert name in page.text
    assert tmp_path.name in page.text


@pytest.mark.parametrize(
    "missing",
    ["summary.json", "evaluation.json", "metrics.jsonl", "examples.json", "config.yaml", "skipped.jsonl"],
)
def test_any_one_file_may_be_missing(tmp_path, missing):
    fill(tmp_path)
    (tmp_path / missing).unlink()
    page = page_of(tmp_path)
    assert (missing in page.text) == (missing != "skipped.jsonl")


def test_broken_files_and_wrong_folders_are_named(tmp_path):
    write_text(tmp_path / "evaluation.json", "{")
    with pytest.raises(ValueError, match="evaluation.json"):
        write_report(tmp_path)
    with pytest.raises(ValueError, match="nowhere"):
        write_report(tmp_path / "nowhere")


def test_the_same_run_gives_the_same_bytes(tmp_path):
    fill(tmp_path)
    first = write_report(tmp_path).read_bytes()
    assert write_report(tmp_path).read_bytes() == first


def test_a_long_run_keeps_the_report_small(tmp_path):
    rows = [{"kind": "train", "step": s, "loss": s % 7, "learning_rate": s % 11} for s in range(1, 50001)]
    append_jsonl(tmp_path / "metrics.jsonl", rows)
    assert write_report(tmp_path).stat().st_size < 1_000_000


def test_the_report_does_not_slow_down_an_import():
    code = "import instructrec_jax.evaluation.report, sys; print('matplotlib' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def with_parts(name="after tuning"):
    """An evaluation with intervals, more metrics than are shown, and subgroups."""
    result = evaluation(name)
    result["rows"][1]["intervals"] = {"NDCG@10": [0.3, 0.39]}
    result["all_metrics"] = [*result["metrics"], "Gini@10"]
    for row, gini in zip(result["rows"], (0.9, 0.2, 0.5), strict=True):
        row["values"]["Gini@10"] = gini
    part = {"cases": 1234, "metric": "NDCG@10", "low": 0.1, "high": 0.25, "shown": name}
    result["segments"] = [
        part | {"name": f"{name} part {n}", "values": {name: 0.2, "popularity": 0.4}} for n in range(30)
    ]
    return result


def test_intervals_parts_and_further_metrics(tmp_path):
    lines = format_table(with_parts()).splitlines()
    assert "95% interval" in lines[2] and "0.3000 to 0.3900" in next(x for x in lines if x.startswith("after tuning"))
    assert "–" in next(x for x in lines if x.startswith("popularity"))
    assert lines[-1] == "Breakdown by subgroup: NDCG@10 of after tuning: 30 subgroups in the report"
    few = with_parts() | {"segments": with_parts()["segments"][:8]}
    lines = format_table(few).splitlines()
    assert lines[-10] == "Breakdown by subgroup: NDCG@10 of after tuning"
    assert "after tuning part 7" in lines[-1] and "1,234" in lines[-1] and "[0.1000, 0.2500]" in lines[-1]

    fill(tmp_path)
    write_json(tmp_path / "evaluation.json", with_parts(EVIL))
    page = page_of(tmp_path)
    assert "Breakdown by subgroup: NDCG@10" in page.text and page.text.count("1,234") == 30
    assert "0.3000 to 0.3900" in page.text and "All metricsNDCG@10mseGini@10" in page.text.replace("\n", "")
    assert not [element for element, _ in page.elements if element in ("script",)]


def test_the_split_and_baselines_that_were_not_fitted_are_named(tmp_path):
    result = evaluation() | {"split": "validation, which also chose the checkpoint"}
    result["rows"][2]["note"] = "not fitted: no words"
    write_json(tmp_path / "evaluation.json", result)
    page = page_of(tmp_path)
    assert "Results on validation, which also chose the checkpoint" in page.text
    assert "Markov-1: not fitted: no words" in page.text


def test_the_head_says_what_was_done(tmp_path):
    write_json(tmp_path / "summary.json", {"title": "a run", "subtitle": "what & when", "command": "python -m x"})
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert "what &amp; when" in html and "<code>python -m x</code>" in html


def test_subgroups_along_an_axis_are_a_plot_and_a_folded_table(tmp_path):
    result = with_parts()
    axis = {"axis": "training interactions", "metric": "NDCG@10", "cases": 9, "low": 0.1, "high": 0.3, "shown": "tuned"}
    values = {"tuned": 0.2, "a$b": 0.05} | {f"baseline {n}": 0.01 * n for n in range(7)}
    along = [
        axis | {"name": f"items {place}, {among}", "place": place, "among": among, "values": values}
        for among in ("seen phrasings", "unseen phrasings")
        for place in ("0", "1 to 5", "6 to 90")
    ]
    result["segments"] = [*along, along[0] | {"name": "cold users", "axis": "", "place": "", "cases": 1234}]
    write_json(tmp_path / "evaluation.json", result)
    page = page_of(tmp_path)
    alts = [attributes["alt"] for tag, attributes in page.elements if tag == "img"]
    titles = [f"NDCG@10, {among}. tuned by training interactions: " for among in ("seen phrasings", "unseen phrasings")]
    assert alts == [f"{title}0: 0.2000; 1 to 5: 0.2000; 6 to 90: 0.2000" for title in titles]
    assert "Values of the plots" in page.text and "gray" in page.text
    assert page.text.count("items 6 to 90, seen phrasings") == page.text.count("cold users") == 1
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    folded = re.findall(r"<details><summary>Values of the plots</summary>(.*?)</details>", html, re.S)
    assert len(folded) == 1 and folded[0].count("items ") == 6 and "cold users" not in folded[0]


def test_subgroups_without_a_number_are_shown_too(tmp_path):
    """Cases without candidates have none."""
    result = with_parts()
    nothing = {"values": {"tuned": None, "popularity": None}, "low": None, "high": None, "shown": "tuned"}
    along = {"axis": "training interactions", "metric": "NDCG@10", "cases": 9, "among": ""} | nothing
    result["segments"] = [along | {"name": f"items {place}", "place": place} for place in ("0", "1 to 5")]
    write_json(tmp_path / "evaluation.json", result)
    assert "Values of the plot" in page_of(tmp_path).text


def test_each_term_of_the_table_is_explained_once(tmp_path):
    result = evaluation()
    result["rows"] += [{"name": "coKNN-source", "values": {}}]
    result["metrics"] = ["NDCG@10, seen phrasings", "NDCG@10, unseen phrasings"]
    for row, value in zip(result["rows"], (0.1, 0.5, 0.2, 0.3), strict=True):
        row["values"] = {"NDCG@10, seen phrasings": value, "NDCG@10, unseen phrasings": value / 2}
    write_json(tmp_path / "evaluation.json", result)
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert re.findall("<dt>([^<]*)</dt>", html) == [
        "NDCG@k",
        "seen phrasings",
        "unseen phrasings",
        "popularity",
        "Markov-1",
    ]
    assert html.count("Best NDCG@10, ") == 2  # the harder cases are in the headline, too


def test_terms_are_whole_words():
    assert list(terms_in(["unseen phrasings", "macro_f1", "coKNN-source", "hybrid with BM25"])) == [
        "macro_f1",
        "unseen phrasings",
        "BM25",
    ]


@pytest.mark.parametrize(
    ("split", "first"), [("validation, which also chose the checkpoint", (0, 0.1)), ("test", (100, 0.2))]
)
def test_curves_start_before_tuning_where_the_cases_are_the_same(tmp_path, monkeypatch, split, first):
    fill(tmp_path)
    result = evaluation() | {"split": split}
    result["rows"][0]["name"] = "before tuning"
    write_json(tmp_path / "evaluation.json", result)
    curves = {}
    monkeypatch.setattr(report, "line_plot", lambda title, lines, **_: curves.update(lines) or "")
    write_report(tmp_path)
    assert curves["NDCG@10"][0] == first and curves["NDCG@10"][-1] == (100, 0.2)


def test_pictures_are_in_the_page_and_nothing_else_is(tmp_path):
    """Thumbnails of examples, mistakes and nearest pairs; any other source of a picture is left out."""
    fill(tmp_path)
    good = {"name": "/data/a <b>.png", "data": START + "AAAA"}
    evil = {"name": EVIL, "data": "https://evil.example/x.png"}
    shown = {"instruction": good["name"], "wanted": "x", "answers": [], "pictures": [good]}
    both = {
        "instruction": "two?",
        "wanted": None,
        "answers": [],
        "pictures": [good, evil],
        "nearest": [{**good, "hit": True}],
    }
    write_json(tmp_path / "examples.json", [shown, both])
    mistake = {"reference": "cat", "prediction": "dog", "count": 1200, "pictures": [good, evil]}
    write_json(tmp_path / "evaluation.json", evaluation() | {"mistakes": [mistake]})
    page = page_of(tmp_path)
    sources = [attributes["src"] for tag, attributes in page.elements if tag == "img"]
    assert sources.count(good["data"]) == 4 and all(source.startswith("data:image/") for source in sources)
    assert "a <b>.png" in page.text and page.text.count("no picture") == 2
    assert good["name"] not in page.text  # it is shown, so its path is not what was asked
    assert "dog instead of cat" in page.text and "1,200 cases" in page.text and "a <b>.png ★" in page.text
