"""The page of `explain --out FILE.html`: shaded words, heat maps, nothing of a text as HTML."""

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import task_cases
from explained_runs import run_of
from PIL import Image
from tiny_pictures import png

from instructrec_jax import explain as verb
from instructrec_jax.explanation.explain import Explanation
from instructrec_jax.explanation.page import page_of
from instructrec_jax.files import read_jsonl, write_jsonl

networks = task_cases.networks  # a fixture


def test_words_are_shaded_and_escaped() -> None:
    e = Explanation("<b>good</b> 好", "gradient", "<i>", None, "logit", 1.5, ("good", "好"), (2.0, -1.0))
    page = page_of([e], None)
    assert "<b>good" not in page and "&lt;<span" in page.replace("&lt;b&gt;", "&lt;<span")
    assert '--for: 80%">good' in page and '--against: 40%">好' in page
    assert "why &#39;&lt;i&gt;&#39;" in page and "<script" not in page and 'class="heat"' not in page


def test_the_verb_draws_heat_maps(networks: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of pictures beside the file of records; their scores are those of the JSON."""
    run = run_of("classification, vit", networks, tmp_path)
    (tmp_path / "a b.png").write_bytes(png(1))
    write_jsonl(tmp_path / "in.jsonl", [{"instruction": "", "image": "a b.png"}])
    for ending in ("html", "jsonl"):
        arguments = [str(run), "--input", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / f"out.{ending}")]
        verb.main([*arguments, "--method", "occlusion"])
    (record,) = read_jsonl(tmp_path / "out.jsonl")
    (patches,) = [np.array(each["patches"]) for each in record["pictures"]]
    assert patches.shape == (2, 2) and patches.any() and record["words"] == [] and "history" not in record
    page = (tmp_path / "out.html").read_text(encoding="utf-8")
    heat = page[page.index('class="heat"') :].partition("</span>")[0]
    largest = int(np.abs(patches).argmax())
    shades = re.findall(r"<i(?: style=\"--(for|against): (\d+)%\")?></i>", heat)
    assert len(shades) == 4 and shades[largest] == ("for" if patches.flat[largest] > 0 else "against", "80")
    file = base64.b64decode(re.search(r"base64,([^']+)'", heat)[1])
    assert Image.open(io.BytesIO(file)).size == (16, 16)
    verb.main([str(run), str(tmp_path / "a b.png"), "--method", "occlusion"])
    assert f"picture 1, row {largest // 2 + 1}, column {largest % 2 + 1}" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"nothing\.png"):
        verb.main([str(run), str(tmp_path / "nothing.png")])
