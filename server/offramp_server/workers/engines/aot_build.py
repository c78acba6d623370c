"""A program compiled by Inductor into packages (AOTInductor), one for each range of batch sizes with code of its own.

torch takes a batch of one for a constant, and asks about the size of others when it chooses kernels: whether a batch
has 16 items decides about convolutions. Compiled ahead of time, such questions narrow the range of a package and
nothing checks it later, so what was asked is read back, and what is left is compiled again.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from offramp_common.differences import largest_difference, largest_value

from offramp_server.errors import LoadError
from offramp_server.model_spec import VARIABLE
from offramp_server.workers.engines.aot_load import open_package
from offramp_server.workers.engines.aot_packages import Manifest, Package, write_manifest
from offramp_server.workers.engines.aot_questions import Questions
from offramp_server.workers.engines.kind import EngineRequest
from offramp_server.workers.engines.parity import tolerance
from offramp_server.workers.engines.program import ExportedProgram, Program, load_exported, move, program_of
from offramp_server.workers.engines.reexport import example_inputs, export_again
from offramp_server.workers.engines.torch_eager import computing_in
from offramp_server.workers.engines.torch_load import TRACING, checked_device
from offramp_server.workers.engines.warmup import telling_inputs

# Frozen weights are packed, and batch norms folded into them. The number of threads is that of the call. A pool of
# compilers has nothing to do, since a package is one C++ file.
_OPTIONS = {"freezing": True, "cpp.dynamic_threads": True, "compile_threads": 1}
_MOST_PACKAGES = 6
# Lengths of variable dimensions with which questions about them are tried.
_PROBES = (2, 3, 5, 8, 16, 33, 64, 127, 128, 512)


def build_packages(request: EngineRequest) -> None:
    """Takes 10 to 60 s, and about 1 GB for the C++ compiler. Raises LoadError."""
    device = checked_device(request.spec, request.device)
    with TRACING, _scratch(request.artifacts):
        torch.set_num_threads(request.threads)
        exported = load_exported(request.spec)
        program = program_of(exported if device.type == "cpu" else move(exported, device), request.spec)
        builder = _Builder(request, program, device)
        packages = tuple(builder.packages())
        write_manifest(request.artifacts, Manifest(packages, tuple(sorted(builder.lent)), program.writes_in_place))


class _Builder:
    def __init__(self, request: EngineRequest, program: Program, device: torch.device) -> None:
        self._spec = request.spec
        self._folder = request.artifacts
        self._program = program
        self._device = device
        self.lent: set[int] = set()

    def packages(self) -> Iterator[Package]:
        """The first for one item, the others for what is left, the largest sizes first."""
        yield self._package(range(1, 2))
        left = range(2, self._spec.max_batch_size + 1)
        for _ in range(_MOST_PACKAGES):
            if left:
                package = self._package(left)
                yield package
                left = range(left[0], package.sizes[0])
        if left:
            raise LoadError(self._failed(f"it has other code for each batch size up to {left[-1]}"))

    def _package(self, sizes: range) -> Package:
        """For the largest of `sizes` and those below it that the same code computes."""
        file = f"batch-{sizes[-1]}.pt2"
        again = export_again(self._program, self._spec, sizes, sizes[-1])
        questions = Questions(again, self._spec.batches)
        self._compile(again, self._folder / file)
        package = Package(file, self._covered(questions, sizes))
        self._try(package)
        return package

    def _compile(self, again: ExportedProgram, path: Path) -> None:
        try:
            # With gradients, it would not freeze.
            with torch.no_grad(), computing_in(self._spec.engine.precision, self._device), warnings.catch_warnings():
                # Inductor's own lowering of quantised layers copies a tensor in a way that torch warns about.
                warnings.filterwarnings("ignore", "To copy construct from a tensor", UserWarning)
                torch._inductor.aoti_compile_and_package(again, package_path=str(path), inductor_configs=_OPTIONS)
        except Exception as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise LoadError(self._failed(reason)) from error

    def _covered(self, questions: Questions, sizes: range) -> tuple[int, ...]:
        covered = list(itertools.takewhile(lambda size: questions.same(size, self._lengths()), reversed(sizes)))
        if not covered:
            raise LoadError(self._failed(f"its code depends on the length of a variable dimension ({questions})"))
        return tuple(reversed(covered))

    def _lengths(self) -> list[int]:
        """Lengths that any variable dimension may have, to try what was asked about it."""
        bounds = [
            bound
            for tensor in self._spec.inputs
            for dim, bound in zip(tensor.dims, tensor.ranges, strict=False)
            if dim == VARIABLE and bound is not None
        ]
        low, high = max((low for low, _ in bounds), default=2), min((high for _, high in bounds), default=_PROBES[-1])
        return sorted({low, min(high, _PROBES[-1]), *(probe for probe in _PROBES if low <= probe <= high)})

    def _try(self, package: Package) -> None:
        """Raises LoadError where it answers otherwise than the program does, at both ends of its range."""
        run = open_package(self._folder / package.file, self._device)
        for size in sorted({package.sizes[0], package.sizes[-1]}):
            inputs, expected = self._answered(size)
            with torch.inference_mode():
                first, second = ([*run([tensor.clone() for tensor in inputs])] for _ in range(2))
            self._compare(size, first, expected)
            self.lent |= {at for at, pair in enumerate(zip(first, second, strict=True)) if _same_memory(*pair)}

    def _answered(self, size: int) -> tuple[Sequence[torch.Tensor], list[torch.Tensor]]:
        """Inputs that tell programs apart, and what the program itself makes of them."""
        telling = example_inputs(self._spec, self._program, size, telling_inputs)
        try:
            return telling, self._expected(telling)
        except Exception:
            # Not every program bears them; it was exported with the others.
            plain = example_inputs(self._spec, self._program, size)
            return plain, self._expected(plain)

    def _expected(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        with torch.inference_mode(), computing_in(self._spec.engine.precision, self._device):
            return self._program([tensor.clone() for tensor in inputs])

    def _compare(self, size: int, found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> None:
        for at, (answer, wanted) in enumerate(zip(found, expected, strict=True)):
            if answer.shape != wanted.shape:
                raise LoadError(self._failed(f"output {at} is {list(answer.shape)} for a batch of {size}"))
            left, right = (tensor.float().numpy(force=True) for tensor in (wanted, answer))
            difference = largest_difference(left, right) / (largest_value(left) or 1.0)
            if difference > tolerance(self._spec):
                raise LoadError(self._failed(f"output {at} differs by {difference:.2g} for a batch of {size}"))

    def _failed(self, reason: str) -> str:
        return (
            f'model "{self._spec.name}": aot-inductor cannot compile it: {reason}; '
            'backend = "torch-eager" runs it uncompiled'
        )


def _same_memory(left: torch.Tensor, right: torch.Tensor) -> bool:
    return left.numel() > 0 and left.data_ptr() == right.data_ptr()


@contextmanager
def _scratch(artifacts: Path) -> Iterator[None]:
    """What Inductor leaves behind is neither kept, nor read from a folder where others may have put it."""
    name = "TORCHINDUCTOR_CACHE_DIR"
    before = os.environ.get(name)
    with tempfile.TemporaryDirectory(dir=artifacts, prefix="scratch-") as folder:
        os.environ[name] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before
