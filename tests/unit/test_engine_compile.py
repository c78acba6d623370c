"""torch.compile: slow to load, and then as right as eager and never compiling again. One model is compiled, once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from engine_models import AddSub, convolutional, export_pt2, model_spec
from offramp_server.workers.engines.base import Engine
from offramp_server.workers.engines.load import load_engine
from offramp_server.workers.engines.warmup import warm_up
from open_inference.tensor import Tensor

pytestmark = [
    # Inductor imports a module that still uses TorchScript.
    pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning"),
    # 15 s of CPU where nothing is cached: minutes on a machine that others keep busy.
    pytest.mark.timeout(540),
]

IMAGES = np.random.default_rng(1).standard_normal((17, 1, 8, 8), dtype=np.float32)
LARGEST = 17


@dataclass(frozen=True)
class Loaded:
    compiled: Engine
    eager: Engine
    # Answers of another model that went on executing in another thread meanwhile, wrong ones.
    beside: int
    wrong: int


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    """The model is compiled in a loader thread, as in a worker, while another model is executed."""
    folder = tmp_path_factory.mktemp("models")
    path = export_pt2(folder / "convolutional.pt2", convolutional(), (torch.zeros(2, 1, 8, 8),), batch=LARGEST)
    spec = model_spec(path, ["x FP32 1 8 8"], ["scores FP32 3"], LARGEST, backend="torch-compile")
    engines: list[Engine] = []

    def load() -> None:
        engine = load_engine(spec, "cpu", 1)
        warm_up(engine, spec)
        engines.append(engine)

    export_pt2(folder / "addsub.pt2", AddSub(), (torch.zeros(2, 4), torch.ones(2, 4)))
    other_spec = model_spec(folder / "addsub.pt2", ["a FP32 4", "b FP32 4"], ["p FP32 4", "m FP32 4"])
    other = load_engine(other_spec, "cpu", 1)
    loader = threading.Thread(target=load)
    loader.start()
    beside, wrong = execute_while(loader, other)
    loader.join()
    eager_spec = model_spec(path, ["x FP32 1 8 8"], ["scores FP32 3"], LARGEST, backend="torch-eager")
    yield Loaded(engines[0], load_engine(eager_spec, "cpu", 1), beside, wrong)
    engines[0].close()


def execute_while(loader: threading.Thread, engine: Engine) -> tuple[int, int]:
    inputs = [Tensor.from_numpy(name, np.full((2, 4), value, np.float32)) for name, value in (("a", 3), ("b", 1))]
    executed = wrong = 0
    while loader.is_alive():
        plus, minus = engine.execute(inputs)
        executed += 1
        wrong += not ((plus.numpy() == 4).all() and (minus.numpy() == 2).all())
        # Seldom enough not to take the interpreter from the compiler.
        loader.join(0.1)
    return executed, wrong


def scores(engine: Engine, items: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    # Writable memory and read-only memory are not to be told apart by compiled code.
    data = IMAGES[:items].tobytes()
    (answer,) = engine.execute([Tensor("x", "FP32", (items, 1, 8, 8), bytearray(data) if items % 2 else data)])
    return answer.numpy()


def test_no_batch_size_compiles_again_and_all_agree_with_eager(loaded: Loaded) -> None:
    with torch._dynamo.config.patch(error_on_recompile=True):
        for items in range(1, LARGEST + 1):
            np.testing.assert_allclose(
                scores(loaded.compiled, items), scores(loaded.eager, items), rtol=1e-4, atol=1e-5
            )
    assert loaded.compiled.report.backend == "torch-compile"


def test_another_model_executes_rightly_while_one_compiles(loaded: Loaded) -> None:
    assert loaded.beside > 0
    assert loaded.wrong == 0


def test_compiling_leaves_no_settings_behind(loaded: Loaded) -> None:
    import torch._inductor.config

    assert torch._inductor.config.freezing is False
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()
