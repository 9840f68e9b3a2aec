from pathlib import Path

import pytest
from tiny_runs import changed, tiny_run

from instructrec_jax.runs.config import ConfigError
from instructrec_jax.tasks.search_space import Options, Range
from instructrec_jax.tuning.space import default_space, own_values, read_space, with_settings


def test_the_space_of_a_task(checkpoint: Path, tmp_path: Path) -> None:
    for kind in ("classification", "sequence", "retrieval"):
        config = tiny_run(kind, checkpoint, tmp_path)
        space = default_space(config)
        own = own_values(config, space)
        assert own is None or own["optimizer.learning_rate"] == 3e-3
        for name, entry in space.items():  # the ends of each range are settings that exist
            for value in entry.values if isinstance(entry, Options) else (entry.low, entry.high):
                assert own_values(with_settings(config, {name: value}), {name: entry}) == {name: value}
    unset = changed(tiny_run("classification", checkpoint, tmp_path), optimizer__learning_rate=None)
    space = default_space(unset)
    assert space["optimizer.learning_rate"] == Range(5e-6, 5e-4, log=True)
    assert own_values(unset, space) == {"optimizer.learning_rate": pytest.approx(5e-5), "optimizer.weight_decay": 0.01}
    assert default_space(changed(unset, lora__rank=2))["optimizer.learning_rate"] == Range(2e-5, 2e-3, log=True)


def test_a_space_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(
        "optimizer.learning_rate: {low: 1e-5, high: 1e-3, log: true}\ntask.dropout: [0.1, 0.3]\n"
        "lora.rank: {low: 2, high: 16}\nlora.targets: [[q_proj], [q_proj, v_proj]]\n"
    )
    assert read_space(file) == {
        "optimizer.learning_rate": Range(1e-5, 1e-3, log=True),
        "task.dropout": Options((0.1, 0.3)),
        "lora.rank": Range(2, 16),
        "lora.targets": Options((["q_proj"], ["q_proj", "v_proj"])),
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must list settings"),
        ("[1]", "must list settings"),
        ("task.dropuot: [0.1, 0.2]", "task.dropout"),
        ("run_dir: [a, b]", "run_dir is the same in all trials"),
        ("evaluation.every: [1, 2]", "evaluation.every is the same in all trials"),
        ("task.dropout: 0.1", "should be {low"),
        ("task.dropout: [0.1]", "at least two different values"),
        ("task.dropout: [0.1, 0.1]", "at least two different values"),
        ("task.dropout: {low: 0.1, hihg: 0.2}", "should be {low"),
        ("task.dropout: {low: 0.1, high: a}", "should be numbers"),
        ("task.dropout: {low: 0.1, high: .inf}", "should be numbers"),
        ("task.dropout: {low: 0.2, high: 0.1}", "should be below high"),
        ("task.dropout: {low: 0, high: 0.1, log: true}", "above 0"),
        ("task.dropout: {low: 0.1, high: 0.2, log: 1}", "true or false"),
    ],
)
def test_what_is_no_space(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said) as error:
        read_space(tmp_path / "space.yaml")
    assert "space.yaml" in str(error.value)
