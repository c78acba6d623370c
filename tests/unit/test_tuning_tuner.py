"""What is tried, in which order, what becomes of candidates that misbehave, and what is decided in the end."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from engine_doubles import Double
from offramp_server.config import TuningSettings
from offramp_server.errors import LoadError
from offramp_server.machine.memory import Memory
from offramp_server.model_spec import EngineSettings, ModelSpec
from offramp_server.telemetry.stats import Stats
from offramp_server.tuning import tuner
from offramp_server.tuning.cache import EngineCache
from offramp_server.tuning.decision import Decision
from offramp_server.tuning.trial import Job, TimedOut, TrialFailed
from offramp_server.tuning.tuner import Tuner, candidates
from trial_fakes import Script, Stage
from tuning_fakes import key_of, pt2_spec

PLAIN, FOLDED, BUILT, OTHER = "torch-eager", "torch-eager (folded)", "aot-inductor", "openvino"
EAGER = Double("torch-eager", tried=("", "folded"))
KINDS = (EAGER, Double(OTHER), Double(BUILT, building=True))
CRASH = TrialFailed("crashed with SIGSEGV while it was loaded")
SPEC = pt2_spec()


class Bench:
    def __init__(
        self, folder: Path, scripts: dict[str, Script], kinds: Sequence[Double] = KINDS, max_memory: int = 1000
    ) -> None:
        self.stage = Stage({label: Script() for label in (PLAIN, FOLDED, BUILT, OTHER)} | scripts)
        self.stats = Stats()
        self.now: Callable[[], float] = lambda: 0.0
        self.cache = EngineCache(folder / "cache")
        settings = TuningSettings(candidate_timeout=30, max_memory_bytes=max_memory)
        self.tuner = Tuner(settings, self.cache, self.stats, self.stage.start, kinds, lambda: self.now())

    async def tune(self, budget: float | None = None, threads: int = 1, spec: ModelSpec = SPEC) -> Decision:
        decision = await self.tuner.tune(Job(spec, "cpu", threads), key_of(spec), budget)
        assert not any(trial.alive for trial in self.stage.trials)
        return decision

    async def build(self) -> Decision:
        spec = pt2_spec(BUILT)
        choice = next(choice for choice in candidates(spec, "cpu", KINDS).choices if choice.backend == BUILT)
        try:
            return await self.tuner.build(Job(spec, "cpu", 1), key_of(spec), choice)
        finally:
            assert not any(trial.alive for trial in self.stage.trials)

    @property
    def built(self) -> list[Path]:
        return list((self.cache._folder / key_of(SPEC).digest).glob("aot-*"))


def fails(step: str, error: TrialFailed = CRASH, dies: bool = True) -> Script:
    return Script(1, 10, fails={step: error}, dies=dies)


async def test_the_fastest_is_taken_with_what_all_of_them_took_and_why(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {FOLDED: Script(1.8, 18, 1e-6), BUILT: Script(1, 12), OTHER: Script(1.1, 10)})
    decision = await bench.tune()
    choice = decision.choice
    assert (choice.label, choice.threads, choice.artifacts) == (OTHER, 0, None)
    assert choice.measured == {PLAIN: 0.02, FOLDED: 0.018, OTHER: 0.01, BUILT: 0.012}
    assert choice.reason.startswith("auto: the fastest of 4 that agree; a batch of 16 takes 10 ms, one item 1.1 ms")
    assert decision.measurements[FOLDED].difference == 1e-6
    assert decision.complete
    assert bench.stats.engine_tunings["digits"] == bench.stats.engine_builds["digits"] == 1


async def test_what_was_built_stays_if_it_is_taken_and_goes_if_not(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {BUILT: Script(1, 10)})
    choice = (await bench.tune()).choice
    assert choice.label == BUILT
    assert bench.built == [choice.artifacts]
    bench = Bench(tmp_path / "other", {BUILT: Script(3, 30)})
    assert (await bench.tune()).choice.label == PLAIN
    assert bench.built == []


async def test_building_happens_in_a_process_of_its_own_that_others_come_before(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {})
    await bench.tune()
    background = [trial.options.in_background for trial in bench.stage.trials]
    # Eager, OpenVINO, the build, and the trial of what was built.
    assert background == [False, False, True, False]
    assert {trial.options.max_memory for trial in bench.stage.trials} == {1000}


async def test_those_that_are_about_as_fast_are_timed_in_turn_and_the_others_not_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {FOLDED: Script(1.2, 12), OTHER: Script(1, 10)})
    await bench.tune()
    timings = [label for step, label in bench.stage.happened if step == "time"]
    # Two looks at one item and at a batch, which agree.
    assert timings.count(PLAIN) == 4
    assert timings[-8:] == [FOLDED, FOLDED, OTHER, OTHER] * 2


@pytest.mark.parametrize("step", ["load", "compare_answers", "time"])
async def test_a_crash_costs_the_candidate_its_place_and_nobody_else_theirs(tmp_path: Path, step: str) -> None:
    bench = Bench(tmp_path, {FOLDED: fails(step), OTHER: fails(step)})
    decision = await bench.tune()
    assert decision.choice.label == PLAIN
    assert decision.choice.rejected == {FOLDED: str(CRASH), OTHER: str(CRASH)}
    assert set(decision.choice.measured) == {PLAIN, BUILT}
    assert decision.complete


async def test_a_variant_whose_process_was_ended_by_another_one_is_loaded_again_for_the_final(tmp_path: Path) -> None:
    kinds = (Double("torch-eager", tried=("", "folded")), Double(OTHER))
    bench = Bench(tmp_path, {FOLDED: fails("compare_answers")}, kinds)
    assert (await bench.tune()).choice.label == PLAIN
    assert bench.stage.steps(PLAIN)[:4] == ["load", "write_answers", "time", "time"]
    assert "load" in bench.stage.steps(PLAIN)[6:]


async def test_a_candidate_that_crashes_in_the_final_is_not_taken(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {OTHER: Script(1.9, 19, fails={"time": CRASH}, after=5, dies=True)})
    decision = await bench.tune()
    assert decision.choice.label == PLAIN
    assert OTHER in decision.choice.rejected
    assert OTHER not in decision.choice.measured


async def test_a_candidate_that_runs_out_of_memory_in_the_final_is_not_taken_and_may_be_another_time(
    tmp_path: Path,
) -> None:
    killed = TrialFailed("crashed with SIGKILL while it was timed", passing=True)
    bench = Bench(tmp_path, {OTHER: Script(1.9, 19, fails={"time": killed}, after=5, dies=True)})
    decision = await bench.tune()
    assert (decision.choice.label, decision.complete) == (PLAIN, False)
    assert decision.choice.rejected[OTHER] == str(killed)
    assert OTHER not in decision.choice.measured


async def test_what_is_known_of_a_candidate_counts_if_the_time_is_over_in_the_final(tmp_path: Path) -> None:
    over = TimedOut("was ended after 5 s while it was timed")
    bench = Bench(tmp_path, {OTHER: Script(1, 10, fails={"time": over}, after=5), FOLDED: Script(1, 10.5)})
    bench.now = lambda: 100.0 if bench.stage.steps(OTHER).count("time") > 5 else 0.0
    decision = await bench.tune(budget=20)
    assert OTHER in decision.choice.measured
    assert OTHER not in decision.choice.rejected


async def test_other_answers_are_told_with_their_difference_and_what_is_tolerated(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {FOLDED: Script(1, 1, 0.01), OTHER: Script(1, 1, float("nan"))})
    choice = (await bench.tune()).choice
    assert choice.label == PLAIN
    assert choice.rejected[FOLDED] == "answers differently: by 0.01 of the largest value, where 0.0001 is tolerated"
    assert "by nan" in choice.rejected[OTHER]


async def test_what_is_not_installed_is_told_and_what_cannot_run_the_model_is_left_alone(tmp_path: Path) -> None:
    kinds = (EAGER, Double(OTHER, lacking="pip install openvino"), Double(BUILT, refused="it needs a GPU"))
    bench = Bench(tmp_path, {}, kinds)
    assert (await bench.tune()).choice.rejected == {OTHER: "pip install openvino"}
    assert bench.stage.steps(OTHER) == bench.stage.steps(BUILT) == []


async def test_an_engine_that_auto_leaves_alone_is_not_mentioned(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {}, (EAGER, Double("torch-compile", tried=(), lacking="no compiler")))
    assert (await bench.tune()).choice.rejected == {}


async def test_what_the_time_is_not_enough_for_is_left_out_and_may_be_found_another_time(tmp_path: Path) -> None:
    over = TimedOut("was ended after 5 s while it was built")
    bench = Bench(tmp_path, {BUILT: fails("build", over)})

    # The build takes all the time that there was.
    bench.now = lambda: 100.0 if bench.stage.steps(BUILT) else 0.0
    decision = await bench.tune(budget=20)
    assert not decision.complete
    assert decision.choice.rejected[BUILT] == (
        'was ended after 5 s while it was built: the 20 s for choosing an engine were over; "offramp tune" without '
        "--budget takes the time that it needs"
    )
    assert max(bench.stage.timeouts) == 20


async def test_letting_go_of_a_candidate_takes_no_more_time_than_there_is(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {FOLDED: Script(9, 90)})
    bench.now = lambda: 18.0 if bench.stage.steps(OTHER) else 0.0
    await bench.tune(budget=20)
    steps = [step for step, _ in bench.stage.happened]
    assert bench.stage.timeouts[steps.index("unload")] == 2


async def test_memory_that_ran_out_may_be_there_another_time(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {OTHER: fails("load", TrialFailed("took 2 GB", passing=True))})
    decision = await bench.tune()
    assert decision.choice.rejected[OTHER] == "took 2 GB"
    assert not decision.complete


async def test_each_trial_may_take_half_of_what_is_free_when_it_starts_and_never_all_that_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = iter([1000, 100, 0, 0])
    monkeypatch.setattr(tuner, "read_memory", lambda: Memory(None, None, next(free)))
    bench = Bench(tmp_path, {}, (EAGER, Double(OTHER), Double(BUILT, building=True)), max_memory=0)
    await bench.tune()
    assert [trial.options.max_memory for trial in bench.stage.trials] == [500, 50, 1, 1]


async def test_without_a_plain_engine_nothing_can_be_compared(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {PLAIN: fails("load")})
    with pytest.raises(TrialFailed, match="SIGSEGV"):
        await bench.tune()
    assert not any(trial.alive for trial in bench.stage.trials)


async def test_a_model_that_takes_no_time_is_not_compared_any_further(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {PLAIN: Script(0.1, 0.4)})
    decision = await bench.tune()
    assert decision.choice.reason.startswith("auto: the plain engine; a batch of 16 takes 0.4 ms")
    assert bench.stage.steps(OTHER) == []


async def test_threads_are_timed_for_what_was_chosen_unless_the_folder_says_how_many(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {OTHER: Script(1, 10, scales=0.8)})
    decision = await bench.tune(threads=4)
    assert decision.choice.label == OTHER
    assert [round(each.full * 1e3, 1) for _, each in sorted(decision.by_threads.items())] == [10, 6, 4]
    for engine in (EngineSettings(threads=4), EngineSettings(instances=2)):
        bench = Bench(tmp_path, {})
        assert (await bench.tune(threads=4, spec=replace(SPEC, engine=engine))).by_threads == {}


async def test_numbers_of_threads_are_timed_in_turn_with_the_model_loaded_once_at_a_time(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {})
    assert len((await bench.tune(threads=64)).by_threads) == 7
    assert bench.stage.trials[-1].most_loaded == 1


@pytest.mark.parametrize(("error", "complete"), [(CRASH, True), (TrialFailed("took 2 GB", passing=True), False)])
async def test_threads_that_could_not_all_be_timed_are_no_measurement(
    tmp_path: Path, error: TrialFailed, complete: bool
) -> None:
    bench = Bench(tmp_path, {OTHER: Script(1, 10, fails={"load": error}, after=2)})
    decision = await bench.tune(threads=4)
    assert (decision.choice.label, decision.by_threads, decision.complete) == (OTHER, {}, complete)


async def test_threads_that_were_all_timed_once_count_if_the_time_is_over_then(tmp_path: Path) -> None:
    over = TimedOut("was ended after 5 s while it was timed")
    bench = Bench(tmp_path, {OTHER: Script(1, 10, fails={"load": over}, after=4)})
    bench.now = lambda: 100.0 if bench.stage.steps(OTHER).count("load") > 4 else 0.0
    decision = await bench.tune(budget=20, threads=4)
    assert (sorted(decision.by_threads), decision.complete) == ([1, 2, 4], True)


async def test_an_engine_asked_for_by_name_is_built_once_and_compared(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {BUILT: Script(9, 90)})
    choice = (await bench.build()).choice
    assert (choice.label, choice.reason) == (BUILT, "asked for by model.toml")
    assert choice.artifacts is not None
    assert choice.artifacts.is_dir()
    assert bench.stage.steps(BUILT)[:3] == ["build", "load", "compare_answers"]


@pytest.mark.parametrize(
    ("scripts", "sentence"),
    [
        ({BUILT: fails("build", TrialFailed("ended with exit code 1 while it was built"))}, "ended with exit code 1"),
        ({BUILT: Script(difference=0.5)}, "answers differently: by 0.5"),
        ({PLAIN: fails("load")}, "cannot be checked, as torch-eager crashed with SIGSEGV"),
    ],
)
async def test_an_engine_asked_for_by_name_that_cannot_run_fails_the_load_with_the_reason(
    tmp_path: Path, scripts: dict[str, Script], sentence: str
) -> None:
    with pytest.raises(LoadError, match=f'model "digits": engine "aot-inductor" {sentence}'):
        await Bench(tmp_path, scripts).build()


async def test_without_a_folder_for_temporary_files_an_engine_asked_for_by_name_fails_the_load_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(LoadError, match=r'model "digits": engine "aot-inductor" could not be built: .*No such file'):
        await Bench(tmp_path, {}).build()
