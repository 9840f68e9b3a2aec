"""Untrained runs of the cases of `task_cases`, to be explained."""

from pathlib import Path
from typing import Any

from helpers import task_config
from task_cases import CASES, settings_of
from tiny_runs import untrained_run


def run_of(name: str, networks: Any, folder: Path, **settings: Any) -> Path:
    case = CASES[name]
    task = task_config(name.partition(",")[0], folder / "catalogue", **settings_of(name, networks))
    length = 64 if case.network == "bert" else 128
    return untrained_run(folder / "run", task, networks[case.network, False], length, **settings)
