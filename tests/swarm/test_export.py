"""`elastic export` and `elastic generate`: the model of a run, as people take it with them."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builder import identity
from test_average import AVERAGE
from test_replay import recorded

from elastic.actors.anchors import subject_of
from elastic.actors.job import load_corpus
from elastic.cli import main
from elastic.messages import Evidence, Manifest, PeerId, RejectReason, RoundIndex, Verdict
from elastic.models import export
from elastic.models.held import kept, newest, peers_of
from elastic.reports import EVIDENCE_FILE, STATUS_FILE, PeerStatus, RoundEvidence
from elastic.state.chain import CHAIN_FILE, manifests_in
from elastic.wire.dense import encode_state
from elastic.wire.tree import blob_digest
from model_zoo.corpus import read_corpus
from model_zoo.hugging_face import open_folder

ANN, BOB = identity("ann").peer, identity("bob").peer
PROMPT = "It is a truth"

Run = tuple[Path, str]
"""Its folder, and the anchor that it came to."""
Elastic = Callable[..., str]


def toml(table: dict[str, Any], name: str) -> str:
    """A table and those in it; JSON's values are TOML's."""
    tables = {key: value for key, value in table.items() if isinstance(value, dict)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in table.items() if key not in tables and value is not None]
    return "\n".join([f"[{name}]", *lines, *(toml(value, f"{name}.{key}") for key, value in tables.items())])


async def run_of(folder: Path, settings: dict[str, Any] | None = None) -> str:
    """A finished run of ann and bob, each with its run file; the anchor it came to."""
    shared, anchor = await recorded(folder, settings)
    local = {"state_dir": ".", "network": {"bootstrap": []}}
    for name in ("ann", "bob"):
        text = toml(shared.model_dump(mode="json"), "shared") + "\n" + toml(local, "local")
        (folder / name / "run.toml").write_text(text)
    return anchor


@pytest.fixture
async def run(tmp_path: Path) -> Run:
    """Of three rounds."""
    return tmp_path / "run", await run_of(tmp_path / "run")


@pytest.fixture
def elastic(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Elastic:
    """Runs a command; gives what it says."""

    def command(*args: object) -> str:
        monkeypatch.setattr(sys, "argv", ["elastic", *map(str, args)])
        with pytest.raises(SystemExit):
            main()
        return "".join(capsys.readouterr())

    return command


@pytest.mark.parametrize("settings", [{}, AVERAGE], ids=["sparseloco", "average"])
async def test_what_is_exported_is_the_anchor_to_the_last_bit(
    tmp_path: Path, elastic: Elastic, settings: dict[str, Any]
) -> None:
    # given a run whose outer optimizer may have a momentum beside the anchor's params
    anchor = await run_of(tmp_path / "run", settings)
    # when
    said = elastic("export", tmp_path / "run", tmp_path / "out")
    # then
    assert f"before round 4, anchor {anchor}" in said
    model = open_folder(tmp_path / "out").model
    held = newest(peers_of(tmp_path / "run", None), tmp_path / "run")
    assert blob_digest(encode_state(held.tensors)) == anchor
    for name, param in model.named_parameters():
        assert torch.equal(param, held.tensors[name])


async def test_an_exported_model_knows_with_which_token_the_runs_documents_end(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elastic: Elastic
) -> None:
    monkeypatch.setattr(export, "load_corpus", lambda config: replace(load_corpus(config), ends=frozenset([3])))

    elastic("export", run[0], tmp_path / "out")

    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == 3


def test_an_anchor_file_that_lies_near_the_root_is_no_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_file", lambda path: True)
    for path in ("/anchor-00000001-0123456789ab.bin", "/tmp/anchor-00000001-0123456789ab.bin"):
        assert kept(Path(path), None) is None


async def test_transformers_continues_a_text_as_the_run_does(run: Run, tmp_path: Path, elastic: Elastic) -> None:
    transformers = pytest.importorskip("transformers")
    # given
    elastic("export", run[0], tmp_path / "out")
    ours = elastic("generate", run[0], PROMPT, "-n", 30, "--temperature", 0)
    # when
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    tokens = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    theirs = tokenizer.decode(model.generate(tokens, max_new_tokens=30, do_sample=False)[0])
    # then
    assert theirs.startswith(PROMPT) and len(theirs) == len(PROMPT) + 30
    assert theirs + "\n" == ours


async def test_the_card_tells_of_the_run(run: Run, tmp_path: Path, elastic: Elastic) -> None:
    # given bob's account of the rounds but the last, in which something of ann was refused too
    folder, anchor = run
    lines = []
    for round_ in (RoundIndex(1), RoundIndex(2)):
        evidence = [Evidence(verdict=Verdict(peer=each, round=round_), tokens=1000) for each in (ANN, BOB)]
        stale = Verdict(peer=PeerId(ANN), round=round_, rejected=RejectReason.MALFORMED)
        evidence.append(Evidence(verdict=stale, tokens=77))
        seen = RoundEvidence(run="demo", round=round_, peer=BOB, evidence=tuple(evidence))
        lines.append(seen.canonical() + b"\n")
    (folder / "bob" / EVIDENCE_FILE).write_bytes(b"".join(lines))
    status = PeerStatus(
        peer=BOB, name="|bob|", run="demo", stage="finished", digest=anchor, held_out=2.5, updated=1.0, pid=1
    )  # fmt: skip
    (folder / "bob" / STATUS_FILE).write_bytes(status.canonical())
    # when
    elastic("export", folder, tmp_path / "out")
    # then
    card = (tmp_path / "out" / "README.md").read_text()
    chain = manifests_in(folder / "ann" / CHAIN_FILE)
    for said in (
        "# demo", "3 outer steps by 2 contributors", f"| head of the manifests | `{chain[-1].digest()}` |",
        f"| anchor | `{anchor}` |", "| rounds | 3 of 3, 3 with an outer step |",
        "| tokens | 4,000 in contributions that counted, as contributors said, and of 2 contributions nobody here",
        f"| `{ANN}` | 3 | 2,000 | 50.00% |", f"| `{BOB}` | 3 | 2,000 | 50.00% |",
        "| held-out loss | 2.5000 nats per token |", f"| validators | `{ANN}` |",
    ):  # fmt: skip
        assert said in card, card


async def test_the_model_of_an_earlier_round_is_rebuilt(run: Run, tmp_path: Path, elastic: Elastic) -> None:
    # given
    folder, chain = run[0], manifests_in(run[0] / "bob" / CHAIN_FILE)
    # when
    said = elastic("export", folder / "bob", tmp_path / "out", "--round", 2, "--dtype", "bfloat16")
    # then
    assert f"before round 2, anchor {chain[2].anchor}" in said
    card = (tmp_path / "out" / "README.md").read_text()
    assert chain[1].digest() in card and chain[2].digest() not in card
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert "error: --round 9: the run has got to round 4" in elastic("export", folder, tmp_path / "o", "--round", 9)


async def test_the_anchor_of_an_earlier_round_is_taken_from_who_kept_it(
    run: Run, tmp_path: Path, elastic: Elastic, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a peer that has it still, and no way to rebuild it
    folder, chain = run[0], manifests_in(run[0] / "bob" / CHAIN_FILE)
    (kept,) = (folder / "bob" / "state" / "files").glob("anchor-00000003-*.bin")
    with monkeypatch.context() as patch:
        patch.setattr("elastic.replay.replay", lambda *_, **__: pytest.fail("it was rebuilt"))
        # when
        said = elastic("export", folder, tmp_path / "out", "--round", 3)
        text = elastic("generate", folder / "bob", PROMPT, "--round", 3)
        # then
        assert f"before round 3, anchor {chain[3].anchor}" in said
        assert text == elastic("generate", tmp_path / "out", PROMPT) != elastic("generate", folder / "bob", PROMPT)
        assert "holds one model" in elastic("generate", tmp_path / "out", PROMPT, "--round", 3)
        # and a damaged one is left out
        spoil(next((folder / "ann" / "state" / "files").glob("anchor-00000003-*.bin")))
        assert f"anchor {chain[3].anchor}" in elastic("export", folder, tmp_path / "again", "--round", 3)
    # and without a whole one, the damaged one is named
    spoil(kept)
    assert "another anchor of round 3 than was replayed" in elastic("export", folder, tmp_path / "o", "--round", 3)


async def test_one_seed_gives_one_text_from_wherever_the_model_is(run: Run, tmp_path: Path, elastic: Elastic) -> None:
    # given
    folder = run[0]
    elastic("export", folder, tmp_path / "out")
    shutil.copytree(folder / "ann" / "state", tmp_path / "bare" / "state")
    # when
    said = elastic("generate", folder, PROMPT, "--seed", 3)
    # then
    assert said.startswith(PROMPT)
    assert said == elastic("generate", folder / "bob", PROMPT, "--seed", 3)
    assert said == elastic("generate", folder / "bob" / "run.toml", PROMPT, "--seed", 3)
    assert said == elastic("generate", tmp_path / "out", PROMPT, "--seed", 3)
    assert said == elastic(
        "generate", tmp_path / "bare", PROMPT, "--seed", 3, "--run-file", folder / "ann" / "run.toml"
    )
    assert said != elastic("generate", folder, PROMPT, "--seed", 4)
    # and the bytes of a model that has learned little are no commands for a terminal
    assert all(each.isprintable() or each in "\n\t\xa0" for each in said)


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda state: spoil(next(state.glob("files/anchor-00000004*"))), "is damaged: its bytes have another digest"),
        (lambda state: next(state.glob("files/anchor-00000004*")).unlink(), "is not there, though state.json"),
        (lambda state: (state / "state.json").write_text("{}"), "state.json: is damaged"),
        (lambda state: shutil.rmtree(state), "no peer has a model there yet"),
    ],
)
@pytest.mark.parametrize("command", ["export", "generate"])
async def test_a_damaged_state_is_named(
    run: Run, tmp_path: Path, elastic: Elastic, command: str, damage: Callable[[Path], Any], says: str
) -> None:
    damage(run[0] / "bob" / "state")

    said = elastic(command, run[0] / "bob", tmp_path / "out")

    assert said.startswith("error: ") and says in said and "bob" in said
    assert not (tmp_path / "out").exists()


async def test_the_run_file_of_another_model_is_noticed(run: Run, tmp_path: Path, elastic: Elastic) -> None:
    path = run[0] / "bob" / "run.toml"
    path.write_text(path.read_text().replace("ffn_dim = 64", "ffn_dim = 65"))

    assert "is it the run file of that run?" in elastic("export", run[0] / "bob", tmp_path / "out")
    assert "are of several runs" in elastic("export", run[0], tmp_path / "out")


async def test_chains_that_contradict_each_other_are_noticed(run: Run, tmp_path: Path, elastic: Elastic) -> None:
    # given
    path = run[0] / "bob" / CHAIN_FILE
    first, second, *rest = path.read_bytes().splitlines(keepends=True)
    forged = json.loads(second) | {"pace": [1.0]}
    second = Manifest.model_validate_json(json.dumps(forged)).canonical() + b"\n"
    path.write_bytes(b"".join([first, second, *rest]))
    # then
    assert "or another manifest than others have" in elastic("export", run[0], tmp_path / "out")
    assert "does not continue manifest 1" in elastic("export", run[0] / "bob", tmp_path / "out")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("export", "nowhere", "out"), "nowhere: there is nothing of that name"),
        (("export", ".", "out"), "no run.toml there"),
        (("export", ".", "out", "--run-file", "nowhere.toml"), "nowhere.toml: no such run file"),
        (("export", ".", "out", "--round", "0"), "Invalid value for '--round'"),
        (("export", ".", "out", "--dtype", "int4"), "'int4' is not one of"),
        (("generate", ".", "x", "--temperature", "nan"), "--temperature"),
        (("generate", ".", "x", "--temperature", "inf"), "--temperature"),
        (("generate", ".", "x", "-n", "0"), "Invalid value for"),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elastic: Elastic, args: tuple[str, ...], says: str
) -> None:
    monkeypatch.chdir(tmp_path)

    said = elastic(*args)

    assert said.startswith("error: ") and says in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


async def test_what_cannot_be_written_or_said(run: Run, tmp_path: Path, elastic: Elastic) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("")
    assert "taken: is not empty" in elastic("export", run[0], tmp_path / "taken")
    (tmp_path / "file").write_text("")
    assert f"error: {tmp_path / 'file'}: " in elastic("export", run[0], tmp_path / "file" / "out")
    assert "the prompt is empty" in elastic("generate", run[0], "")


async def test_a_runs_model_is_measured_on_what_it_holds_out(run: Run, tmp_path: Path, elastic: Elastic) -> None:
    pytest.importorskip("lm_eval")
    # given
    held = newest(peers_of(run[0], None), run[0])
    subject, text = subject_of(held), read_corpus("pride_and_prejudice").decode()
    assert subject.longest == held.config.shared.inner.sequence_length
    assert text.endswith(subject.text) and len(subject.text) / len(text) == pytest.approx(0.05, abs=0.001)
    # when
    said = elastic("eval", run[0], "--tasks", "bits_per_byte", "--limit", 3, "--json", tmp_path / "found.json")
    # then
    assert f"run demo, before round 4, anchor {run[1][:12]}" in said
    (found,) = json.loads((tmp_path / "found.json").read_text())["results"]
    assert found["samples"] == 3 and 6 < found["value"] < 10, "a model of three rounds"


async def test_an_anchor_file_is_opened_as_what_its_name_says(run: Run, tmp_path: Path, elastic: Elastic) -> None:
    # given the anchors that ann keeps
    files = sorted((run[0] / "ann" / "state" / "files").glob("anchor-*.bin"))
    older, newest_one = files[-2:]
    # then one is the run's newest model, and another an older one
    ours = elastic("generate", run[0], PROMPT, "-n", 10)
    assert elastic("generate", newest_one, PROMPT, "-n", 10) == ours
    assert kept(older, None).round == 3  # type: ignore[union-attr]
    # and one that is not what its name says is damaged
    older.write_bytes(newest_one.read_bytes())
    assert "is damaged: its bytes have another digest than its name says" in elastic("generate", older, PROMPT)
    assert kept(run[0], None) is None


async def test_how_much_a_model_reads_at_a_time_can_be_said(run: Run, elastic: Elastic) -> None:
    pytest.importorskip("lm_eval")
    arguments = ("eval", run[0], "--tasks", "bits_per_byte", "--limit", 2)
    assert elastic(*arguments, "--context", 16) == elastic(*arguments), "its sequences have 16 tokens"
    assert elastic(*arguments, "--context", 64) != elastic(*arguments)
    assert "this model reads 512 tokens at a time, at most" in elastic(*arguments, "--context", 513)
