"""The session of one worker: its schedule, its steps against slow references, and what it finds on disk again."""

import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_state import Crash, fail_at

from elastic.agreement.manifests import draft, genesis
from elastic.config import Shared
from elastic.data.corpus import of_text
from elastic.errors import DivergedError, StateError
from elastic.messages import Counted, Manifest, PeerId, RoundIndex, RoundPlan
from elastic.registry import build
from elastic.schedule.plan import plan_round
from elastic.state.store import StateStore
from elastic.train.inner import learning_rate
from elastic.train.outer import MOMENTUM
from elastic.train.session import Parts, Session
from elastic.train.workers import Worker
from elastic.wire.dense import decode_state
from elastic.wire.signing import Identity
from elastic.wire.tree import blob_digest

ME, OTHER = (Identity.generate().peer for _ in range(2))
TOKENS = np.random.default_rng(0).integers(0, 16, 600).astype(np.uint16)
TOKENIZER = SimpleNamespace(encode=lambda text: [ord(c) % 16 for c in text], decode=lambda ids: " ".join(map(str, ids)))
CORPUS = of_text(TOKENS, held_out=0.05, tokenizer=TOKENIZER)


def shared(**changes: Any) -> Shared:
    model = {"name": "llama", "vocab_size": 16, "layers": 1, "dim": 8, "heads": 2, "kv_heads": 1, "ffn_dim": 8}
    tree: dict[str, Any] = {
        "run": "demo", "rounds": 5, "model": model, "reducer": {"name": "sparseloco", "chunk": 64, "k": 8},
        "inner": {"steps": 2, "batch_size": 2, "sequence_length": 8, "warmup_steps": 1},
        "agreement": {"validators": (ME,)},
    }  # fmt: skip
    return Shared.model_validate(tree | changes)


def make(folder: Path, config: Shared, sequences: Any = range(4)) -> Session:
    parts = Parts(
        model=build("model", config.model), corpus=CORPUS, assign=lambda plan: np.array(list(sequences), np.int64),
        reducer=build("reducer", config.reducer), store=StateStore(folder),
    )  # fmt: skip
    return Session(config, parts, worker=Worker())


def founded(folder: Path, config: Shared) -> tuple[Session, Manifest]:
    """A session that holds the anchor of round 1, and the genesis."""
    session = make(folder, config)
    head = genesis("demo", session.state().anchor, [ME, OTHER], ME)
    session.outer_step(head, {})
    return session, head


def plan_of(session: Session, head: Manifest) -> RoundPlan:
    return plan_round(session.shared, head, session.state().anchor, ME)


def contributed(session: Session, head: Manifest) -> bytes:
    plan = plan_of(session, head)
    return session.compress(plan, session.inner_steps(plan))


def after(session: Session, head: Manifest, *payloads: tuple[PeerId, bytes]) -> Manifest:
    """The manifest that counts these payloads alike."""
    counted = [
        Counted(peer=peer, payload=blob_digest(payload), size_bytes=len(payload), share=1 / len(payloads))
        for peer, payload in payloads
    ]
    return draft(head, session.state().anchor, counted, [ME, OTHER], ME)


def copied(tensors: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in tensors.items()}


