"""What `auto` does with a `.pt2` on the CPU: times the cheap rewritings of the program, keeps the fastest that agrees.

Only programs with convolutions have candidates. They cost a few runs each, unlike compilation, which takes from ten
seconds to minutes and is left to those who ask for it.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch

from offramp_server.errors import LoadError
from offramp_server.model_spec import ModelSpec
from offramp_server.workers.engines import torch_tensors
from offramp_server.workers.engines.fold import convolutions, fold_batch_norms
from offramp_server.workers.engines.program import ExportedProgram, Program, program_of
from offramp_server.workers.engines.warmup import sample_inputs

AS_EXPORTED = "as exported"
# Largest difference from the program as exported, relative to its largest output.
TOLERANCE = 1e-4
# Instances of one model decide for themselves: a difference that might be noise must not make them differ.
_WORTHWHILE = 0.95
_ROUNDS = 5
# Ends the rounds early: a large model must not start much later for this.
_SECONDS_PER_SIZE = 0.5


@dataclass(frozen=True, slots=True)
class Choice:
    """The program that was chosen and why. `measured`: seconds for a full batch, by candidate."""

    program: Program
    reason: str
    measured: dict[str, float]


def choose_program(exported: ExportedProgram, spec: ModelSpec) -> Choice:
    """Time the candidates at batch size 1 and the largest. Call it with the threads and modes of execution set.

    Raises LoadError where the program as exported cannot be run.
    """
    reference = program_of(exported, spec)
    candidates = _candidates(exported, spec, reference)
    if not candidates:
        return Choice(reference, f"auto: {AS_EXPORTED}, nothing to rewrite", {})
    batches = [_tensors(spec, items) for items in sorted({1, max(1, spec.max_batch_size)})]
    try:
        answers = [_run(reference, batch) for batch in batches]
    except Exception as error:
        raise LoadError(f'model "{spec.name}": a trial run failed: {error}') from error
    agreeing = {name: program for name, program in candidates.items() if _agrees(program, batches, answers)}
    programs = {AS_EXPORTED: reference, **agreeing}
    return _fastest(programs, _seconds(programs, batches))


def _fastest(programs: dict[str, Program], seconds: dict[str, list[float]]) -> Choice:
    share = {name: _share(times, seconds[AS_EXPORTED]) for name, times in seconds.items()}
    name = min(share, key=share.__getitem__)
    if share[name] > _WORTHWHILE:
        name = AS_EXPORTED
    faster = f"{name} takes {share[name]:.2f} of the time of the program as exported"
    reason = f"auto: {AS_EXPORTED}, no rewriting is much faster" if name == AS_EXPORTED else f"auto: {faster}"
    measured = {candidate: times[-1] for candidate, times in seconds.items()}
    return Choice(programs[name], reason, measured)


def _candidates(exported: ExportedProgram, spec: ModelSpec, reference: Program) -> dict[str, Program]:
    if not convolutions(reference.module):
        return {}
    folded, relaid = program_of(exported, spec), program_of(exported, spec)
    candidates = {"batch norms folded": folded} if fold_batch_norms(folded.module) else {}
    fold_batch_norms(relaid.module)
    if _channels_last(relaid.module):
        candidates[", ".join([*candidates, "channels last"])] = relaid
    return candidates


def _channels_last(module: torch.fx.GraphModule) -> bool:
    """Lay out the weights of 2-d convolutions so that activations follow. False where that is no use, or not safe."""
    # A view may not be possible in another layout, for some shapes only: no trial would show it.
    if any(node.target is torch.ops.aten.view.default for node in module.graph.nodes):
        return False
    weights = {str(node.args[1]): node.args[1] for node in convolutions(module)}
    targets = [
        str(node.target) for node in weights.values() if isinstance(node, torch.fx.Node) and node.op == "get_attr"
    ]
    return sum(_relayout(module, target) for target in targets) > 0


def _relayout(module: torch.fx.GraphModule, target: str) -> bool:
    owner_name, _, attribute = target.rpartition(".")
    owner = module.get_submodule(owner_name)
    weight = getattr(owner, attribute)
    if weight.dim() != 4:
        return False
    # A new tensor, not new strides for the old one: other candidates share it.
    weight = weight.detach().contiguous(memory_format=torch.channels_last)
    delattr(owner, attribute)
    owner.register_buffer(attribute, weight)
    return True


def _tensors(spec: ModelSpec, items: int) -> list[torch.Tensor]:
    return [torch_tensors.from_wire(tensor, copy=True) for tensor in sample_inputs(spec, items)]


def _run(program: Program, batch: list[torch.Tensor]) -> list[torch.Tensor]:
    """On a copy: a program may write to its inputs, and answer with them."""
    return program([tensor.clone() for tensor in batch])


def _agrees(program: Program, batches: list[list[torch.Tensor]], answers: list[list[torch.Tensor]]) -> bool:
    try:
        return all(
            _close(result, answer)
            for batch, expected in zip(batches, answers, strict=True)
            for result, answer in zip(_run(program, batch), expected, strict=True)
        )
    except RuntimeError:
        # An operator that does not work in this layout.
        return False


def _close(result: torch.Tensor, answer: torch.Tensor) -> bool:
    if not answer.is_floating_point() or answer.numel() == 0:
        return torch.equal(result, answer)
    finite = answer[answer.isfinite()]
    largest = finite.abs().max().item() if finite.numel() else 0.0
    return torch.allclose(result, answer, rtol=0.0, atol=TOLERANCE * largest, equal_nan=True)


def _seconds(programs: dict[str, Program], batches: list[list[torch.Tensor]]) -> dict[str, list[float]]:
    """The fastest run of each program for each batch. They take turns, because other load on the machine varies."""
    best = {name: [math.inf] * len(batches) for name in programs}
    for at, batch in enumerate(batches):
        started = time.perf_counter()
        for _ in range(_ROUNDS):
            for name, program in programs.items():
                best[name][at] = min(best[name][at], _timed(program, batch))
            if time.perf_counter() - started > _SECONDS_PER_SIZE:
                break
    return best


def _timed(program: Program, batch: list[torch.Tensor]) -> float:
    started = time.perf_counter()
    program(batch)
    return time.perf_counter() - started


def _share(times: list[float], reference: list[float]) -> float:
    """Geometric mean over the batch sizes of the time relative to the reference."""
    ratios = [mine / theirs for mine, theirs in zip(times, reference, strict=True)]
    return math.prod(ratios) ** (1 / len(ratios))
