"""The run file: what is refused, and in which words; what the digest of [shared] covers."""

import copy
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from elastic.config import RunConfig, load_config, parse_config
from elastic.config_data import PhaseConfig, SourceConfig
from elastic.errors import ConfigError
from elastic.sections import PluginChoice, Section

ROOT = Path(__file__).parents[2]
PEER = "12D3KooW" + "A" * 44
MINIMAL: dict[str, Any] = {"shared": {"run": "demo", "agreement": {"validators": [PEER]}}}


def tree(**changes: Any) -> dict[str, Any]:
    """A valid run file with values set by dotted key: `tree(**{"shared.inner.steps": 3})`."""
    out = copy.deepcopy(MINIMAL)
    for dotted, value in changes.items():
        section, keys = out, dotted.split(".")
        for key in keys[:-1]:
            section = section.setdefault(key, {})
        section[keys[-1]] = value
    return out


def parsed(**changes: Any) -> RunConfig:
    return parse_config(tree(**changes), base=Path("/base"))


def refused(**changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        parsed(**changes)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("shared.inner.stepz", "steps"),
        ("shared.rouds", "rounds"),
        ("shared.outer.nestrov", "nesterov"),
        ("local.network.bootstraps", "bootstrap"),
        ("local.statedir", "state_dir"),
        ("locale", "local"),
    ],
)
def test_an_unknown_key_names_the_nearest(key: str, near: str) -> None:
    assert refused(**{key: 1}) == f'run file: unknown key "{key}"; did you mean "{near}"?'


def test_an_unknown_key_without_a_near_one_lists_what_is_known() -> None:
    message = refused(**{"shared.outer.qqq": 1})
    assert message == 'run file: unknown key "shared.outer.qqq"; known keys: learning_rate, nesterov'


def test_a_misspelt_section_is_named_before_the_section_that_is_missing_for_it() -> None:
    with pytest.raises(ConfigError, match='unknown key "sharde"; did you mean "shared"'):
        parse_config({"sharde": MINIMAL["shared"]}, base=Path())


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("shared.rounds", "30", "should be a valid integer (got '30')"),
        ("shared.rounds", True, "should be a valid integer (got True)"),
        ("shared.rounds", 3.0, "should be a valid integer (got 3.0)"),
        ("shared.rounds", 0, "should be greater than or equal to 1 (got 0)"),
        ("shared.rounds", 10**30, "should be less than or equal to"),
        ("shared.inner.learning_rate", "fast", "should be a valid number (got 'fast')"),
        ("shared.inner.learning_rate", float("nan"), "should be"),
        ("shared.round.gather_seconds", float("inf"), "should be a finite number"),
        ("shared.inner", 3, "should be a table (got 3)"),
        ("shared.reducer", "average", "should be a table"),
        ("shared.agreement.validators", PEER, "should be a list"),
        ("shared.agreement.validators", [], "should have at least 1 item"),
        ("shared.run", "two words", "should match pattern"),
        ("shared.seed", 2**60, "should be less than or equal to"),
        ("shared.data.sha256", "abc", "should match pattern"),
        ("local.ray.gpu", "yes", "should be a valid boolean"),
        ("local.network.port", "4001", "should be a valid integer"),
        ("local.network.port", 70000, "should be less than or equal to 65535"),
        ("local.network.bootstrap", [3], "should be a valid string"),
        ("local.state_dir", 3, "should be a path, in quotes"),
        ("local.log_level", "LOUD", "should be 'DEBUG', 'INFO', 'WARNING' or 'ERROR' (got 'LOUD')"),
    ],
)
def test_a_wrong_value_is_named_with_what_it_should_be(key: str, value: Any, says: str) -> None:
    message = refused(**{key: value})
    assert key in message
    assert says in message


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ({}, "shared is missing"),
        ({"shared": {"run": "demo"}}, "shared.agreement is missing"),
        ({"shared": {"run": "demo", "agreement": {}}}, "shared.agreement.validators is missing"),
        ({"shared": {"agreement": {"validators": [PEER]}}}, "shared.run is missing"),
        (tree(**{"shared.model.preset": "nano"}), "shared.model.name is missing"),
    ],
)
def test_a_missing_section_or_key_is_named(broken: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=f"^run file: {says}$"):
        parse_config(broken, base=Path())


def test_bytes_have_a_vocabulary_of_256_and_bpe_any() -> None:
    message = refused(**{"shared.data.vocab_size": 300})
    assert "shared.data" in message
    assert 'tokenizer = "bpe"' in message
    assert parsed(**{"shared.data.vocab_size": 300, "shared.data.tokenizer": "bpe"}).shared.data.vocab_size == 300


def test_what_is_not_a_run_file_is_refused_in_one_line(tmp_path: Path) -> None:
    for content, says in (
        (b"[shared", "not valid TOML"),
        (b"a = \xff", "not UTF-8"),
        (b"", "shared is missing"),
    ):
        (tmp_path / "run.toml").write_bytes(content)
        with pytest.raises(ConfigError, match=says) as caught:
            load_config(tmp_path / "run.toml")
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(tmp_path)
    with pytest.raises(ConfigError, match=r"no such run file; `elastic init .*none\.toml` writes one"):
        load_config(tmp_path / "none.toml")


