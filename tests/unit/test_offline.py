"""The run file that `elastic init` writes tells the truth about the defaults."""

import re
import tomllib
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from elastic.actors.offline import RUN_FILE
from elastic.check import check_plugins, check_values
from elastic.config import RunConfig, Shared
from elastic.reduce.sparseloco import SparseLoCo
from elastic.registry import KNOWN
from elastic.wire.signing import Identity
from incentives.reputation import Reputation
from model_zoo.llama import Llama

PEER = Identity.generate().peer
YOURS = ("shared.run", "shared.data.sha256", "shared.agreement.validators", "local.state_dir")


def flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in table.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return out


def template(peer: str = "1" * 46) -> str:
    return RUN_FILE.format(name="demo", peer=peer, state_dir="runs/demo", sha256="a" * 64)


def defaults() -> dict[str, Any]:
    """What a run file with nothing in it means."""
    shared = Shared.model_validate({"run": "demo", "agreement": {"validators": ["1" * 46]}})
    return flat(RunConfig(shared=shared).model_dump(mode="json"))


def test_every_value_that_init_writes_is_the_default_or_marked_as_yours() -> None:
    written, default = flat(tomllib.loads(template())), defaults()
    differing = {key for key, value in written.items() if default[key] != value}
    assert differing <= set(YOURS)
    for line in template().splitlines():
        key = line.partition(" =")[0]
        assert ("(yours)" in line) == (key in {each.rpartition(".")[2] for each in YOURS}) or line.startswith("#")


def test_every_value_that_init_shows_as_a_comment_is_the_default_too() -> None:
    shown = re.sub(r"^# (\w+ = )", r"\1", template(), flags=re.MULTILINE)
    config = RunConfig.model_validate(tomllib.loads(shown))
    assert config.shared.reducer.settings == SparseLoCo.Config().model_dump(include={"k", "beta"})
    assert config.shared.incentive.settings | {"members": ()} == {
        **Reputation.Config().model_dump(include={"entry", "members"}), "netuid": 3,
    }  # fmt: skip
    assert config.local.trace.endpoint == RunConfig.model_validate(tomllib.loads(template())).local.trace.endpoint


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('name = "uniform"', 'name = "reputation"'),
        ('name = "uniform"  ', 'name = "reputation"\nentry = "work" #'),
        ('name = "uniform"  ', 'name = "subnet"\nnetuid = 3 #'),
        *(
            (old, new.replace("ENTRY", entry))
            for entry in ("listed", "invited")
            for old, new in (
                ('name = "uniform"  ', f'name = "reputation"\nentry = "ENTRY"\nmembers = ["{PEER}"] #'),
                (
                    "[shared.scoring]",
                    f'[shared.incentive.reputation]\nentry = "ENTRY"\nmembers = ["{PEER}"]\n[shared.scoring]',
                ),
            )
        ),
    ],
)
def test_what_the_template_says_of_incentives_passes_check(old: str, new: str) -> None:
    text = template(PEER)
    assert old in text
    if "[shared.incentive.reputation]" in new:
        text = text.replace('name = "uniform"  ', 'name = "subnet"\nnetuid = 3 #')
    config = RunConfig.model_validate(tomllib.loads(text.replace(old, new)))
    check_values(config)
    check_plugins(config)


def test_the_template_names_every_way_of_getting_in() -> None:
    section = template().partition("[shared.incentive]")[2].partition("[shared.scoring]")[0]
    for entry in get_args(Reputation.Config.model_fields["entry"].annotation):
        assert f'"{entry}"' in section
    for name in KNOWN["incentive"]:
        assert f'"{name}"' in section


def test_what_the_template_says_of_presets_is_true() -> None:
    (listed,) = re.findall(r"^preset = .*# nano \(about 1M parameters\), (.*)$", template(), re.MULTILINE)
    for preset in listed.split(", "):
        Llama.Config(preset=preset)
    assert Llama.Config().shape.num_params() == pytest.approx(1e6, rel=0.3)


def test_the_template_leaves_no_section_out() -> None:
    def tables(model: type[BaseModel], prefix: str) -> set[str]:
        fields = {name: info.annotation for name, info in model.model_fields.items()}
        inner = {name: kind for name, kind in fields.items() if isinstance(kind, type) and issubclass(kind, BaseModel)}
        return {prefix + name for name in inner}.union(
            *(tables(kind, f"{prefix}{name}.") for name, kind in inner.items())
        )

    written = set(re.findall(r"^\[([\w.]+)\]", template(), re.MULTILINE))
    assert tables(RunConfig, "") - written == set()
