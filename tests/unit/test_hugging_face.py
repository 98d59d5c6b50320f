"""A folder of ours is `transformers`' and the other way round: same numbers, same tokens; strangers' are looked at."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model_zoo.folders import FolderError
from model_zoo.hugging_face import INDEX, WEIGHTS, config_json, config_of, open_folder, rows_of, write_folder
from model_zoo.llama import Llama
from model_zoo.shapes import PRESETS
from model_zoo.tokenizer import BPETokenizer, ByteTokenizer
from tests.unit.folder_cases import BPE, BYTES, TEXT, tiny

transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors")
safetensors_torch = pytest.importorskip("safetensors.torch")

KINDS: list[dict[str, Any]] = [
    {}, {"tied": False}, {"kv_heads": 4}, {"kv_heads": 1, "tied": False}, {"rope_theta": 500_000.0},
    {"norm_epsilon": 1e-2}, {"vocab_size": 333, "ffn_dim": 56, "layers": 1},
]  # fmt: skip


def batch(vocab_size: int = 300) -> Tensor:
    return torch.randint(0, vocab_size, (2, 40), generator=torch.Generator().manual_seed(1))


def theirs(**changes: object) -> Any:
    settings: dict[str, Any] = {
        "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    torch.manual_seed(2)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings | changes))
    with torch.no_grad():
        for param in model.parameters():
            if param.ndim == 1:
                param.add_(torch.rand(param.shape))
    return model.eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a model with tied embeddings."""
    write_folder(tiny(), tmp_path / "out", BPE.to_json(), "# card")
    return tmp_path / "out"


def same_logits(ours: Llama, hugging_face: Any, vocab_size: int = 300) -> None:
    tokens = batch(vocab_size)
    with torch.no_grad():
        mine, others = ours(tokens), hugging_face(tokens).logits
    assert mine.std() > 0.5, "logits that differ"
    # in fp64 these weights give other logits than in fp32, by up to 4e-4 there and here
    torch.testing.assert_close(mine, others, atol=5e-4, rtol=1e-4)


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_transformers_gets_the_same_logits_from_what_we_write(tmp_path: Path, changes: dict[str, Any]) -> None:
    # given
    model = tiny(**changes)
    # when
    write_folder(model, tmp_path / "out", BPE.to_json(), "# card")
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)
    # then
    assert isinstance(opened, transformers.LlamaForCausalLM)
    assert sum(param.numel() for param in opened.parameters()) == model.shape.num_params()
    same_logits(model, opened, model.shape.vocab_size)


@pytest.mark.parametrize("many_files", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {}, {"tie_word_embeddings": True}, {"num_key_value_heads": 4}, {"num_key_value_heads": 1},
        {"rope_theta": 123.0}, {"rms_norm_eps": 1e-2}, {"eos_token_id": [7, 9]},
    ],
    ids=str,
)  # fmt: skip
def test_we_get_the_same_logits_from_what_transformers_writes(
    tmp_path: Path, changes: dict[str, Any], many_files: bool
) -> None:
    # given
    model = theirs(**changes)
    model.save_pretrained(tmp_path, max_shard_size="20KB" if many_files else "5GB")
    (tmp_path / "tokenizer.json").write_text(BPE.to_json())
    assert (tmp_path / INDEX).exists() == many_files
    # when
    opened = open_folder(tmp_path)
    # then
    same_logits(opened.model, model)
    assert opened.model.shape.tied == changes.get("tie_word_embeddings", False)
    assert opened.ends == frozenset(changes.get("eos_token_id", [2]))
    assert opened.tokenizer.digest == BPE.digest


@pytest.mark.parametrize("shard_bytes", [10**9, 30_000, 1])
@pytest.mark.parametrize("tied", [True, False])
def test_what_is_written_comes_back_to_the_last_bit(tmp_path: Path, tied: bool, shard_bytes: int) -> None:
    model = tiny(tied=tied)

    write_folder(model, tmp_path / "out", BYTES.to_json(), "# card", shard_bytes=shard_bytes)
    opened = open_folder(tmp_path / "out")

    assert opened.model.shape == model.shape
    for (name, mine), (again, param) in zip(model.named_parameters(), opened.model.named_parameters(), strict=True):
        assert name == again and torch.equal(mine, param) and param.requires_grad
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert (files == [WEIGHTS]) == (shard_bytes == 10**9)
    assert not (tmp_path / "out" / WEIGHTS).exists() or not (tmp_path / "out" / INDEX).exists()
    assert {path.stat().st_mode for path in (tmp_path / "out").iterdir()} == {0o100644}
    same_logits(model, transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out"))


def test_bfloat16_is_half_the_bytes_and_the_nearest_numbers(tmp_path: Path, folder: Path) -> None:
    model = tiny()

    write_folder(model, tmp_path / "half", BPE.to_json(), "# card", dtype="bfloat16")

    ratio = (tmp_path / "half" / WEIGHTS).stat().st_size / (folder / WEIGHTS).stat().st_size
    assert 0.5 <= ratio < 0.6
    assert torch.equal(open_folder(tmp_path / "half").model.embedding, model.embedding.bfloat16().float())
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "half")
    assert {param.dtype for param in opened.parameters()} == {torch.bfloat16}


