from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_cases import made, serving, tokens_of, tree

from elastic.actors.assembly import session_parts
from elastic.actors.job import assigner, load_corpus
from elastic.actors.offline import check_corpus
from elastic.check import notes
from elastic.config import RunConfig, parse_config
from elastic.config_data import DataConfig
from elastic.errors import ConfigError, FetchError, MissingCorpusError, StateError
from elastic.messages import PeerId, RoundIndex, RoundPlan
from elastic.models.card import about_text
from elastic.train.session import Session, Worker
from elastic.train.tokens import Batches, held_out_batches
from model_zoo.documents import Reading
from model_zoo.prepare import prepare, settings_for
from model_zoo.prepared import TOKENIZER, Index


def plan(config: RunConfig, round_: int, slot: int, peers: int = 3) -> RoundPlan:
    roster = tuple(PeerId(f"12D3KooW{'ABCDEFGH'[at] * 44}") for at in range(peers))
    return RoundPlan(
        run=config.shared.run, round=RoundIndex(round_), previous="0" * 64, anchor="0" * 64, peer=roster[slot],
        roster=roster, slot=slot, inner_steps=config.shared.inner.steps, seed=config.shared.seed,
        train_seconds=60.0, gather_seconds=1.0,
    )  # fmt: skip


def two(tmp_path: Path, **data: Any) -> tuple[RunConfig, Index, Index]:
    """A mixture of two sources on this machine, 3 to 1."""
    web, code = made(tmp_path / "web", "w", 9000), made(tmp_path / "code", "c", 5000)
    config = parse_config(
        tree(("web", web.sha256, 3.0), ("code", code.sha256, 1.0), places={"web": "web", "code": "code"}, **data),
        base=tmp_path,
    )
    return config, web, code


def test_a_mixture_is_trained_on_as_its_weights_say(tmp_path: Path) -> None:
    # given a mixture that is the other way round from round 5 on
    config, web, code = two(tmp_path, phases=[{"from_round": 5, "weights": {"web": 1.0, "code": 3.0}}])
    corpus = load_corpus(config)
    assert corpus.ends == {0}
    assign = assigner(config, corpus)
    tokens = {"web": tokens_of(tmp_path / "web", web), "code": tokens_of(tmp_path / "code", code)}
    for round_, of_web in ((1, 6), (4, 6), (5, 2)):
        # when
        sequences = assign(plan(config, round_, slot=1))
        batches = [batch.numpy() for batch in Batches(corpus, sequences, 16, 4)]
        # then
        rows = np.concatenate(batches)
        assert rows.shape == (8, 17) and rows.dtype == np.int64
        found = [name for row in rows for name in tokens if row.tobytes() in tokens[name].astype(np.int64).tobytes()]
        assert (found.count("web"), found.count("code")) == (of_web, 8 - of_web)


def test_peers_of_a_round_share_nothing_and_nobody_gets_what_is_held_out(tmp_path: Path) -> None:
    # given
    config, *_ = two(tmp_path)
    corpus = load_corpus(config)
    # when
    assign = assigner(config, corpus)
    dealt = np.concatenate([assign(plan(config, 3, slot)) for slot in range(3)])
    # then
    assert len(np.unique(dealt)) == len(dealt) == 3 * 8
    held_out = np.concatenate([batch.numpy() for batch in held_out_batches(corpus, 16, 4, 20)])
    assert len(held_out) == 20


def test_a_session_trains_on_a_mixture_and_looks_at_what_is_held_out(tmp_path: Path) -> None:
    # given a model of next to nothing
    web, code = made(tmp_path / "web", "w", 9000), made(tmp_path / "code", "c", 5000)
    run = tree(("web", web.sha256, 3.0), ("code", code.sha256, 1.0), places={"web": "web", "code": "code"})
    run["shared"]["model"] = {"name": "llama", "layers": 1, "dim": 8, "heads": 2, "kv_heads": 1, "ffn_dim": 8}
    config = parse_config(run, base=tmp_path)
    session = Session(config.shared, session_parts(config), worker=Worker())
    # when
    before = session.evaluate(8)
    report = session.inner_steps(plan(config, 1, slot=0))
    # then
    assert (report.steps, report.tokens) == (2, 2 * 4 * 16)
    assert session.evaluate(8) == before == pytest.approx(np.log(256), rel=0.1)


