"""Pictures of an evaluation hold what they are made from, and no foreign text breaks them."""

import base64
import re
import warnings

import pytest

from instructrec_jax.evaluation.charts import chart

pytestmark = pytest.mark.usefixtures("charts_are_drawn")


def svg(image: str) -> str:
    found = re.search(r'base64,([^"]+)"', image)
    assert found is not None
    return base64.b64decode(found.group(1)).decode()


def test_pictures_are_drawn_and_the_same_each_time() -> None:
    data = {"labels": ["a$b", "<i>", "长"], "counts": [[3, 0, 1], [0, 0, 0], [0, 2, 5]]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = chart("confusion, unseen", data)
    assert "长" in svg(image) and "&lt;i&gt;" in svg(image) and "<i>" not in svg(image)
    assert image == chart("confusion, unseen", data) and 'alt="Confusion, unseen"' in image and "<svg" in svg(image)
    many = {
        "labels": [f"label {n}" for n in range(90)],
        "counts": [[int(a == b) for a in range(90)] for b in range(90)],
    }
    assert "<svg" in svg(chart("confusion (intent)", many))
    bins = [{"low": 0.4, "high": 0.5, "cases": 3, "confidence": 0.45, "accuracy": 0.66}]
    assert "<svg" in svg(chart("calibration", {"bins": bins}))
    assert chart("something else", {}) == ""
