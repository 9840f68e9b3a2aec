"""The page of `explain --out FILE.html`: shaded words, and nothing of a text as HTML.

Heat maps of pictures are tested in `test_image_runs`.
"""

from instructrec_jax.explanation.explain import Explanation
from instructrec_jax.explanation.page import page_of


def test_words_are_shaded_and_escaped() -> None:
    e = Explanation("<b>good</b> 好", "gradient", "<i>", None, "logit", 1.5, ("good", "好"), (2.0, -1.0))
    page = page_of([e], None)
    assert "<b>" not in page.partition('class="shaded"')[2].partition("<br>")[2] and "&lt;b&gt;" in page
    assert '--for: 80%">good' in page and '--against: 40%">好' in page
    assert "why &#39;&lt;i&gt;&#39;" in page and "<script" not in page and 'class="heat"' not in page


def test_the_history_stands_before_the_words() -> None:
    scores: tuple[float | None, ...] = (1.0,)
    e = Explanation(
        "good", "occlusion", "A", None, "score", 1.5, ("good",), scores, history=(("Old <i>", -2.0), ("New", None))
    )
    page = page_of([e], None)
    assert '--against: 80%">Old &lt;i&gt;</span> · New: <span class="shade" style="--for: 40%">good</span>' in page