def test_a_source_behind_http_gives_the_same_tokens_as_one_that_lies_here(tmp_path: Path) -> None:
    # given
    config, web, code = two(tmp_path)
    sequences = np.arange(0, 100, 7)
    here = load_corpus(config).cut(sequences, 16)
    with serving(tmp_path) as (url, asked):
        places = {"web": f"{url}/web", "code": f"{url}/code/"}
        mixed = (("web", web.sha256, 3.0), ("code", code.sha256, 1.0))
        remote = parse_config(tree(*mixed, places=places), base=tmp_path)
        # when
        found = load_corpus(remote).cut(sequences, 16)
        small = sum(request.endswith(".json") for request in asked)
        load_corpus(remote)
        # then the indexes and the tokenizer came once
        assert sum(request.endswith(".json") for request in asked) == small == 3
    assert found.tolist() == here.tolist()


@pytest.mark.parametrize("damage", [bytes(3), bytes(2**16)])
def test_a_kept_index_that_was_damaged_is_fetched_again_at_once(
    tmp_path: Path, damage: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given
    index = made(tmp_path / "web")
    monkeypatch.setattr("elastic.data.opening.MAX_BYTES", 2**15)
    kept = tmp_path / "state" / "data" / f"{index.sha256}.json"
    with serving(tmp_path) as (url, _):
        config = parse_config(tree(("web", index.sha256, 1.0), places={"web": f"{url}/web"}), base=tmp_path)
        load_corpus(config)
        kept.write_bytes(damage)
        # when
        load_corpus(config)
    # then it is whole again, and whom the umask lets may read it
    assert kept.read_bytes() == index.canonical()
    assert kept.stat().st_mode == (tmp_path / "web.jsonl").stat().st_mode
    assert not list(kept.parent.glob("*.tmp"))


def test_a_full_disk_leaves_nothing_of_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    index = made(tmp_path / "web")
    monkeypatch.setattr("elastic.state.files.os.fsync", full)
    with serving(tmp_path) as (url, _):
        config = parse_config(tree(("web", index.sha256, 1.0), places={"web": f"{url}/web"}), base=tmp_path)
        with pytest.raises(StateError, match=r"No space left.*free some space"):
            load_corpus(config)
    assert not list((tmp_path / "state" / "data").iterdir())


def test_an_index_here_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, *_ = two(tmp_path)
    monkeypatch.setattr("elastic.data.opening.MAX_BYTES", 100)

    with pytest.raises(MissingCorpusError, match="more than 100 bytes"):
        load_corpus(config)


def test_a_source_of_another_index_is_refused(tmp_path: Path) -> None:
    # given
    index = made(tmp_path / "web")
    config = parse_config(tree(("web", "0" * 64, 1.0), places={"web": "web"}), base=tmp_path)
    # when / then
    with pytest.raises(MissingCorpusError, match=f"index.json has SHA-256 {index.sha256}, but this run"):
        load_corpus(config)
    with serving(tmp_path) as (url, _):
        remote = parse_config(tree(("web", "0" * 64, 1.0), places={"web": f"{url}/web"}), base=tmp_path)
        with pytest.raises(MissingCorpusError, match="but this run trains on 000"):
            load_corpus(remote)
        away = parse_config(tree(("web", "0" * 64, 1.0), places={"web": f"{url}/nowhere"}), base=tmp_path)
        with pytest.raises(FetchError, match="404"):
            load_corpus(away)


def test_sources_of_different_tokenizers_are_refused(tmp_path: Path) -> None:
    # given one source of bytes and one of byte pairs, and two of different byte pairs
    made(tmp_path / "web")
    text = [tmp_path / "web.jsonl"]
    for name, size in (("one", 300), ("two", 301)):
        prepare(text, tmp_path / name, settings_for("bpe", size, text, Reading(), 1000, 0.1), workers=1)

    def config(*names: str, **data: Any) -> RunConfig:
        from model_zoo.prepared import open_folder

        mixed = [(name, open_folder(tmp_path / name).sha256, 1.0) for name in names]
        return parse_config(tree(*mixed, places={name: name for name in names}, **data), base=tmp_path)

    # when / then
    with pytest.raises(MissingCorpusError, match='source one has the tokenizer "bpe" of 300 tokens, and the run "by'):
        load_corpus(config("web", "one"))
    with pytest.raises(MissingCorpusError, match='source two has the tokenizer "bpe" of 301 tokens'):
        load_corpus(config("one", "two", tokenizer="bpe", vocab_size=300))
    assert load_corpus(config("one", tokenizer="bpe", vocab_size=300)).tokenizer.vocab_size == 300


def test_another_tokenizer_file_is_refused(tmp_path: Path) -> None:
    config, *_ = two(tmp_path)
    (tmp_path / "web" / TOKENIZER).write_text("{}")

    with pytest.raises(MissingCorpusError, match=r"tokenizer\.json has SHA-256"):
        load_corpus(config)


def test_a_damaged_shard_gives_an_error_and_no_tokens(tmp_path: Path) -> None:
    # given
    config, web, _ = two(tmp_path)
    path = tmp_path / "web" / web.shards[0].name
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    # when / then
    with pytest.raises(MissingCorpusError, match=r"source web: .*do not have the digest"):
        load_corpus(config).cut(np.array([0]), 16)


def test_a_source_without_a_place_is_named(tmp_path: Path) -> None:
    _, web, _ = two(tmp_path)
    nowhere = parse_config(tree(("web", web.sha256, 1.0), places={"wbe": "web"}), base=tmp_path)

    with pytest.raises(MissingCorpusError, match='does not say where "web" is'):
        load_corpus(nowhere)


# --- elastic check ---------------------------------------------------------------------------------------------------


def test_check_says_what_there_is(tmp_path: Path) -> None:
    config, web, _ = two(tmp_path)

    first, second = check_corpus(config).splitlines()

    assert first == (
        f"source   web, weight 3, {web.tokens:,} tokens in {len(web.shards)} shards, index {web.sha256[:12]}…"
    )
    assert second.startswith("source   code, weight 1, ")


def test_check_misses_a_shard_and_a_byte(tmp_path: Path) -> None:
    # given
    config, web, _ = two(tmp_path)
    path = tmp_path / "web" / web.shards[-1].name
    data = path.read_bytes()
    # when / then
    path.write_bytes(data[:-1])
    with pytest.raises(MissingCorpusError, match=f"has {len(data) - 1:,} bytes, and not {len(data):,}"):
        check_corpus(config)
    path.unlink()
    with pytest.raises(MissingCorpusError, match="is not there"):
        check_corpus(config)


def test_check_asks_no_network(tmp_path: Path) -> None:
    # given
    _, web, code = two(tmp_path)
    with serving(tmp_path) as (url, asked):
        config = parse_config(
            tree(("web", web.sha256, 1.0), ("code", code.sha256, 1.0), places={"web": f"{url}/web", "code": "code"}),
            base=tmp_path,
        )
        # when
        first, second = check_corpus(config).splitlines()
    # then
    assert first == f"source   web at {url}/web: not looked at, it needs a network"
    assert second.startswith("source   code, weight 1") and not asked


@pytest.mark.parametrize(
    ("place", "message"),
    [("ftp://host/x", "is not"), ("s3://", "is not"), ("nowhere", r"nowhere/index\.json: No such file")],
)
def test_check_finds_places_that_are_none(tmp_path: Path, place: str, message: str) -> None:
    pytest.importorskip("obstore")
    config = parse_config(tree(("web", "0" * 64, 1.0), places={"web": place}), base=tmp_path)

    with pytest.raises(ConfigError, match=message):
        check_corpus(config)


@pytest.mark.parametrize("scheme", ["https", "s3"])
def test_check_refuses_a_password_and_does_not_repeat_it(tmp_path: Path, scheme: str) -> None:
    pytest.importorskip("obstore")
    place = f"{scheme}://ann:hidden@host/web"
    config = parse_config(tree(("web", "0" * 64, 1.0), places={"web": place}), base=tmp_path)

    with pytest.raises(ConfigError, match="@") as caught:
        check_corpus(config)
    assert "hidden" not in str(caught.value)


def test_check_finds_a_phase_with_too_little(tmp_path: Path) -> None:
    # given a phase with a source alone that has 27 blocks of 10 sequences, for 27 peers at most
    config, *_ = two(tmp_path, phases=[{"from_round": 7, "weights": {"code": 1.0}}], block=10)
    small = config.shared.model_copy(update={"round": config.shared.round.model_copy(update={"max_peers": 27})})
    assert "note" not in check_corpus(config.model_copy(update={"shared": small}))
    # when / then a run that may have more is refused before they come
    with pytest.raises(ConfigError, match=r"source code: \d+ sequences, in blocks of 10, are too few for 48"):
        check_corpus(config)
    busy = small.model_copy(update={"inner": small.inner.model_copy(update={"steps": 80})})
    with pytest.raises(
        ConfigError, match=r"a round takes 320 .*in round 7 the sources give each of them .* before one is spent"
    ):
        check_corpus(config.model_copy(update={"shared": busy}))


def test_check_notes_that_a_full_roster_makes_rounds_shorter(tmp_path: Path) -> None:
    # given sources for one peer's 40 steps, of which 48 have 22 sequences each
    config, *_ = two(tmp_path)
    long = config.shared.model_copy(update={"inner": config.shared.inner.model_copy(update={"steps": 40})})
    # when
    *_, note = check_corpus(config.model_copy(update={"shared": long})).splitlines()
    # then
    assert note.startswith("note     from round 1 on, 48 peers (max_peers) have ")
    assert "not 160: so many make fewer inner steps" in note


def test_a_note_tells_of_sequences_that_are_fetched_one_by_one(tmp_path: Path) -> None:
    def noted(place: str, **data: Any) -> bool:
        config = parse_config(tree(("web", "0" * 64, 1.0), places={"web": place}, **data), base=tmp_path)
        return any("its own shard" in note for note in notes(config))

    assert noted("https://host/web")
    assert not noted("https://host/web", block=8) and not noted("web")


@pytest.mark.parametrize(("from_round", "noted"), [(1000, 0), (1001, 1)])
def test_a_note_tells_of_a_phase_after_the_last_round(tmp_path: Path, from_round: int, noted: int) -> None:
    phases = [{"from_round": from_round, "weights": {"web": 1.0}}]
    config = parse_config(tree(("web", "0" * 64, 1.0), places={"web": "web"}, phases=phases), base=tmp_path)

    assert sum("is after the last of shared.rounds = 1000" in note for note in notes(config)) == noted


def test_a_model_card_names_the_sources(tmp_path: Path) -> None:
    config, web, code = two(tmp_path, phases=[{"from_round": 5, "weights": {"code": 1.0}}])

    told = f"`web`, weight 3, index `{web.sha256}`; `code`, weight 1, index `{code.sha256}`; from round 5: code 1"
    assert about_text(config.shared.data) == [("sources", told)]
    assert about_text(DataConfig()) == [("text", "`pride_and_prejudice`, SHA-256 `not said`")]


# --- the run file ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"sha256": "0" * 64}, "sha256 is of a text"),
        ({"phases": [{"from_round": 2, "weights": {"wbe": 1.0}}]}, 'no source is called "wbe"'),
        ({"phases": [{"from_round": 2, "weights": {"web": 0.0}}]}, "at least one is above 0"),
        ({"phases": [{"from_round": 0, "weights": {"web": 1.0}}]}, "shared.data.phases, entry 1.from_round"),
        ({"phases": [{"from_round": 2, "weights": {"web": 1.0}}] * 2}, "from_round = 2 does not follow 2"),
        ({"phases": [{"form_round": 2, "weights": {"web": 1.0}}]}, 'did you mean "from_round"?'),
        ({"block": 0}, "shared.data.block"),
    ],
)
def test_mistakes_in_a_mixture_are_said_in_one_line(tmp_path: Path, data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(tree(("web", "0" * 64, 1.0), places={"web": "web"}, **data), base=tmp_path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([("web", "0" * 64, 0.0)], "at least one needs a weight above 0"),
        ([("web", "0" * 64, 1.0)] * 2, "two of them have one name"),
        ([("web", "0" * 64, 1.0), ("net", "0" * 64, 1.0)], "two of them have one `index`"),
        ([("web", "0" * 64, 5e-324)], "a weight is 0, or at least 1e-06"),
        ([("web", "0", 1.0)], "shared.data.sources, entry 1.index"),
        ([("a/b", "0" * 64, 1.0)], "shared.data.sources, entry 1.name"),
        ([("web", "0" * 64, -1.0)], "shared.data.sources, entry 1.weight"),
    ],
)
def test_mistakes_in_sources_are_said_in_one_line(
    tmp_path: Path, sources: list[tuple[str, str, float]], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(tree(*sources, places={}), base=tmp_path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_mixture_is_in_the_digest_and_places_are_not(tmp_path: Path) -> None:
    def digest(weight: float, place: str, **data: Any) -> str:
        config = parse_config(tree(("web", "0" * 64, weight), places={"web": place}, **data), base=tmp_path)
        return config.shared.digest()

    phases = {"phases": [{"from_round": 2, "weights": {"web": 1.0}}]}
    assert digest(1.0, "here") == digest(1.0, "https://there/x")
    assert (
        len({digest(1.0, "here"), digest(2.0, "here"), digest(1.0, "here", **phases), digest(1.0, "x", block=2)}) == 4
    )


def test_places_are_from_the_run_files_folder(tmp_path: Path) -> None:
    places = {"a": "data/a", "b": "/data/b", "c": "s3://bucket/c"}

    config = parse_config(tree(("a", "0" * 64, 1.0), places=places), base=Path("/base"))

    assert config.local.data.sources == {"a": "/base/data/a", "b": "/data/b", "c": "s3://bucket/c"}