def test_transformers_generates_the_same_tokens(folder: Path) -> None:
    prompt = batch()[:1, :5]

    ours = tiny().generate(prompt, 20, temperature=0)

    opened = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(opened.generate(prompt, max_new_tokens=20, do_sample=False), ours)


@pytest.mark.parametrize("tokenizer", [BPE, BYTES], ids=["bpe", "bytes"])
def test_transformers_gets_the_same_tokens(tmp_path: Path, tokenizer: BPETokenizer | ByteTokenizer) -> None:
    # given
    write_folder(tiny(), tmp_path / "out", tokenizer.to_json(), "# card")
    opened = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    for text in ("", " ", TEXT[:3000], "naïve “coöperation”\r\n\t\x00\x7f ☃ 𝄞 ", "  two  spaces , here ."):
        # when
        tokens = tokenizer.encode(text).tolist()
        # then
        assert opened(text)["input_ids"] == tokens
        assert opened.decode(tokens) == text
    assert len(opened) == tokenizer.vocab_size
    assert opened.model_max_length == 40


def test_the_definition_of_bytes_is_that_of_bytes() -> None:
    again = BPETokenizer(BYTES.to_json())

    assert again.vocab_size == 256
    assert [again.encode(chr(byte)).tolist() for byte in range(128)] == [[byte] for byte in range(128)]
    for text in (TEXT[:2000], "".join(map(chr, range(0x700))), "\U0010ffff"):
        assert np.array_equal(again.encode(text), BYTES.encode(text))
        assert again.decode(BYTES.encode(text)) == text


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("tied", [True, False])
def test_a_preset_is_the_same_model_there(preset: str, tied: bool) -> None:
    # given
    shape = Llama.Config(preset=preset, tied=tied).shape
    # when
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config_json(shape, "float32")))
    # then
    assert sum(param.numel() for param in model.parameters()) == shape.num_params()
    there = {name: tuple(param.shape) for name, param in model.named_parameters()}
    assert there == {name: size for rows in rows_of(shape).values() for name, size in rows}
    assert config_of(model.config.to_dict()).shape == shape


# --- folders that are not what they should be --------------------------------------------------------------------


def edited(path: Path, **changes: object) -> None:
    tree = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in (tree | changes).items() if value is not ...}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "mistral"}, 'model_type = "mistral", but this decoder has "llama" only'),
        ({"model_type": ...}, "model_type = null"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_bias": True}, "attention_bias = true"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, 'rope_type = "llama3"'),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear"}}, 'rope_type = "linear"'),
        ({"rope_parameters": [1]}, "rope_parameters is no object"),
        ({"rope_parameters": {"rope_theta": float("nan")}}, "rope_theta: "),
        ({"head_dim": 16}, "head_dim = 16, but hidden_size / heads = 8"),
        ({"vocab_size": ...}, "does not say vocab_size"),
        ({"vocab_size": "many"}, "vocab_size: Input should be a valid integer"),
        ({"vocab_size": 299}, "the tokenizer has tokens up to 299, and the model 299 of them"),
        ({"num_hidden_layers": 10**30}, "layers: "),
        ({"num_hidden_layers": -1}, "layers: "),
        ({"num_hidden_layers": 1024}, "model.layers.3.input_layernorm.weight is not there"),
        ({"num_hidden_layers": 2}, "'model.layers.2.input_layernorm.weight' is no part of this decoder"),
        ({"hidden_size": 64, "head_dim": 16}, "is [300, 32]; config.json makes it [300, 64]"),
        ({"hidden_size": 33, "head_dim": None}, "dim = 33 is not a multiple of heads"),
        ({"num_key_value_heads": 4}, "self_attn.k_proj.weight is [16, 32]; config.json makes it [32, 32]"),
        ({"intermediate_size": 2**20}, "mlp.gate_proj.weight is [48, 32]"),
        ({"tie_word_embeddings": False}, "lm_head.weight is not there"),
        ({"tie_word_embeddings": "no"}, "tied: "),
        ({"eos_token_id": "x"}, "eos_token_id is neither"),
        ({"eos_token_id": [1, True]}, "eos_token_id is neither"),
    ],
    ids=str,
)  # fmt: skip
def test_a_config_that_does_not_fit_is_named(folder: Path, changes: dict[str, Any], says: str) -> None:
    edited(folder / "config.json", **changes)

    with pytest.raises(FolderError) as error:
        open_folder(folder)

    assert says in str(error.value) and str(folder) in str(error.value)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def long_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 2**62) + path.read_bytes()[8:])


