"""Memory, FLOP and time of a planned training step per chip, compared with the chip's limits."""

from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from instructrec_jax.distributed.chips import Chip, chip_of, topology_devices
from instructrec_jax.distributed.mesh import DeviceMesh, make_mesh
from instructrec_jax.planning import hlo
from instructrec_jax.planning.compiled_step import CompiledStep, compile_step
from instructrec_jax.runs.config import Config
from instructrec_jax.training import flops
from instructrec_jax.training.robust_training import passes
from instructrec_jax.training.semi_supervised import RememberingState
from instructrec_jax.training.state import merge_params

GB = 1e9
NEXT_REMAT = {"none": "attention", "attention": "dots", "dots": "full", "offload": "full"}


@dataclass(frozen=True)
class Plan:
    """Costs of a step, in bytes and FLOP per chip unless stated otherwise.

    Attributes:
      mesh: axis -> size.
      parameters, optimizer, buffers: bytes of the state.
      teachers: bytes of the networks of `distil.teachers`, and of semi_supervised.teacher_decay.
      temporaries: other bytes of the program: activations, gradients, gathered parameters.
      peak: state + batch + temporaries, which must fit into HBM.
      model_flops, hardware_flops: without and with recomputation by remat.
      traffic: bytes read and written in HBM.
      collectives: of the program, including loops; `between_slices`: bytes sent from slice to slice.
      seconds: times of compute, HBM, links and the network between slices, each alone at the chip's peak; empty for a
        chip without known peaks.
      compiler_seconds: the TPU compiler's estimate plus attention kernels at the chip's peak, without waiting for other
        chips; None without an estimate.
      advice: settings that reduce the memory, if the step does not fit.
    """

    topology: str
    chips: int
    chip: Chip | None
    mesh: dict[str, int]
    tokens: int
    compile_seconds: float
    parameters: int
    teachers: int
    optimizer: int
    buffers: int
    temporaries: int
    peak: int
    model_flops: float
    hardware_flops: float
    traffic: int
    collectives: hlo.Traffic
    between_slices: int
    seconds: dict[str, float]
    compiler_seconds: float | None
    advice: list[str]

    @property
    def fits(self) -> bool:
        return self.chip is None or self.peak <= self.chip.hbm

    @property
    def step_seconds(self) -> float:
        """The largest of `seconds`: the step time if everything overlaps."""
        return max(self.seconds.values(), default=float("nan"))

    @property
    def rank(self) -> tuple[float, float]:
        """Sort key, smaller is better: the sum of `seconds`, since not everything overlaps; then memory."""
        return sum(self.seconds.values()), self.peak

    @property
    def mfu(self) -> float:
        """Model FLOPs utilization: model FLOP / step_seconds / peak FLOP/s."""
        return self.model_flops / self.step_seconds / self.chip.flops if self.chip else float("nan")


