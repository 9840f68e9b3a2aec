"""scripts/planted_cues.py: texts whose cue alone decides the label, and the share of texts whose cue is first."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from instructrec_jax.explanation.explain import Explanation
from instructrec_jax.files import read_json, read_jsonl

PATH = Path(__file__).parents[1] / "scripts" / "planted_cues.py"
spec = importlib.util.spec_from_file_location("planted_cues", PATH)
assert spec is not None and spec.loader is not None
planted_cues = importlib.util.module_from_spec(spec)
spec.loader.exec_module(planted_cues)


def test_the_cue_alone_decides() -> None:
    rows = planted_cues.planted(400, 0.25, np.random.default_rng(0))
    for row in rows:
        cues = [word for word in row["instruction"].split() if word in planted_cues.CUES]
        assert cues == ([row["cue"]] if row["cue"] else [])
        assert row["output"] == planted_cues.CUES.get(row["cue"], "none")
    assert 60 < sum(not row["cue"] for row in rows) < 140
    fillers = [{word for word in row["instruction"].split() if word not in planted_cues.CUES} for row in rows]
    for word in planted_cues.FILLERS:  # says nothing of the label
        shares = [
            np.mean([word in own for own, row in zip(fillers, rows, strict=True) if row["output"] == label])
            for label in (*planted_cues.CUES.values(), "none")
        ]
        assert np.ptp(shares) < 0.35


def test_cues_are_counted_and_shown() -> None:
    def explained(*scores: float | None) -> Explanation:
        return Explanation("x", "occlusion", "north", None, "logit", 1.0, ("the", "copper"), scores)

    said = [explained(0.1, 0.2), explained(-0.3, -0.2), explained(0.5, 0.4), explained(None, -1.0)]
    assert planted_cues.first(said, ["copper"] * 4) == 3
    row = {"first": (0.955, 0.9, 0.98), "texts": 200}
    table = planted_cues.table({"all": {"occlusion": row | {"beats_random": True}, "x": row | {"beats_random": False}}})
    assert "| all | occlusion | 95.5% | 90.0% to 98.0% | yes |" in table and "no, left out" in table


@pytest.mark.slow
def test_every_method_that_is_shown_finds_the_cue(tmp_path: Path) -> None:
    """At least 95%, where texts without a cue have a label of their own; those beside random orders are left out."""
    out = tmp_path / "planted"
    planted_cues.main(["--out", str(out), "--texts", "60"])
    found = read_json(out / "planted_cues.json", dict)
    assert {len(read_jsonl(out / str(n) / "test.jsonl")) for n in range(2)} == {60}
    shown = {name: each["first"][0] for name, each in found['with "none"'].items() if each["beats_random"]}
    assert {"occlusion", "integrated gradients"} <= shown.keys() and min(shown.values()) >= 0.95
    assert found["cues only"]["occlusion"]["first"][0] >= 0.9  # 98% of 200 texts
    with pytest.raises(SystemExit, match="exists already"):
        planted_cues.main(["--out", str(out)])