def lying_offsets(path: Path) -> None:
    header = json.dumps({"model.norm.weight": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 64)


def changed(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def change_file(path: Path) -> None:
        tensors = safetensors_torch.load(path.read_bytes())
        change(tensors)
        path.write_bytes(safetensors_torch.save(tensors))

    return change_file


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        (WEIGHTS, Path.unlink, "No such file"),
        (WEIGHTS, cut, WEIGHTS),
        (WEIGHTS, long_header, "header"),
        (WEIGHTS, lying_offsets, WEIGHTS),
        (WEIGHTS, lambda path: path.write_bytes(b""), WEIGHTS),
        (WEIGHTS, lambda path: path.write_bytes(b"\x80\x04\x95" + b"pickle" * 20), WEIGHTS),
        (WEIGHTS, changed(lambda tensors: tensors.pop(NORM)), f"{NORM} is not there"),
        (WEIGHTS, changed(lambda tensors: tensors.update({"x\x1b[2J": torch.ones(1)})), r"'x\x1b[2J' is no part"),
        (WEIGHTS, changed(lambda tensors: tensors.update({NORM: torch.ones(1, 32)})), f"{NORM} is [1, 32]"),
        (WEIGHTS, changed(lambda tensors: tensors.update({NORM: torch.ones(32).long()})), f"{NORM} is of type I64"),
        (WEIGHTS, changed(lambda tensors: tensors[NORM].fill_(float("nan"))), f"{NORM}: a value is infinite or not"),
        (WEIGHTS, changed(lambda tensors: tensors.update({"lm_head.weight": torch.ones(300, 32)})), "another matrix"),
        (WEIGHTS, changed(lambda tensors: tensors.update({"lm_head.weight": torch.ones(1)})), "another matrix"),
        ("config.json", Path.unlink, "No such file"),
        ("config.json", cut, "not JSON"),
        ("config.json", lambda path: path.write_text("[]"), "not a JSON object"),
        ("config.json", lambda path: path.write_bytes(b"\xff"), "not JSON"),
        ("config.json", lambda path: path.write_text("[" * 100_000), "not JSON"),
        ("config.json", lambda path: path.write_text("9" * 10_000), "not JSON"),
        ("config.json", lambda path: path.write_text(" " * 2**21), "bytes are more than"),
        ("tokenizer.json", Path.unlink, "No such file"),
        ("tokenizer.json", cut, "not a tokenizer definition"),
        ("tokenizer.json", lambda path: path.write_bytes(b"\xff"), "decode"),
        ("tokenizer.json", lambda path: path.write_text("{}"), "not a tokenizer definition"),
        ("tokenizer.json", lambda path: path.open("wb").truncate(2**28), "bytes are more than"),
    ],
)
def test_a_damaged_file_is_named(folder: Path, name: str, damage: Callable[[Path], Any], says: str) -> None:
    damage(folder / name)

    with pytest.raises(FolderError) as error:
        open_folder(folder)

    assert says in str(error.value) and str(folder) in str(error.value)


@pytest.mark.parametrize(
    "files",
    [[], {}, {"a": 1}, {"a": "../x.safetensors"}, {"a": "/etc/passwd"}, {"a": "x.bin"}, {"a": ".."}, WEIGHTS],
    ids=str,
)
def test_an_index_names_files_of_its_folder(folder: Path, files: Any) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": files}))

    with pytest.raises(FolderError, match="does not list files of this folder"):
        open_folder(folder)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("unable to mmap 6446665888 bytes: Cannot allocate")])
def test_parameters_for_which_there_is_no_memory_are_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(safetensors, "safe_open", fails)

    with pytest.raises(FolderError, match=r"its parameters, 0\.0 GB in fp32, cannot be read"):
        open_folder(folder)


@pytest.mark.parametrize("ends", [frozenset[int](), frozenset([7]), frozenset([3, 299])], ids=str)
def test_the_tokens_with_which_a_text_ends_come_back(tmp_path: Path, ends: frozenset[int]) -> None:
    write_folder(tiny(), tmp_path / "out", BPE.to_json(), "# card", ends=ends)

    said = transformers.AutoConfig.from_pretrained(tmp_path / "out").eos_token_id

    assert open_folder(tmp_path / "out").ends == ends
    assert said == (sorted(ends) if len(ends) > 1 else next(iter(ends), None))


def test_one_name_in_two_files_is_refused(folder: Path) -> None:
    (folder / "b.safetensors").write_bytes((folder / WEIGHTS).read_bytes())
    (folder / INDEX).write_text(json.dumps({"weight_map": {"x": WEIGHTS, "y": "b.safetensors"}}))

    with pytest.raises(FolderError, match="is in another file too"):
        open_folder(folder)


def test_a_tied_matrix_that_is_written_twice_is_read_once(folder: Path) -> None:
    changed(lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))(
        folder / WEIGHTS
    )

    assert torch.equal(open_folder(folder).model.embedding, tiny().embedding)
