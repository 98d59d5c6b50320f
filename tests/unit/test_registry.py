"""Names in a run file → classes: what is chosen, and what is said if it cannot be."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from elastic import registry
from elastic.errors import ConfigError, MissingExtraError
from elastic.reduce.sparseloco import SparseLoCo
from elastic.registry import build, load, resolve
from elastic.sections import PluginChoice
from incentives.uniform import Uniform

NEEDED: dict[str, dict[str, Any]] = {"bucket": {"url": "file:///bucket"}, "subnet": {"netuid": 3}}
"""Settings without a default."""


def choice(name: str, **settings: Any) -> PluginChoice:
    return PluginChoice.model_validate({"name": name, **settings})


def refused(slot: str, name: str, **settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(slot, choice(name, **settings))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of third-party modules, importable for one test."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def test_a_known_name_gives_its_class_and_its_settings() -> None:
    cls, settings = resolve("reducer", choice("sparseloco", k=32))
    assert cls is SparseLoCo
    assert settings == SparseLoCo.Config(k=32)


def test_build_makes_it() -> None:
    assert isinstance(build("incentive", choice("uniform", by="peer")), Uniform)


@pytest.mark.parametrize(
    ("slot", "name", "near"),
    [
        ("reducer", "sparselocco", "sparseloco"),
        ("model", "lama", "llama"),
        ("exchange", "hive-mind", "hivemind"),
        ("incentive", "reputations", "reputation"),
    ],
)
def test_a_misspelt_name_is_told_the_nearest(slot: str, name: str, near: str) -> None:
    message = refused(slot, name)
    assert message.startswith(f'{slot}: no implementation is called "{name}"; did you mean "{near}"?')
    assert message.endswith('"package.module:Class"')


def test_a_name_unlike_all_others_is_told_what_is_known() -> None:
    assert "known: uniform, reputation, subnet." in refused("incentive", "zzz")


def test_a_misspelt_setting_is_told_the_nearest_key() -> None:
    assert refused("reducer", "sparseloco", bata=0.9) == (
        'reducer sparseloco: unknown key "bata"; did you mean "beta"?'
    )


@pytest.mark.parametrize(
    ("slot", "name", "settings", "says"),
    [
        ("reducer", "sparseloco", {"k": 0}, "reducer sparseloco: k: should be greater than or equal to 1 (got 0)"),
        ("reducer", "sparseloco", {"k": 100, "chunk": 64}, "reducer sparseloco: k: k is at most chunk = 64 (got 100)"),
        ("model", "llama", {"preset": "nanno"}, 'model llama: no preset is called "nanno"; did you mean "nano"?'),
        ("model", "llama", {"heads": 3}, "model llama: dim = 128 is not a multiple of heads = 3"),
    ],
)
def test_a_wrong_setting_is_explained_in_one_line(slot: str, name: str, settings: Any, says: str) -> None:
    assert refused(slot, name, **settings) == says


def test_a_third_partys_class_is_imported_by_module_and_name(folder: Path) -> None:
    (folder / "theirs.py").write_text(
        "from pydantic import BaseModel\n"
        "class Mine:\n"
        "    class Config(BaseModel, frozen=True, extra='forbid'):\n"
        "        sharpness: float = 1.0\n"
        "    def __init__(self, config): self.config = config\n"
    )
    made = build("incentive", choice("theirs:Mine", sharpness=2.0))
    assert made.config.sharpness == 2.0
    assert "sharpness" in refused("incentive", "theirs:Mine", sharpnes=2.0)


@pytest.mark.parametrize(
    ("content", "target", "says"),
    [
        ("", "theirs:Mine", "module theirs has no Mine"),
        ("class Miner: pass", "theirs:Mine", 'did you mean "Miner"?'),
        ("class Mine: pass", "theirs:Mine", "has no nested pydantic class `Config`"),
        ("class Mine:\n  Config = 3", "theirs:Mine", "has no nested pydantic class `Config`"),
        ("import nothing_like_it", "theirs:Mine", "No module named 'nothing_like_it'"),
        ("from os import nothing_like_it", "theirs:Mine", "cannot import name"),
        ("class Mine(:", "theirs:Mine", "cannot be imported: "),
        ("import os; os.nothing", "theirs:Mine", "cannot be imported: AttributeError"),
        ("1 / 0", "theirs:Mine", "cannot be imported: ZeroDivisionError"),
        ("", "theirs_too:Mine", "is it installed, or its folder on PYTHONPATH?"),
        ("", "theirs.inner:Mine", "'theirs' is not a package"),
    ],
)
def test_what_cannot_be_imported_is_explained(folder: Path, content: str, target: str, says: str) -> None:
    (folder / "theirs.py").write_text(content)
    assert says in refused("model", target)


@pytest.mark.parametrize("target", [":Mine", "theirs:", "theirs:Mine:Again", ".theirs:Mine", "a b:C", "a..b:C", ":"])
def test_what_names_no_class_is_refused_before_anything_is_imported(target: str) -> None:
    assert refused("model", target) == f'"{target}" does not name a class; write "package.module:Class"'


@pytest.mark.parametrize(
    ("statement", "library", "extra"),
    [
        ("import torch", "torch", "train"),
        ("from hivemind.dht import DHT", "hivemind", "hivemind"),
        ("import ray.train", "ray", "ray"),
    ],
)
def test_a_missing_extra_is_the_pip_command(
    folder: Path, monkeypatch: pytest.MonkeyPatch, statement: str, library: str, extra: str
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)  # importing it now raises ModuleNotFoundError
    (folder / "theirs.py").write_text(statement)
    with pytest.raises(MissingExtraError) as caught:
        load("theirs:Mine")
    assert str(caught.value) == f"theirs:Mine needs {library}: pip install 'elastic[{extra}]'"


def test_every_heavy_library_belongs_to_an_extra_of_the_project() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert set(registry.EXTRAS.values()) <= set(project["optional-dependencies"])


def test_every_registered_class_has_a_frozen_config_of_documented_fields() -> None:
    for slot, names in registry.KNOWN.items():
        for name in names:
            if name == "bucket" and importlib.util.find_spec("obstore") is None:
                continue  # an extra that the test machine need not have
            cls, settings = resolve(slot, choice(name, **NEEDED.get(name, {})))
            assert isinstance(settings, BaseModel)
            assert settings.model_config.get("frozen"), cls
            assert settings.model_config.get("extra") == "forbid", cls
            for field, info in type(settings).model_fields.items():
                assert info.description, f"{cls.__name__}.Config.{field} has no docstring"


def test_settings_that_others_code_cannot_read_are_a_config_error(folder: Path) -> None:
    (folder / "theirs.py").write_text(
        "from pydantic import BaseModel, model_validator\n"
        "class Mine:\n  class Config(BaseModel):\n    @model_validator(mode='after')\n"
        "    def _broken(self):\n      raise KeyError('x')\n"
    )
    assert "cannot be read: KeyError" in refused("model", "theirs:Mine")
