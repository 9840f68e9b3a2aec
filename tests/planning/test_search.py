"""Choices of mesh, remat and accumulation, and the order of those that fit, with plans that are made up here."""

from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest

from instructrec_jax.backbones.backbone_config import Remat
from instructrec_jax.planning import search as module
from instructrec_jax.planning.search import MOST, choices, search
from instructrec_jax.runs.config import Config
from instructrec_jax.tasks import ClassificationConfig

CONFIG = Config(task=ClassificationConfig(), accumulation=3)


@pytest.mark.parametrize("chips", [1, 2, 4, 6, 8, 12, 256])
@pytest.mark.parametrize("slices", [1, 2])
def test_every_choice_uses_all_chips_and_changes_nothing_else(chips: int, slices: int) -> None:
    found = [config for _, config in choices(CONFIG, chips, slices)]
    for config in found:
        mesh = config.mesh
        assert mesh.data * mesh.fsdp * mesh.tensor == chips and mesh.context == 1  # type: ignore[operator]
        assert (mesh.dcn_data, mesh.dcn_fsdp) == (slices, 1)
        assert config.accumulation in (3, 6) and config.task is CONFIG.task and config.data is CONFIG.data
    assert {config.backbone.remat for config in found} <= set(get_args(Remat))
    assert (found[0].mesh.fsdp, found[0].accumulation) == (chips, 3)  # the plainest first


def test_names_tell_the_choices_of_one_mesh_apart() -> None:
    found = [(name, str(config.mesh)) for name, config in choices(CONFIG, 8, 1)]
    assert len(set(found)) == len(found)


def test_the_choices_that_are_compiled_have_every_policy() -> None:
    compiled = list(islice(choices(CONFIG, 8, 1), MOST))
    assert {config.backbone.remat for _, config in compiled} == {"none", "dots", "full"}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """Plans by the numbers of their mesh; a mesh with two along `tensor` cannot be planned."""
    seen: list[Config] = []

    def make_plan(config: Config, folder: Path, topology: str, slices: int) -> Any:
        seen.append(config)
        if config.mesh.tensor == 2:
            raise ValueError("rows that the mesh does not divide")
        seconds = float(len(seen) * 7 % 10)
        fits = config.backbone.remat == "full"
        return SimpleNamespace(fits=fits, rank=(seconds, len(seen)), peak=len(seen) * 10**9, seconds=seconds)

    monkeypatch.setattr(module, "make_plan", make_plan)
    monkeypatch.setattr(module, "one_line", lambda plan: f"{plan.seconds}")
    monkeypatch.setattr(module, "topology_devices", lambda topology, slices: [None] * 8 * slices)
    return seen


def test_what_fits_is_ranked_and_what_cannot_be_planned_is_told(
    made: list[Config], capsys: pytest.CaptureFixture[str]
) -> None:
    found = search(CONFIG, Path("x"), "v5e:2x4", 2)
    assert len(made) == MOST and all(config.mesh.dcn_data == 2 for config in made)
    ranks = [plan.rank for plan in found]
    assert ranks == sorted(ranks) and len(found) > 2 and all(plan.fits for plan in found)
    out, err = capsys.readouterr()
    planned = [config for config in made if config.mesh.tensor != 2]
    assert f"{len(found)} of {len(planned)} fit" in out and out.count("remat full") == len(found)
    assert err.count("skipped") == len(made) - len(planned) > 0 and "does not divide" in err
    assert err.count("does not fit") == len(planned) - len(found)


def test_nothing_that_fits_names_the_smallest(made: list[Config], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 2)  # two choices without remat
    with pytest.raises(ValueError, match=r"1\.0 GB.*--topology.*data.batch_rows"):
        search(CONFIG, Path("x"), "v5e:2x4", 1)
