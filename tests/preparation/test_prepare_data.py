"""A prepared folder is written as a whole, or what stood there stays. (The verb is tested in test_prepare.py.)"""

from pathlib import Path

import pytest

from instructrec_jax.preparation.prepare_data import PrepareConfig, check_target, prepare, whole_or_nothing
from instructrec_jax.preparation.readers import BadLines


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_folder_appears_complete(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"

    def write(folder: Path) -> str:
        assert not out.exists() and folder.parent == out.parent
        (folder / "card.json").write_text("{}")
        return "card"

    assert whole_or_nothing(out, write) == "card"
    assert names(out) == ["card.json"] and names(out.parent) == ["out"]


def test_an_older_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old.txt").touch()
    whole_or_nothing(out, lambda folder: (folder / "new.txt").touch())
    assert names(out) == ["new.txt"] and names(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [ValueError("bad line"), KeyboardInterrupt(), SystemExit(1)])
def test_what_stood_there_stays_if_writing_fails(error: BaseException, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old.txt").write_text("mine")

    def write(folder: Path) -> None:
        (folder / "new.txt").touch()
        raise error

    with pytest.raises(type(error)):
        whole_or_nothing(out, write)
    assert (out / "old.txt").read_text() == "mine" and names(tmp_path) == ["out"]


def test_only_prepared_data_are_overwritten(tmp_path: Path) -> None:
    check_target(tmp_path / "new", overwrite=False)
    for overwrite, named in ((False, "--overwrite"), (True, "card.json")):
        with pytest.raises(ValueError, match=named):
            check_target(tmp_path, overwrite)
    (tmp_path / "card.json").touch()
    check_target(tmp_path, overwrite=True)
    with pytest.raises(ValueError, match="--overwrite"):
        check_target(tmp_path, overwrite=False)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"on_bad_line": "ignore"}, "on_bad_line"),
        ({"split": "loo"}, "split"),
        ({"candidates": ["uni0"]}, "uni0"),
        ({"languages": ["fr"]}, "languages"),
    ],
)
def test_settings_are_checked_before_any_data_are_read(
    settings: dict[str, object], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(self: PrepareConfig, bad: BadLines) -> object:
        raise AssertionError("the data were read")

    monkeypatch.setattr(PrepareConfig, "read", read)
    with pytest.raises(ValueError, match=named):
        prepare(PrepareConfig(source="x", out=str(tmp_path / "out"), **settings))  # type: ignore[arg-type]
    assert names(tmp_path) == []
