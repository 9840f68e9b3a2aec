"""Plan a training run on devices that are not present: `python -m instructrec_jax.plan --topology v5p:4x4x4`.

    plan --topology v5e:4x4 --config_path X       the training step of X, compiled for 16 chips
    plan --topology v5p:4x4x4 --slices 2 ...      two slices (needs --mesh.dcn_data 2)
    plan --topology cpu:8                         virtual CPU devices
    plan --topology v5p:4x4x4 --backbone.path llama2-7b --task.type language_model ...    an architecture by its name
    plan --topology ... --search                  try mesh sizes, remat and accumulation; rank what fits
    plan --topology ... --items 100000000         also the index of a catalogue, sharded over the chips

Nothing is loaded: parameters and data are shapes. Memory is the compiler's own figure; collectives and bytes come from
the compiled program, loops multiplied by their trip counts; FLOPs come from a formula (`training/flops.py`).
"""

import os
import re
import sys

from instructrec_jax.answering.arguments import parse_with_settings, plan_parser
from instructrec_jax.runs.config import DEFAULT, Config, main_guard, parse, read_first

if __name__ == "__main__":  # before the imports below, which take a second or two
    read_first(lambda args: parse_with_settings(plan_parser(__doc__), args))

import jax

from instructrec_jax.adapters.checkpoint_heads import vector_size
from instructrec_jax.backbones.folder import read_config, read_pooling
from instructrec_jax.distributed.chips import topology_devices
from instructrec_jax.distributed.mesh import make_mesh
from instructrec_jax.planning.compiled_step import planning_folder
from instructrec_jax.planning.index import plan_index, show_index
from instructrec_jax.planning.plan_report import Plan, make_plan, show
from instructrec_jax.planning.search import search


def plan(config: Config, topology: str, slices: int = 1) -> Plan:
    """Compiles the training step of `config` for a topology and measures it; see `planning.plan_report.Plan`.

    Raises ValueError for an unknown topology, and for settings that training would refuse.
    """
    with planning_folder(config.backbone.path) as (folder, _):
        return make_plan(config, folder, topology, slices)


def plan_on_cpu(topology: str) -> None:
    """Makes jax compile on this machine's CPU, because the planned devices need not be present; cpu:N makes N devices.

    Must run before jax initializes its devices.
    """
    if not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", "cpu")
    virtual = re.fullmatch(r"cpu:(\d+)", topology)
    if virtual and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", int(virtual[1]))


def main(args: list[str]) -> None:
    options, rest = parse_with_settings(plan_parser(__doc__), args)
    plan_on_cpu(options.topology)
    named = [arg.split("=")[0] for arg in rest]
    if "--backbone.path" in named and "--config_path" not in named and "--task.type" not in named:
        rest = ["--task.type", "language_model", *rest]
    config = parse(Config, rest, default=None if {"--backbone.path", "--config_path"} & set(named) else DEFAULT)
    with planning_folder(config.backbone.path) as (folder, stands_in):
        if stands_in:
            print("note: no tokenizer found; a placeholder is used, which changes no shape", file=sys.stderr)
        if options.search:
            search(config, folder, options.topology, options.slices)
        else:
            print(show(make_plan(config, folder, options.topology, options.slices)))
        if options.items is not None:
            mesh = make_mesh(config.mesh, topology_devices(options.topology, options.slices))
            own = read_pooling(folder).projection
            width = vector_size(getattr(config.task, "projection", None), own) or read_config(folder).hidden_size
            print(f"\n{show_index(plan_index(options.items, width, mesh))}")


if __name__ == "__main__":
    main_guard(main)
