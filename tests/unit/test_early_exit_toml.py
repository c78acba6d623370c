"""The file of an early-exit route."""

from __future__ import annotations

from pathlib import Path

import pytest
from offramp_adapters.confidence.agreement import Agreement
from offramp_adapters.control.rules import LoadRule
from offramp_adapters.routes.early_exit import EarlyExitRoute
from offramp_adapters.routes.exit_settings import Stage
from offramp_adapters.routes.plan import Target
from offramp_adapters.routes.strategy import Level
from offramp_server.errors import ConfigurationError
from offramp_server.repository.route_toml import read_route_file
from offramp_server.routing.binding import Broken
from offramp_server.routing.table import Route

SMALL = """
kind = "early_exit"
[[stages]]
model = "student"
threshold = 0.9
[[stages]]
model = "teacher"
"""
FULL = """
kind = "early_exit"
score = "margin"
output = "logits"
scale = "logits"
seed = 3

[[stages]]
name = "small"
model = "student"
version = 2
threshold = 0.9
temperature = 1.5
thresholds_by_class = { shirt = 0.97, 3 = 0.5 }

[[stages]]
model = "committee"
threshold = 1
score = "agreement"

[[stages]]
model = "teacher"

[audit]
rate = 0.02

[agreement]
kind = "top_k"
k = 3

[load.idle]
thresholds = [0.95, 1.0]
[load.overloaded]
thresholds = [0.7, 0.6]
audits = 0.1
shed = 0.5
"""


def read(folder: Path, text: str) -> object:
    folder.mkdir(exist_ok=True)
    (folder / "route.toml").write_text(text)
    return read_route_file(folder).definition


def test_a_file_may_say_no_more_than_models_and_a_threshold(tmp_path: Path) -> None:
    assert read(tmp_path, SMALL) == EarlyExitRoute((Stage(Target("student"), 0.9), Stage(Target("teacher"))))


def test_every_key_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, FULL) == EarlyExitRoute(
        (
            Stage(Target("student", "2"), 0.9, "small", 1.5, {"shirt": 0.97, "3": 0.5}),
            Stage(Target("committee"), 1.0, score="agreement"),
            Stage(Target("teacher")),
        ),
        "margin", "logits", "logits", None, 0.02, Agreement("top_k", 3),
        {Level.IDLE: LoadRule((0.95, 1.0)), Level.OVERLOADED: LoadRule((0.7, 0.6), 0.1, shed=0.5)},
        3,
    )  # fmt: skip


def test_patience_asks_for_all_of_it_unless_told_otherwise(tmp_path: Path) -> None:
    stages = "".join(f'[[stages]]\nmodel = "m{number}"\n' for number in range(3))
    definition = read(tmp_path, 'kind = "early_exit"\nscore = "patience"\npatience = 1\n' + stages)
    assert isinstance(definition, EarlyExitRoute)
    assert [stage.threshold for stage in definition.stages] == [1.0, 1.0, None]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("threshold = 0.9", "treshold = 0.9", 'unknown key "stages.0..treshold"; did you mean "stages.0..threshold"'),
        ("threshold = 0.9", "", 'stage "student" needs a threshold; only the last stage has none'),
        ("threshold = 0.9", "threshold = -1", "threshold: expected a number of at least 0"),
        ("threshold = 0.9", "threshold = 0.9\nthresholds_by_class = 3", "thresholds_by_class: expected a table, got 3"),
        ("threshold = 0.9", "threshold = 0.9\nname = 'a,b'", "name: expected a name of letters, digits"),
        ('kind = "early_exit"', 'kind = "early_exit"\nscore = "odds"', 'score: expected "max_probability", "margin"'),
        ('kind = "early_exit"', 'kind = "early_exit"\npatience = 2', 'score = "max_probability" does not use patience'),
        ('"teacher"', '"teacher"\n[audit]\nrate = 2', "audit.rate: expected a number from 0 to 1, got 2"),
        ('"teacher"', '"teacher"\n[load.busy]\nthresholds = [1, 2]', "load.busy.thresholds: expected 1, one for each"),
        ('"teacher"', '"teacher"\n[load.idle]\nthresholds = [0.5]', "is above 0.5 of load.idle"),
        ('"teacher"', '"teacher"\n[agreement]\nkind = "top_k"', "needs agreement.k"),
    ],
)
def test_a_file_that_cannot_be_used_says_where_and_what_would_be_right(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read(tmp_path, SMALL.replace(old, new, 1))


def test_an_exit_that_was_closed_is_above_no_level(tmp_path: Path) -> None:
    closed = SMALL.replace("0.9", "1.5") + "[load.idle]\nthresholds = [0.99]\n"
    assert isinstance(read(tmp_path, closed), EarlyExitRoute)


def test_a_seed_makes_the_coins_fall_alike_until_it_is_changed() -> None:
    def tossed(route: Route) -> list[float]:
        return [route.coin() for _ in range(5)]

    plain = EarlyExitRoute((Stage(Target("a"), 0.9), Stage(Target("b"))))
    seeded = EarlyExitRoute(plain.stages, seed=3)
    route = Route("r", seeded, Broken(""))
    first, second = tossed(route), tossed(route)
    assert tossed(Route("r", seeded, Broken(""))) == first
    route.redefine(EarlyExitRoute(plain.stages, seed=4))
    route.redefine(seeded)
    assert tossed(route) == first
    # What is set live does not begin them anew.
    route.redefine(seeded.with_settings({"audit_rate": 0.5}))
    assert tossed(route) == second
    assert tossed(Route("r", plain, Broken(""))) != tossed(Route("r", plain, Broken("")))
