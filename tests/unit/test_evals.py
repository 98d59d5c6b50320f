"""The tasks that ship with the project, through lm-eval: right numbers, no network, and clear words."""

import json
import math
import os
import re
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elastic.data.corpus import Corpus, Source, of_text
from elastic.errors import ConfigError
from elastic.evals.subject import Subject, held_out_text, shipped_text
from elastic.evals.tasks import BITS, FACTS, pieces, questions
from elastic.models.evaluate import table
from elastic.reports import Measured
from model_zoo.hugging_face import write_folder
from model_zoo.llama import Llama
from model_zoo.tokenizer import BPETokenizer, ByteTokenizer
from tests.unit.conftest import Run
from tests.unit.folder_cases import BPE, tiny

BYTES = ByteTokenizer()
LENGTH = 32
NANO = Llama(Llama.Config(preset="nano", layers=1))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models so small are slower on several, and very slow beside others."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def subject(seed: int = 0, text: str = shipped_text()[:3000], tokenizer: Any = BYTES) -> Subject:
    NANO.initialize(seed)
    return Subject(NANO, tokenizer, frozenset(), LENGTH, text)


def measured(about: Subject, *tasks: str, limit: int | None = None) -> list[Measured]:
    pytest.importorskip("lm_eval")
    from elastic.evals.harness import measure

    return measure(about, tasks, limit, 8, lambda done, total: None)


# --- the tasks as data ----------------------------------------------------------------------------------------------


def test_questions_are_plain_and_their_answers_stand_anywhere() -> None:
    found = questions()
    assert 40 <= len(found) <= 100
    assert len({each.text for each in found}) == len(found)
    assert all(len(set(each.choices)) == 4 for each in found)
    places = Counter(each.answer for each in found)
    assert set(places) == {0, 1, 2, 3} and max(places.values()) - min(places.values()) <= 1


def test_who_always_takes_the_shortest_end_knows_nothing() -> None:
    """Long ends are unlikely for a model that knows nothing: their lengths must not give the answers away."""
    right = 0.0
    for each in questions():
        lengths = [len(choice) for choice in each.choices]
        shortest = min(lengths)
        right += (lengths[each.answer] == shortest) / lengths.count(shortest)
    assert right / len(questions()) == pytest.approx(0.25, abs=0.05)


@given(st.text("ab \n", max_size=400), st.integers(1, 50))
def test_pieces_are_the_whole_text_and_none_is_too_long(text: str, size: int) -> None:
    found = pieces(text, size)
    assert "".join(found) == text
    assert all(0 < len(each) <= size for each in found)


def test_a_piece_ends_where_a_paragraph_does() -> None:
    assert pieces("one\ntwo\n\nthree\nfour", 12) == ["one\ntwo\n\n", "three\nfour"]
    assert all(each.endswith("\n") for each in pieces(shipped_text())[:-1])


def held_out(tokens: Any, fraction: float) -> str:
    return held_out_text(of_text(tokens, fraction).held_out_rows(2**18), BYTES, frozenset())


def test_of_several_sources_each_has_its_part_and_ends_of_documents_are_no_text() -> None:
    # given a mixture of three to one, and 40 tokens to read
    sources = tuple(Source(BYTES.encode(letter * 99 + "|" + letter * 900), 0.95) for letter in "ab")
    rows = Corpus(sources, (3.0, 1.0), BYTES, 256).held_out_rows(40)
    # when / then
    assert held_out_text(rows, BYTES, frozenset([ord("|")])) == "a" * 30 + "\n" + "b" * 10
    everything = Corpus(sources, (3.0, 1.0), BYTES, 256).held_out_rows(10**6)
    assert held_out_text(everything, BYTES, frozenset([ord("|")])) == "a" * 949 + "\n" + "b" * 949


def test_held_out_text_is_the_end_that_nobody_trains_on() -> None:
    text = "é" * 50
    tokens = BYTES.encode(text)

    assert held_out(tokens, 0.1) == "é" * 5
    assert held_out(tokens, 0.11) == "é" * 5, "half a letter is none"
    with pytest.raises(ConfigError, match="held_out is too small"):
        held_out(BYTES.encode("a" * 50 + " " * 50), 0.1)


