"""Searches mesh sizes, remat and accumulation, which do not change the result, and ranks the plans that fit."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from instructrec_jax.backbones.backbone_config import Remat
from instructrec_jax.distributed.chips import topology_devices
from instructrec_jax.planning.plan_report import Plan, make_plan, one_line
from instructrec_jax.runs.config import Config

MOST = 24  # compilations, each of which takes seconds to minutes


def choices(config: Config, chips: int, slices: int) -> Iterator[tuple[str, Config]]:
    """(description, settings): fsdp over all chips or split with tensor or data, each with several remat policies."""
    meshes = [(1, chips, 1)]  # data, fsdp, tensor
    meshes += [(1, chips // t, t) for t in (2, 4, 8) if chips % t == 0 and chips > t]
    meshes += [(d, chips // d, 1) for d in (2, 4, chips) if chips % d == 0 and d <= chips]
    policies: tuple[Remat, ...] = ("none", "dots", "full")
    for accumulation in (config.accumulation, 2 * config.accumulation):
        for remat in policies:
            for data, fsdp, tensor in meshes:
                mesh = replace(config.mesh, data=data, fsdp=fsdp, tensor=tensor, context=1, dcn_data=slices, dcn_fsdp=1)
                name = f"remat {remat}, accumulation {accumulation}"
                backbone = replace(config.backbone, remat=remat)
                yield name, replace(config, mesh=mesh, backbone=backbone, accumulation=accumulation)


def search(config: Config, folder: Path, topology: str, slices: int) -> list[Plan]:
    """Compiles up to MOST choices; prints each one, then those that fit, the fastest first (`Plan.rank`)."""
    chips = len(topology_devices(topology, slices)) // slices
    found: list[tuple[Plan, str]] = []
    for number, (name, chosen) in enumerate(choices(config, chips, slices)):
        if number == MOST:
            break
        try:
            plan = make_plan(chosen, folder, topology, slices)
        except ValueError as error:  # such as rows that the mesh does not divide
            print(f"  skipped: {name}, {chosen.mesh}: {error}", file=sys.stderr)
            continue
        found.append((plan, name))
        print(f"  {one_line(plan)}  {name}{'' if plan.fits else '  (does not fit)'}", file=sys.stderr)
    fitting = sorted((each for each in found if each[0].fits), key=lambda each: each[0].rank)
    if not fitting:
        smallest = min((plan.peak for plan, _ in found), default=0)
        raise ValueError(
            f"none of {len(found)} choices fits; the smallest needs {smallest / 1e9:.1f} GB per chip. Use a larger "
            "--topology, fewer rows (data.batch_rows), or LoRA (lora.rank)."
        )
    print(f"{len(fitting)} of {len(found)} fit, the fastest first:")
    for plan, name in fitting:
        print(f"  {one_line(plan)}  {name}")
    return [plan for plan, _ in fitting]