def same(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- inner steps -----------------------------------------------------------------------------------------------------


def test_diverged_steps_leave_anchor_and_residual_and_reset_the_optimizer(tmp_path: Path) -> None:
    # given
    session, head = founded(tmp_path, shared())
    anchor, residual, optimizer = copied(session.anchor), copied(session.residual), session.optimizer
    session.loss, loss = (lambda batch: loss(batch) * math.nan), session.loss
    # when
    with pytest.raises(DivergedError):
        session.inner_steps(plan_of(session, head))
    # then
    assert same(session.anchor, anchor) and same(session.residual, residual)
    assert session.optimizer is not optimizer and session.pending is None
    # and it can go on
    session.loss = loss
    assert contributed(session, head)


def test_tokens_beyond_the_text_are_refused_in_one_line(tmp_path: Path) -> None:
    # given
    config = shared()
    make(tmp_path, config)
    session = make(tmp_path, config, sequences=[10_000])
    head = genesis("demo", session.state().anchor, [ME], ME)
    # when / then
    with pytest.raises(ValueError, match="outside a text") as caught:
        session.inner_steps(plan_of(session, head))
    assert "\n" not in str(caught.value)


def test_a_fresh_optimizer_in_mid_run_warms_up_again(tmp_path: Path) -> None:
    # given a joiner whose run has long left its warm-up, and a reference that records the rates
    config = shared(inner={"steps": 2, "batch_size": 2, "sequence_length": 8, "warmup_steps": 4})
    session, head = founded(tmp_path, config)
    rates: list[float] = []
    step = session.optimizer.step
    session.optimizer.step = lambda *a, **k: (  # type: ignore[method-assign]
        rates.append(session.optimizer.param_groups[0]["lr"]),
        step(*a, **k),
    )
    late = plan_of(session, head).model_copy(update={"round": RoundIndex(4)})
    # when
    session.inner_steps(late)
    session.inner_steps(late.model_copy(update={"round": RoundIndex(5)}))
    # then
    peak = config.inner.learning_rate
    assert rates[:2] == pytest.approx([peak / 4, peak / 2])
    assert rates == [min(learning_rate(6 + s, 10, config.inner), peak * (s + 1) / 4) for s in range(4)]


def test_what_bf16_cannot_say_of_the_anchor_is_not_mistaken_for_learning(tmp_path: Path) -> None:
    # given a model in bf16 that learns nothing
    session, _ = founded(tmp_path, shared())
    session.model.bfloat16()
    session.fitted.params = dict(session.model.named_parameters())
    session.anchor_into_params()
    # when / then
    assert all(not value.any() for value in session.pseudo_gradient().values())
    assert any(not torch.equal(session.anchor[n], p.detach().float()) for n, p in session.fitted.params.items())


# --- settling --------------------------------------------------------------------------------------------------------


def test_a_counted_contribution_leaves_the_residual_for_good(tmp_path: Path) -> None:
    # given
    session, head = founded(tmp_path, shared())
    payload = contributed(session, head)
    left = copied(session.residual)
    # when
    session.outer_step(after(session, head, (ME, payload)), {blob_digest(payload): payload})
    # then
    assert session.pending is None and same(session.residual, left)


def test_an_uncounted_contribution_goes_back_into_the_residual(tmp_path: Path) -> None:
    # given
    session, head = founded(tmp_path, shared())
    plan = plan_of(session, head)
    inner = session.inner_steps(plan)
    done = {name: session.anchor[name] - param.detach() for name, param in session.fitted.params.items()}
    payload = session.compress(plan, inner)
    others = contributed(founded(tmp_path / "other", shared(seed=1))[0], head)
    # when
    session.outer_step(after(session, head, (OTHER, others)), {blob_digest(others): others})
    # then everything that was done is still there, to rounding
    assert session.pending is None
    for name, value in session.residual.items():
        assert torch.allclose(value, done[name], rtol=2**-23, atol=float(done[name].abs().max()) * 2**-23)
    # and again after a restart
    assert same(make(tmp_path, shared()).residual, session.residual)
    session.store.flush()
    assert payload not in [path.read_bytes() for path in tmp_path.rglob("*.bin")]


def test_a_second_contribution_is_never_made_before_the_first_is_settled(tmp_path: Path) -> None:
    # given
    session, head = founded(tmp_path, shared())
    contributed(session, head)
    # when / then
    with pytest.raises(AssertionError, match="settled"):
        contributed(session, head)


def test_a_void_manifest_moves_nothing(tmp_path: Path) -> None:
    # given
    session, head = founded(tmp_path, shared(outer={"nesterov": 0.9}))
    contributed(session, head)
    anchor = session.state().anchor
    # when
    digest = session.outer_step(after(session, head), {})
    # then
    assert digest == anchor and session.state().round == 2
    assert any(value.abs().sum() > 0 for value in session.residual.values())


# --- what is on disk -------------------------------------------------------------------------------------------------


def test_a_restarted_session_holds_what_it_held(tmp_path: Path) -> None:
    # given a contribution that is not settled
    session, head = founded(tmp_path, shared())
    contributed(session, head)
    # when
    again = make(tmp_path, shared())
    # then
    assert again.state() == session.state()
    assert same(again.anchor, session.anchor) and same(again.residual, session.residual)
    assert Path(again.state().state_path).stat().st_size == again.state().size_bytes
    assert blob_digest(Path(again.state().state_path).read_bytes()) == again.state().anchor


@pytest.mark.parametrize("verb", ["compress", "outer_step"])
def test_a_crash_before_the_commit_is_as_if_the_verb_had_never_been(tmp_path: Path, verb: str) -> None:
    # given the files are written, and the process dies before state.json names them
    session, head = founded(tmp_path, shared())
    if verb == "outer_step":
        contributed(session, head)
    before = make(tmp_path, shared())
    session.store.flush()
    twin = make(shutil.copytree(tmp_path, tmp_path / "twin"), shared())
    others = contributed(founded(tmp_path / "other", shared(seed=1))[0], head)
    counting = after(session, head, (OTHER, others))

    def dies(meta: object) -> None:
        raise KeyboardInterrupt

    session.store.commit = dies
    with pytest.raises(KeyboardInterrupt):
        contributed(session, head) if verb == "compress" else session.outer_step(
            counting, {blob_digest(others): others}
        )
    # when
    again = make(tmp_path, shared())
    # then
    assert again.state() == before.state()
    assert same(again.residual, before.residual) and same(again.anchor, before.anchor)
    # and the verb can be done again
    made = {blob_digest(others): others}
    assert again.outer_step(counting, made) == twin.outer_step(counting, made)


SMALL, SHARDED = 3, 2 + 1 + 8
"""Steps of a file: reserve space, write, rename; and of one in parts, whose header and eight tensors are written."""
WRITES = {"compress": SMALL + SHARDED + SMALL, "outer_step": SHARDED + SHARDED + SMALL}


@pytest.mark.parametrize(("verb", "step"), [(verb, step) for verb in WRITES for step in range(WRITES[verb] + 1)])
def test_a_kill_at_any_write_leaves_the_residual_as_it_was_before_that_write_or_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, step: int
) -> None:
    # given a peer whose contribution to round 1 counted, and in round 2 another's does
    session, head = founded(tmp_path, shared())
    first = contributed(session, head)
    head = after(session, head, (ME, first))
    session.outer_step(head, {blob_digest(first): first})
    others = contributed(founded(tmp_path / "other", shared(seed=1))[0], head)

    def act() -> None:
        if verb == "compress":
            contributed(session, head)
        else:
            session.outer_step(after(session, head, (OTHER, others)), {blob_digest(others): others})

    if verb == "outer_step":
        contributed(session, head)
    before = make(tmp_path, shared())
    # when it is killed at that write of round 2
    with monkeypatch.context() as patch:
        fail_at(patch, step, Crash)
        if step < WRITES[verb]:
            with pytest.raises(Crash):
                act()
        else:
            act()
    # then a new life has what it had a verb ago, or what it came to
    again = make(tmp_path, shared())
    is_new = again.state() != before.state()
    assert is_new is (step >= WRITES[verb])
    kept = session if is_new else before
    assert again.pending == kept.pending and same(again.residual, kept.residual)
    assert not same(session.residual, before.residual)