def _bytes(arrays: object, shardings: object) -> int:
    """Bytes of arrays on one device."""
    return sum(
        int(np.prod(where.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf, where in zip(jax.tree.leaves(arrays), jax.tree.leaves(shardings), strict=True)
    )


def make_plan(config: Config, folder: Path, topology: str, slices: int) -> Plan:
    """Compiles the step and measures it. Raises ValueError as `topology_devices` and `compile_step`."""
    devices = topology_devices(topology, slices)
    if slices > 1 and config.mesh.dcn_data * config.mesh.dcn_fsdp != slices:
        raise ValueError(
            f"with --slices {slices}, mesh.dcn_data x mesh.dcn_fsdp must be {slices}, but is "
            f"{config.mesh.dcn_data} x {config.mesh.dcn_fsdp}: set --mesh.dcn_data {slices}."
        )
    mesh = make_mesh(config.mesh, list(devices))
    step = compile_step(config, folder, mesh)
    return measure(step, config, topology, mesh, slices)


def measure(step: CompiledStep, config: Config, topology: str, mesh: DeviceMesh, slices: int) -> Plan:
    """The plan of a compiled step."""
    chips, chip = mesh.devices.size, chip_of(mesh.devices.flat[0])
    memory = step.compiled.memory_analysis()
    assert memory is not None  # every compiler of XLA knows it
    program = hlo.parse(text := step.compiled.as_text() or "", unbounded=step.loss_chunks)
    moved = hlo.collectives(program, per_slice=chips // slices)
    tree = merge_params(step.state.params, step.state.frozen)
    learned = filter(None, (*[step.texts] * passes(config.robust_training), step.views))
    counted = [flops.step_flops(tree, step.is_frozen, step.network, texts, tied=step.tied) for texts in learned]
    kernel, remat = "splash_mha" in text, config.backbone.remat
    attention_done = sum(each.attention_with(remat, kernel=kernel) for each in counted) / chips
    taught = sum(
        flops.forward_flops(each.params, each.source.config, step.texts, tied=step.tied) for each in step.teachers
    )
    taught += 0 if step.views is None else flops.forward_flops(tree, step.network, step.views, tied=step.tied)
    hardware = (sum(each.products_with(remat) for each in counted) + taught) / chips + attention_done
    traffic, cycles = hlo.memory_traffic(program), hlo.estimated_cycles(program)

    def held(part: str) -> int:
        return _bytes(getattr(step.state, part), getattr(step.shardings, part))

    arguments, outputs = memory.argument_size_in_bytes, memory.output_size_in_bytes
    peak = arguments + outputs - memory.alias_size_in_bytes + memory.temp_size_in_bytes
    crossing = sum(moved.between_slices.values())
    seconds = {}
    if chip is not None:
        seconds = {
            "compute": hardware / chip.flops,
            "HBM": traffic / chip.hbm_speed,
            "links": (sum(moved.sent.values()) - crossing) / chip.link_speed,
        } | ({"slices": crossing / chip.dcn_speed} if slices > 1 else {})
    expected = None
    if chip is not None and chip.clock and cycles:
        expected = cycles / chip.clock + (attention_done / chip.flops if kernel else 0)
    found = Plan(
        topology=topology if slices == 1 else f"{slices} x {topology}",
        chips=chips,
        chip=chip,
        mesh=dict(mesh.shape),
        tokens=step.texts.tokens + step.texts.target_tokens + (0 if step.views is None else 2 * step.views.tokens),
        compile_seconds=step.seconds,
        parameters=held("params") + held("frozen"),
        teachers=_teachers(step),
        optimizer=held("optimizer"),
        buffers=held("buffers"),
        temporaries=memory.temp_size_in_bytes,
        peak=peak,
        model_flops=(sum(each.model for each in counted) + taught) / chips,
        hardware_flops=hardware,
        traffic=traffic,
        collectives=moved,
        between_slices=crossing,
        seconds=seconds,
        compiler_seconds=expected,
        advice=[],
    )
    if not found.fits:
        found.advice.extend(what_to_change(found, config))
    return found


def _teachers(step: CompiledStep) -> int:
    """Bytes of the networks that the loss reads beside the one that is trained, on one device."""
    frozen = sum(_bytes(each.params, each.shardings) for each in step.teachers)
    if isinstance(step.state, RememberingState) and isinstance(step.shardings, RememberingState):
        return frozen + _bytes(step.state.teacher, step.shardings.teacher)
    return frozen


def what_to_change(plan: Plan, config: Config) -> list[str]:
    """Settings that reduce the memory of a step, the most effective first."""
    state, advice = plan.parameters + plan.optimizer, []
    spare = plan.mesh["data"]
    if state > plan.temporaries and spare > 1:
        advice.append(
            f"--mesh.data 1 --mesh.fsdp {plan.mesh['fsdp'] * spare} (shards parameters and moments over more chips)"
        )
    if config.backbone.remat in NEXT_REMAT and plan.temporaries > 0.2 * plan.peak:
        advice.append(f"--backbone.remat {NEXT_REMAT[config.backbone.remat]} (keeps fewer activations)")
    advice.append(f"--accumulation {2 * config.accumulation} (halves the activations)")
    if config.optimizer.moments == "float32":
        advice.append("--optimizer.moments bfloat16 (halves the moments)")
    if state > plan.peak / 2 and not config.lora.on:
        advice.append("--lora.rank 16 (no moments and gradients of the backbone)")
    if plan.mesh["fsdp"] * plan.mesh["tensor"] == plan.chips:
        advice.append("a larger topology, or fewer rows in --data.batch_rows")
    return advice


def show(plan: Plan) -> str:
    """The plan as text for the terminal."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    capacity = f" of {plan.chip.hbm / GB:.1f}" if plan.chip else ""
    lines = [
        f"{plan.topology}: {plan.chips} chips, mesh {mesh}; {plan.tokens:,} tokens per step; compiled in "
        f"{plan.compile_seconds:.0f} s",
        "",
        "HBM per chip, GB",
        f"  parameters        {plan.parameters / GB:10.2f}",
        *([f"  teachers          {plan.teachers / GB:10.2f}"] if plan.teachers else []),
        f"  optimizer         {plan.optimizer / GB:10.2f}",
        *([f"  buffers           {plan.buffers / GB:10.2f}"] if plan.buffers else []),
        f"  temporaries       {plan.temporaries / GB:10.2f}   (activations, gradients, gathered parameters)",
        f"  peak              {plan.peak / GB:10.2f}{capacity}{'' if plan.fits else '   DOES NOT FIT'}",
        "",
        "Step, per chip",
        f"  model TFLOP       {plan.model_flops / 1e12:10.2f}   (per parameter and token: 2 forward, 4 backward)",
        f"  with remat        {plan.hardware_flops / 1e12:10.2f}",
        f"  HBM traffic, GB   {plan.traffic / GB:10.2f}",
    ]
    for kind in plan.collectives.counts:
        moved = plan.collectives
        lines.append(
            f"  {kind:18}{moved.sizes[kind] / GB:10.2f} GB in {moved.counts[kind]:,}, {moved.sent[kind] / GB:.2f} sent"
        )
    if plan.seconds and plan.chip is not None:
        parts = ", ".join(f"{name} {value:.3f}" for name, value in plan.seconds.items())
        lines += [
            "",
            f"Seconds, each alone at peak: {parts}",
            f"  roofline          {plan.step_seconds:10.3f} s if everything overlaps, "
            f"{sum(plan.seconds.values()):.3f} s if nothing does",
            f"  MFU               {plan.mfu:10.0%}   = model FLOP / roofline / {plan.chip.flops / 1e12:.0f} TFLOP/s"
            f"; {plan.tokens / plan.step_seconds:,.0f} tokens/s",
        ]
    if plan.compiler_seconds:
        lines.append(f"  compiler's estimate{plan.compiler_seconds:9.3f} s, without waiting for other chips")
    if plan.advice:
        lines += ["", "To make it fit, try one of:", *(f"  {line}" for line in plan.advice)]
    return "\n".join(lines)


def one_line(plan: Plan) -> str:
    mesh = " ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1) or "one chip"
    return f"{plan.peak / GB:8.1f} GB  {plan.step_seconds:8.3f} s  MFU {plan.mfu:4.0%}  {mesh}"