def test_held_out_tokens_that_a_strangers_tokenizer_cannot_say_are_one_line() -> None:
    decoder = {"type": "Strip", "content": "h", "start": 100, "stop": 100}
    hostile = BPETokenizer(json.dumps({**json.loads(BYTES.to_json()), "decoder": decoder}))

    with pytest.raises(ConfigError, match="the held-out text: the tokenizer has no text"):
        held_out_text([np.array([104])], hostile, frozenset())


# --- through lm-eval ------------------------------------------------------------------------------------------------


def bits_by_hand(about: Subject) -> float:
    """From the model's own loss: each piece read so many tokens at a time, the last time as many as before it, too."""
    nats = 0.0
    for piece in pieces(about.text):
        tokens = np.concatenate((about.tokenizer.encode("\n"), about.tokenizer.encode(piece))).astype(np.int64)
        for begin in range(0, len(tokens) - 1, LENGTH):
            end = min(begin + LENGTH, len(tokens) - 1)
            first = begin if end - begin == LENGTH else max(0, end - LENGTH)
            row_1T = torch.from_numpy(tokens[None, first : end + 1])
            with torch.no_grad():
                logits_TV = about.model(row_1T[:, :-1])[0]
                mean = float(about.model.loss(row_1T))
                each_T = torch.nn.functional.cross_entropy(logits_TV, row_1T[0, 1:], reduction="none")
            assert float(each_T.mean()) == pytest.approx(mean, rel=1e-5)
            nats += float(each_T[begin - first :].double().sum())
    return nats / math.log(2) / len(about.text.encode())


def test_bits_per_byte_are_those_of_the_models_own_loss() -> None:
    about = subject()

    (found,) = measured(about, BITS)

    assert found.value == pytest.approx(bits_by_hand(about), rel=1e-6)
    assert found.samples == len(pieces(about.text)) == 2
    assert found.stderr is not None and 0 < found.stderr < 0.2


def test_they_do_not_depend_on_how_text_is_cut_into_tokens() -> None:
    """A model for which all tokens are alike says log2(vocabulary) bits of each."""
    even, text = tiny(), shipped_text()[:2500]
    with torch.no_grad():
        even.embedding.zero_()

    (found,) = measured(Subject(even, BPE, frozenset(), LENGTH, text), BITS)

    num_tokens = sum(len(BPE.encode(piece)) for piece in pieces(text))
    assert found.value == pytest.approx(math.log2(300) * num_tokens / len(text.encode()), rel=1e-6)


def test_a_model_that_learned_nothing_guesses() -> None:
    right = [measured(subject(seed), FACTS)[0] for seed in range(4)]

    assert sum(each.value for each in right) / 4 == pytest.approx(0.25, abs=0.08)
    assert all(each.samples == 84 and each.stderr for each in right)


def test_a_model_that_knows_the_answers_is_right() -> None:
    """lm-eval hears which end is more likely, not which is shorter or stands first."""

    class Knows(torch.nn.Module):
        """Takes each token for certain that continues one of the true sentences."""

        def __init__(self) -> None:
            super().__init__()
            self.any = torch.nn.Parameter(torch.zeros(256, 1))
            self.true = [BYTES.encode(f"{each.text} {each.choices[each.answer]}").tolist() for each in questions()]

        def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
            logits_BTV = torch.zeros(*tokens_BT.shape, 256)
            for row, tokens in enumerate(tokens_BT.tolist()):
                for true in self.true:
                    for place in range(len(true) - 1):
                        if tokens[: place + 1] == true[: place + 1]:
                            logits_BTV[row, place, true[place + 1]] = 20.0
            return logits_BTV

    (found,) = measured(Subject(Knows(), BYTES, frozenset(), 128, "x"), FACTS)

    assert found.value == 1.0