def test_the_momentum_is_resumed_and_part_of_the_digest(tmp_path: Path) -> None:
    # given
    config = shared(outer={"learning_rate": 0.7, "nesterov": 0.9})
    session, head = founded(tmp_path, config)
    payload = contributed(session, head)
    session.outer_step(after(session, head, (ME, payload)), {blob_digest(payload): payload})
    # when
    again = make(tmp_path, config)
    # then
    momentum = {name: value for name, value in again.anchor.items() if name.startswith(MOMENTUM)}
    assert sum(value.abs().sum() for value in momentum.values()) > 0
    assert same(again.anchor, session.anchor)
    assert {MOMENTUM + name for name in again.fitted.params} == set(momentum)


def test_two_fresh_sessions_hold_the_same_anchor(tmp_path: Path) -> None:
    one, other = make(tmp_path / "one", shared()), make(tmp_path / "other", shared())
    assert one.state().anchor == other.state().anchor
    assert make(tmp_path / "third", shared(seed=7)).state().anchor != one.state().anchor


def test_another_payload_of_ours_does_not_settle_the_one_that_we_hold(tmp_path: Path) -> None:
    # given one that lost its disk and contributed again; what counts is what it sent before
    session, head = founded(tmp_path, shared())
    contributed(session, head)
    other, other_head = founded(tmp_path / "before", shared(inner={"learning_rate": 1e-4}))
    lost = contributed(other, other_head)
    before = copied(session.residual)
    # when
    session.outer_step(after(session, head, (ME, lost)), {blob_digest(lost): lost})
    # then our work is back in the residual
    assert session.pending is None
    assert not same(before, session.residual)