def test_a_byte_order_mark_does_not_hurt(tmp_path: Path) -> None:
    text = f'[shared]\nrun = "demo"\n[shared.agreement]\nvalidators = ["{PEER}"]\n'
    (tmp_path / "run.toml").write_text(text, encoding="utf-8-sig")
    assert load_config(tmp_path / "run.toml").shared.run == "demo"


def test_relative_paths_start_at_the_run_files_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given_text = f"""
        [shared]
        run = "demo"
        [shared.agreement]
        validators = ["{PEER}"]
        [local]
        state_dir = "runs/a"
        key = "/keys/mine"
        report = "../report.jsonl"
        corpus = "~/text.txt"
    """
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "run.toml").write_text(given_text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    config = load_config(Path("sub/run.toml"))
    assert config.local.state_dir == tmp_path / "sub/runs/a"
    assert config.local.key == config.key_path == Path("/keys/mine")
    assert config.local.report == tmp_path / "sub/../report.jsonl"
    assert config.local.corpus == Path("/home/someone/text.txt")


def test_without_a_key_it_lies_in_the_state_directory() -> None:
    assert parsed().key_path == Path("/base/runs/peer/peer.key")


def test_a_home_of_nobody_is_the_users_mistake() -> None:
    assert "~" in refused(**{"local.state_dir": "~no-such-user-here/x"})


def leaves(section: BaseModel, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from leaves(value, (*path, name))
        else:
            yield (*path, name), value


OTHER: dict[str, Any] = {
    "run": "another",
    "validators": ("12D3KooW" + "B" * 44,),
    "tokenizer": "bpe",
    "sources": (SourceConfig(name="web", index="0" * 64),),
    "phases": (PhaseConfig(from_round=9, weights={"web": 2.0}),),
    "sha256": "a" * 64,
}


def other(name: str, value: Any) -> Any:
    """A different, valid value of the same kind."""
    if name in OTHER:
        return OTHER[name]
    if isinstance(value, PluginChoice):
        return PluginChoice.model_validate({"name": value.name, **value.settings, "more": 1})
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, bool):
        return not value
    return value * 2 + 1 if isinstance(value, int) else value / 2 + 0.01


def changed(section: Any, path: tuple[str, ...], value: Any) -> Any:
    new = value if len(path) == 1 else changed(getattr(section, path[0]), path[1:], value)
    return section.model_copy(update={path[0]: new})


def test_every_value_of_shared_is_in_its_digest_defaults_included() -> None:
    shared = parsed().shared
    seen = {shared.digest()}
    for path, value in leaves(shared):
        seen.add(changed(shared, path, other(path[-1], value)).digest())
    assert len(seen) == 1 + len(list(leaves(shared)))


def test_writing_a_default_out_does_not_change_the_digest() -> None:
    explicit = parsed(**{"shared.inner.steps": 30, "shared.outer.learning_rate": 1, "shared.data.tokenizer": "bytes"})
    assert explicit.shared.digest() == parsed().shared.digest()


@given(st.randoms(use_true_random=False))
def test_the_digest_knows_no_order_of_keys_and_nothing_of_local(chance: Any) -> None:
    def shuffled(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: shuffled(value[key]) for key in chance.sample(sorted(value), len(value))}

    written = tree(**{"shared.inner.steps": 7, "shared.reducer": {"name": "sparseloco", "k": 32, "beta": 0.9}})
    mixed = shuffled(written) | {"local": {"name": "other", "network": {"port": 4001}}}
    digests = [parse_config(each, base=Path("/x")).shared.digest() for each in (written, mixed)]
    assert digests[0] == digests[1]


def test_the_digest_of_a_run_does_not_change_between_versions() -> None:
    assert parsed().shared.digest() == ("3eb2710b8ad21945f88c05dde7d37405acbcd60a54bd5308980e9e0c90a27581")


def test_a_plug_ins_setting_that_cannot_be_hashed_is_refused() -> None:
    assert "shared.reducer: a setting cannot be part" in refused(**{"shared.reducer": {"name": "x", "k": 10**30}})


def test_a_config_is_frozen() -> None:
    config = parsed()
    with pytest.raises(ValueError, match="frozen"):
        config.shared.rounds = 3


def sections(root: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield root
    for field in root.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from sections(field.annotation)


def test_every_field_is_documented() -> None:
    for section in sections(RunConfig):
        assert section.model_config.get("use_attribute_docstrings"), section
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name} has no docstring"


def toml_files() -> list[Path]:
    skipped = {"runs", "node_modules", "build", "dist"}
    found = [path.relative_to(ROOT) for path in ROOT.rglob("*.toml")]
    return sorted(p for p in found if not any(part.startswith(".") or part in skipped for part in p.parts))


@pytest.mark.parametrize("path", toml_files(), ids=str)
def test_every_toml_file_of_the_project_parses(path: Path) -> None:
    content = tomllib.loads((ROOT / path).read_text(encoding="utf-8"))
    if "shared" in content or "local" in content:
        load_config(ROOT / path)
    else:
        assert path.name in ("pyproject.toml", "mise.toml", "uv.toml") or path.parts[0] == "ops"