@pytest.mark.parametrize("text", ["[1, 2, 3]", "['a', 'b']", "[]", "[__import__('os')]"])
def test_a_text_that_looks_like_python_is_text(text: str) -> None:
    about = subject(text=text)

    (found,) = measured(about, BITS)

    assert found.value == pytest.approx(bits_by_hand(about), rel=1e-5)


def test_a_tokenizer_without_a_line_break_is_one_line() -> None:
    nothing = {"type": "TemplateProcessing", "pair": [], "special_tokens": {}}
    nothing["single"] = [{"SpecialToken": {"id": "q", "type_id": 0}}]
    definition = json.dumps({**json.loads(BYTES.to_json()), "post_processor": nothing})

    with pytest.raises(ConfigError, match="no token for a line break"):
        measured(subject(tokenizer=BPETokenizer(definition)), BITS)


@pytest.mark.parametrize("error", [KeyError("q"), TypeError("?\nat"), ZeroDivisionError()])
def test_a_task_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    about = subject()

    def fails(*_: Any) -> None:
        raise error

    monkeypatch.setattr(about.model, "forward", fails)
    with pytest.raises(ConfigError) as told:
        measured(about, FACTS, limit=1)
    assert str(told.value).startswith("facts: ") and "\n" not in str(told.value)