def test_work_that_counts_under_a_thiefs_name_is_not_offered_again(tmp_path: Path) -> None:
    # given one that committed to our payload too, and was drawn as its author
    session, head = founded(tmp_path, shared())
    payload = contributed(session, head)
    left = copied(session.residual)
    # when
    session.outer_step(after(session, head, (OTHER, payload)), {blob_digest(payload): payload})
    # then it moved the anchor once, and has left the residual for good
    assert session.pending is None and same(session.residual, left)


def test_a_fetched_anchor_keeps_work_that_was_not_counted(tmp_path: Path) -> None:
    # given work in the residual, and a pending contribution whose round counted others
    session, head = founded(tmp_path, shared())
    contributed(session, head)
    other = make(tmp_path / "other", shared(seed=1))
    state = Path(other.state().state_path).read_bytes()
    uncounted = after(session, head)
    # when
    digest = session.load(state, RoundIndex(5), uncounted)
    # then
    assert digest == other.state().anchor == session.state().anchor and session.state().round == 5
    assert session.pending is None and any(value.abs().sum() > 0 for value in session.residual.values())
    assert same(make(tmp_path, shared()).residual, session.residual)


def test_a_fetched_anchor_drops_work_that_may_have_been_counted(tmp_path: Path) -> None:
    # given
    session, head = founded(tmp_path, shared())
    contributed(session, head)
    left = copied(session.residual)
    state = Path(session.state().state_path).read_bytes()
    # when nobody knows the manifest of its round any more
    session.load(state, RoundIndex(9))
    # then
    assert session.pending is None and same(session.residual, left)


@pytest.mark.parametrize(
    ("kind", "damage"),
    [(kind, damage) for kind in ("anchor", "residual", "payload") for damage in ("shorter", "one bit", "gone")],
)
def test_a_damaged_file_is_one_line_with_a_remedy(tmp_path: Path, kind: str, damage: str) -> None:
    # given
    session, head = founded(tmp_path, shared())
    contributed(session, head)
    meta = session.meta
    session.store.flush()  # so that there is no other state to fall back to
    assert meta.residual_file and meta.pending
    name = {"anchor": meta.anchor_file, "residual": meta.residual_file, "payload": meta.pending.payload_file}[kind]
    path = Path(session.store.path_of(name))
    data = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        data[-1] ^= 0x40
        path.write_bytes(data[:-1] if damage == "shorter" else data)
    # when / then
    with pytest.raises(StateError, match="remove") as caught:
        make(tmp_path, shared())
    assert "\n" not in str(caught.value)


# --- looking at the model --------------------------------------------------------------------------------------------


def test_evaluation_is_the_same_every_time_and_of_the_anchor(tmp_path: Path) -> None:
    # given
    session, head = founded(tmp_path, shared())
    before = session.evaluate(3)
    # when params have moved away from the anchor
    session.inner_steps(plan_of(session, head))
    # then
    assert session.evaluate(3) == before == make(tmp_path, shared()).evaluate(3)
    assert before == pytest.approx(math.log(16), abs=0.5)


@pytest.mark.parametrize("look", [lambda session: session.evaluate(2), lambda session: session.generate("abc", 2)])
def test_a_look_at_the_model_in_the_middle_of_a_round_changes_nothing(tmp_path: Path, look: Any) -> None:
    # given
    config = shared()
    session, head = founded(tmp_path / "one", config)
    undisturbed, _ = founded(tmp_path / "two", config)
    plan = plan_of(session, head)
    report = session.inner_steps(plan)
    # when
    look(session)
    # then
    assert session.compress(plan, report) == contributed(undisturbed, head)


def test_generation_is_repeatable_text(tmp_path: Path) -> None:
    session = make(tmp_path, shared())
    assert session.generate("abc", 5) == session.generate("abc", 5)
    assert len(session.generate("abc", 5).split()) == 8


def test_the_state_file_is_the_anchor_for_joiners(tmp_path: Path) -> None:
    session = make(tmp_path, shared())
    assert same(decode_state(Path(session.state().state_path).read_bytes(), session.anchor), session.anchor)
