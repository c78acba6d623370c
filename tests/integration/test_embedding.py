"""The server without a wire: what an embedder relies on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import onnx
import pytest
from eventually import PATIENCE
from model_repository import write_add_sub, write_gather, write_spin
from offramp_server.config import LimitSettings, Settings, WorkerSettings
from offramp_server.core import serve_in_process
from offramp_server.errors import (
    ConfigurationError,
    InvalidRequest,
    LoadError,
    ModelFailed,
    NotFound,
    Overloaded,
    Unavailable,
)
from offramp_server.inference import InferRequest, InferResponse
from open_inference.tensor import Tensor

ROW = np.array([[1, 2, 3, 4]], dtype=np.float32)


def request(model: str = "add_sub", name: str = "x", rows: np.ndarray = ROW, **fields: object) -> InferRequest:
    return InferRequest(model, [Tensor.from_numpy(name, rows)], **fields)  # type: ignore[arg-type]


def break_operator(path: Path) -> None:
    """Nothing is wrong with the file until an engine looks at its graph."""
    model = onnx.load(path)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, path)


async def test_models_answer_without_a_port(repository: Path) -> None:
    write_add_sub(repository, offset=1)
    async with serve_in_process(repository) as serving:
        response = await serving.infer(request())
        assert [output.name for output in response.outputs] == ["y", "z"]
        np.testing.assert_array_equal(response.outputs[0].numpy(), ROW + 1)


async def test_only_the_outputs_asked_for_come_back_in_the_order_asked_for(repository: Path) -> None:
    write_add_sub(repository)
    async with serve_in_process(repository) as serving:
        response = await serving.infer(request(outputs=["z", "y"]))
        assert [output.name for output in response.outputs] == ["z", "y"]
        response = await serving.infer(request(outputs=["z"]))
        assert [output.name for output in response.outputs] == ["z"]


async def test_requests_of_several_rows_get_their_own_rows_back(repository: Path) -> None:
    write_add_sub(repository, offset=1)
    async with serve_in_process(repository) as serving:
        batches = [np.full((rows, 4), rows, dtype=np.float32) for rows in (1, 5, 2, 16, 3)]
        answers = await asyncio.gather(*(serving.infer(request(rows=batch)) for batch in batches))
        for batch, answer in zip(batches, answers, strict=True):
            np.testing.assert_array_equal(answer.outputs[0].numpy(), batch + 1)


async def test_a_batch_mate_of_a_request_that_the_model_refuses_is_answered(repository: Path) -> None:
    write_gather(repository)
    async with serve_in_process(repository) as serving:
        rows = [np.array([[n]], dtype=np.int64) for n in (1, 99, 2)]
        outcomes = await asyncio.gather(
            *(serving.infer(request("gather", "index", row)) for row in rows), return_exceptions=True
        )
        assert isinstance(outcomes[1], ModelFailed)
        assert [o.outputs[0].numpy().item() for o in outcomes if not isinstance(o, BaseException)] == [1.0, 2.0]


async def test_a_route_answers_under_its_own_name_and_says_what_ran(repository: Path) -> None:
    write_add_sub(repository, offset=1)
    (repository / "stable").mkdir()
    (repository / "stable" / "route.toml").write_text('kind = "single"\nmodel = "add_sub"\n')
    async with serve_in_process(repository) as serving:
        response = await serving.infer(request("stable"))
        assert response.model == "stable"
        assert response.parameters == {"offramp_route": "single", "offramp_models": "add_sub:1"}
        assert serving.endpoint("stable").composing == ("add_sub",)
        with pytest.raises(InvalidRequest, match='expected "single" or "model:add_sub", got "ensemble"'):
            await serving.infer(request("stable", parameters={"offramp_route": "ensemble"}))


async def test_a_route_whose_model_is_gone_says_so(repository: Path) -> None:
    write_add_sub(repository)
    (repository / "stable").mkdir()
    (repository / "stable" / "route.toml").write_text('kind = "single"\nmodel = "add_sub"\n')
    async with serve_in_process(repository) as serving:
        await serving.unload("add_sub")
        with pytest.raises(Unavailable, match="add_sub"):
            await serving.infer(request("stable"))
        assert not serving.live_routes.route("stable").ready
        assert not serving.model_ready("stable")


async def test_what_is_not_there_is_named_with_what_is(repository: Path) -> None:
    write_add_sub(repository)
    (repository / "stable").mkdir()
    (repository / "stable" / "route.toml").write_text('kind = "single"\nmodel = "add_sub"\n')
    async with serve_in_process(repository) as serving:
        with pytest.raises(NotFound, match='no model or route "adsub"; did you mean "add_sub"'):
            await serving.infer(request("adsub"))
        with pytest.raises(NotFound, match='no model or route "stabel"; did you mean "stable"'):
            serving.endpoint("stabel")
        with pytest.raises(NotFound, match='no model or route "fraud"; there is "add_sub", "stable"'):
            serving.model_ready("fraud")
        with pytest.raises(NotFound, match='no version "9"'):
            await serving.infer(request(version="9"))


async def test_one_broken_folder_does_not_keep_the_others_from_being_served(repository: Path) -> None:
    write_add_sub(repository)
    broken = repository / "broken" / "1"
    broken.mkdir(parents=True)
    (broken / "model.onnx").write_bytes(b"nonsense")
    async with serve_in_process(repository) as serving:
        await serving.infer(request())
        states = {entry.name: (entry.state, entry.reason) for entry in serving.index()}
        assert states["add_sub"] == ("READY", "")
        assert states["broken"][0] == "UNAVAILABLE"
        assert "model.onnx" in states["broken"][1]


async def test_after_a_failed_load_the_index_says_what_serves_and_why_the_rest_does_not(repository: Path) -> None:
    for version in (1, 2):
        write_add_sub(repository, version=version, offset=version)
    break_operator(repository / "add_sub" / "2" / "model.onnx")
    (repository / "add_sub" / "model.toml").write_text('versions = "all"')
    async with serve_in_process(repository) as serving:
        assert [(entry.version, entry.state) for entry in serving.index()] == [("2", "UNAVAILABLE")]
        assert "NoSuchOperator" in serving.index()[0].reason

        (repository / "add_sub" / "model.toml").write_text("versions = [1]")
        await serving.load("add_sub")
        assert [(entry.version, entry.state) for entry in serving.index()] == [("1", "READY")]

        (repository / "add_sub" / "model.toml").write_text("versions = [2]")
        with pytest.raises(LoadError):
            await serving.load("add_sub")
        assert [(entry.version, entry.state) for entry in serving.index()] == [("1", "READY"), ("2", "UNAVAILABLE")]
        await serving.infer(request())


async def test_a_name_of_nothing_is_not_found_and_leaves_nothing_behind(repository: Path) -> None:
    write_add_sub(repository)
    async with serve_in_process(repository) as serving:
        for change in (serving.load, serving.unload):
            with pytest.raises(NotFound, match=r'"nobody\\n"'):
                await change("nobody\n")
        with pytest.raises(NotFound, match=r'no version "1\\r"'):
            serving.endpoint("add_sub", "1\r")
        assert [entry.name for entry in serving.index()] == ["add_sub"]
        assert {name for name, _ in serving.stats.loads} == {"add_sub"}


async def test_more_requests_than_the_limit_are_refused_at_once_and_counted(repository: Path) -> None:
    write_spin(repository)
    (repository / "stable").mkdir()
    (repository / "stable" / "route.toml").write_text('kind = "single"\nmodel = "spin"\n')
    settings = Settings(limits=LimitSettings(max_in_flight=3), workers=WorkerSettings(mode="in-process"))
    async with serve_in_process(repository, settings) as serving:
        names = ["spin"] * 8 + ["stable", "nobody"]
        outcomes = await asyncio.gather(*(serving.infer(request(name)) for name in names), return_exceptions=True)
        assert sum(isinstance(outcome, Overloaded) for outcome in outcomes) == 7
        assert serving.stats.models["spin", "1"].failures == {"resource_exhausted": 5}
        assert serving.stats.route("stable").requests == {"resource_exhausted": 1}


async def test_after_the_block_nothing_is_answered_any_more(repository: Path) -> None:
    write_add_sub(repository)
    async with serve_in_process(repository) as serving:
        pass
    with pytest.raises(Unavailable):
        await serving.infer(request())


async def test_requests_that_are_there_when_the_block_is_left_by_an_error_are_answered(repository: Path) -> None:
    write_spin(repository, config="max_batch_size = 1\n")
    tasks: list[asyncio.Task[InferResponse]] = []

    async def embed() -> None:
        async with serve_in_process(repository) as serving:
            tasks.extend(asyncio.create_task(serving.infer(request("spin"))) for _ in range(10))
            await asyncio.sleep(0)
            raise KeyError("what the embedder does goes wrong")

    with pytest.raises(KeyError):
        await embed()
    async with asyncio.timeout(PATIENCE):
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(outcome, Unavailable) for outcome in outcomes) == 10


async def test_a_repository_that_does_not_exist_is_a_bad_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nowhere"):
        async with serve_in_process(tmp_path / "nowhere"):
            pass


async def test_a_request_has_no_more_rows_than_the_settings_allow(repository: Path) -> None:
    write_add_sub(repository)
    settings = Settings(limits=LimitSettings(max_batch_items=2), workers=WorkerSettings(mode="in-process"))
    async with serve_in_process(repository, settings) as serving:
        await serving.infer(request(rows=np.repeat(ROW, 2, axis=0)))
        with pytest.raises(InvalidRequest, match="batch size from 1 to 2, got 3"):
            await serving.infer(request(rows=np.repeat(ROW, 3, axis=0)))