def test_standard_errors_fork_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval draws them in as many processes as there are cores, each a copy of this one with its threads."""
    pytest.importorskip("lm_eval")
    import multiprocessing

    from lm_eval.api.metrics import bootstrap_stderr, mean

    import elastic.evals.harness  # noqa: F401

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("it forks")

    monkeypatch.setattr(multiprocessing, "Pool", refused)
    monkeypatch.setattr(multiprocessing, "get_context", refused)
    assert bootstrap_stderr(mean, [0.0, 1.0, 1.0], 10) > 0


def test_limit_takes_the_first_examples() -> None:
    bits, facts = measured(subject(), BITS, FACTS, limit=1)

    assert (bits.samples, facts.samples) == (1, 1)
    assert bits.stderr is None, "one text has none"
    assert bits.value == pytest.approx(bits_by_hand(subject(text=pieces(shipped_text()[:3000])[0])), rel=1e-6)


def test_a_context_longer_than_the_model_reads_loses_its_beginning() -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance

    from elastic.evals.harness import Model

    model = Model(subject(), 8, lambda done, total: None)
    asks = [
        Instance(request_type="loglikelihood", doc={}, arguments=(context, " end"), idx=0)
        for context in ("x" * 400 + "a" * 28, "y" + "a" * 28, "")
    ]

    far, near, alone = model.loglikelihood(asks)

    assert far != near, "the letter before the 28 is just still read"
    assert model.loglikelihood([asks[0]])[0][0] == pytest.approx(
        model.loglikelihood(
            [Instance(request_type="loglikelihood", doc={}, arguments=("x" + "a" * 28, " end"), idx=0)]
        )[0][0]
    )
    assert alone[0] < 0


def test_what_is_generated_ends_before_a_mark() -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance

    from elastic.evals.harness import Model

    about = subject()
    model = Model(about, 8, lambda done, total: None)

    def said(**settings: Any) -> str:
        ask = Instance(request_type="generate_until", doc={}, arguments=("Once upon", settings), idx=0)
        (text,) = model.generate_until([ask])
        return text

    prompt = torch.from_numpy(BYTES.encode("Once upon").astype(np.int64))[None]
    whole = BYTES.decode(about.model.generate(prompt, 12, temperature=0.0)[0, prompt.shape[1] :])
    assert said(max_gen_toks=12) == whole
    mark = whole[5]
    assert said(max_gen_toks=12, until=[mark]) == whole.partition(mark)[0]


def test_no_network_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refused)

    assert len(measured(subject(), BITS, FACTS, limit=2)) == 2


@pytest.mark.parametrize(
    ("task", "says"),
    [("hellaswagg", 'no task is called "hellaswagg"'), ("hellaswag", "its data is not at hand on this machine")],
)
def test_a_task_that_cannot_be_had_is_one_line(tmp_path: Path, elastic: Run, task: str, says: str) -> None:
    """In a process of its own: others of this one may have told the libraries that there is a network."""
    pytest.importorskip("lm_eval")
    write_folder(tiny(), tmp_path / "model", BPE.to_json(), "card")

    done = subprocess.run(
        [sys.executable, "-m", "elastic", "eval", tmp_path / "model", "--tasks", task],
        capture_output=True, text=True, check=False, env={**environment(), "HF_HOME": str(tmp_path / "hf")},
    )  # fmt: skip

    assert done.returncode == 1
    assert says in done.stderr and done.stderr.count("\n") == 1, done.stderr


def environment() -> dict[str, str]:
    """Without what this process told the libraries."""
    return {name: value for name, value in os.environ.items() if not name.startswith("HF_")}


# --- the command ----------------------------------------------------------------------------------------------------


def test_a_folder_is_measured_shown_and_written(tmp_path: Path, elastic: Run) -> None:
    pytest.importorskip("lm_eval")
    write_folder(tiny(), tmp_path / "model", BPE.to_json(), "card")

    code, out, err = elastic("eval", "model", "--limit", 3, "--json", "found.json")

    assert (code, err) == (0, "")
    assert out.startswith("model  folder model\n")
    tree = json.loads((tmp_path / "found.json").read_text())
    assert (tree["limit"], [each["task"] for each in tree["results"]]) == (3, [BITS, FACTS])
    for each in tree["results"]:
        assert f"{each['value']:.4f}" in out and each["samples"] == 3


def test_a_task_of_the_users_own_is_a_file(tmp_path: Path, elastic: Run) -> None:
    pytest.importorskip("lm_eval")
    write_folder(tiny(), tmp_path / "model", BPE.to_json(), "card")
    (tmp_path / "sums.jsonl").write_text(json.dumps({"q": "1 + 1 =", "a": 0}) + "\n")
    (tmp_path / "sums.yaml").write_text(
        f"task: sums\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/sums.jsonl}}, "
        f"cache_dir: {tmp_path}/cache}}\ntest_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{{{q}}}}'\n"
        "doc_to_choice: ['2', '3']\ndoc_to_target: '{{a}}'\nmetric_list: [{metric: acc}]\n"
    )

    code, out, err = elastic("eval", "model", "--tasks", "sums.yaml")

    assert (code, err) == (0, "")
    assert "sums" in out and "acc" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nowhere",), "there is nothing of that name"),
        ((".", "--tasks", ","), "expected names with commas between"),
        ((".", "--json", "nowhere/x.json"), "there is no folder nowhere"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_measured(elastic: Run, arguments: tuple[str, ...], says: str) -> None:
    pytest.importorskip("lm_eval")
    code, out, err = elastic("eval", *arguments)

    assert (code, out) == (1, "")
    assert says in err and err.count("\n") == 1


def test_without_lm_eval_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, elastic: Run) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.api.instance", None)
    monkeypatch.delitem(sys.modules, "elastic.evals.harness", raising=False)

    code, _, err = elastic("eval", "anything")

    assert code == 1
    assert re.match(r"error: (lm_eval|datasets) is not installed: pip install 'elastic\[eval\]'", err)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: x")])
def test_too_little_memory_names_what_takes_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elastic: Run, error: Exception
) -> None:
    pytest.importorskip("lm_eval")
    write_folder(tiny(), tmp_path / "model", BPE.to_json(), "card")

    def fails(*_: Any) -> None:
        raise error

    monkeypatch.setattr(Llama, "forward", fails)
    code, _, err = elastic("eval", "model", "--limit", 1)

    assert code == 1 and err.count("\n") == 1
    assert "too little memory" in err and "--batch or --context" in err


def test_the_table_shows_what_has_no_error_too() -> None:
    one = Measured(task="a", metric="acc", value=0.5, stderr=0.05, samples=84)
    text = table([one, Measured(task="b", metric="x", value=1, samples=1)])

    assert [line.split() for line in text.splitlines()][1:] == [
        ["a", "acc", "0.5000", "0.0500", "84"],
        ["b", "x", "1.0000", "-", "1"],
    ]
