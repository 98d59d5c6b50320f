"""A Llama as a folder that Hugging Face `transformers` opens, and such a folder as a Llama.

    config.json               shape
    model.safetensors         parameters; large ones in several files, which model.safetensors.index.json lists
    tokenizer.json            tokenizer; how to load it: tokenizer_config.json
    README.md                 model card

The numbers are the same ones under other names: query, key and value, and gate and up, are matrices of their own there.
A folder may come from anyone: sizes are compared before anything is allocated, and nothing in it is ever run.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from model_zoo.folders import FolderError, appearing
from model_zoo.llama import Llama
from model_zoo.shapes import Shape
from model_zoo.tokenizer import BPETokenizer

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
TOKENIZER, TOKENIZER_CONFIG, CARD = "tokenizer.json", "tokenizer_config.json", "README.md"
MOST_BYTES = {CONFIG: 2**20, INDEX: 2**24, TOKENIZER: 2**27}
"""A larger file is not read; Gemma 3's tokenizer has 33 MB."""
SHARD_BYTES = 5 * 10**9
"""Of parameters in one file, as `transformers` writes them."""
SPARE_BYTES = 2**20
"""What the small files and the file system take beside the parameters."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FLOATS = ("F32", "BF16", "F16")
FIXED = {"model_type": "llama", "hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
"""Settings in which this decoder has no choice."""
NAMES = {
    "vocab_size": "vocab_size",
    "num_hidden_layers": "layers",
    "hidden_size": "dim",
    "num_attention_heads": "heads",
    "intermediate_size": "ffn_dim",
}
"""What must be said of a shape: there → here."""
MORE_NAMES: dict[str, tuple[str, Any]] = {
    "max_position_embeddings": ("max_sequence_length", 2048),
    "rms_norm_eps": ("norm_epsilon", 1e-6),
    "tie_word_embeddings": ("tied", False),
}
"""What need not be said: there → here, and what `transformers` takes if it is not."""

Rows = tuple[str, tuple[int, ...]]
"""A tensor there: its name and shape."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What a folder holds."""

    model: Llama
    """In fp32 on the CPU."""
    tokenizer: BPETokenizer
    ends: frozenset[int]
    """Tokens with which a text ends."""


def write_folder(  # noqa: PLR0913 - what a folder holds
    model: Llama,
    out: Path,
    tokenizer: str,
    card: str,
    dtype: str = "float32",
    ends: frozenset[int] = frozenset(),
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a model down; `out` is there in full afterwards, or as it was before.

    Args:
        model: of the zoo, with its parameters.
        out: made; an empty folder may be there already.
        tokenizer: its definition, as tokenizers' `to_json` gives it.
        card: Markdown.
        dtype: of the parameters, "float32" (every bit is kept) or "bfloat16" (half the bytes).
        ends: tokens with which a text ends.
        shard_bytes: more parameters than that go into several files.

    Raises:
        FolderError: something else is there, the tokenizer has more tokens than the model, or there is no space.
        OSError: it cannot be written.
    """
    if type(model) is not Llama:
        raise FolderError(f"{type(model).__name__} is no model of the zoo: Hugging Face has no name for its parts")
    if (tokens := BPETokenizer(tokenizer).vocab_size) > model.shape.vocab_size:
        raise FolderError(f"the tokenizer has {tokens} tokens, and the model {model.shape.vocab_size}")
    with appearing(out) as folder:
        needed = model.shape.num_params() * DTYPES[dtype].itemsize + len(tokenizer.encode()) + SPARE_BYTES
        if (free := shutil.disk_usage(folder).free) < needed:
            raise FolderError(f"{out}: takes {needed / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free on that disk")
        _write_json(folder / CONFIG, config_json(model.shape, dtype, ends))
        _write_weights(folder, model, DTYPES[dtype], shard_bytes)
        _write_json(folder / TOKENIZER_CONFIG, tokenizer_config(model.shape))
        (folder / TOKENIZER).write_text(tokenizer, encoding="utf-8")
        (folder / CARD).write_text(card, encoding="utf-8")


def open_folder(folder: Path) -> Opened:
    """A model and its tokenizer, from anyone's folder.

    Raises:
        FolderError: a file is missing, damaged or too large, it is another kind of model, or its parts do not fit.
    """
    tree = _read_json(folder / CONFIG)
    try:
        config, ends = config_of(tree), ends_of(tree)
    except FolderError as error:
        raise FolderError(f"{folder / CONFIG}: {error}") from error
    try:
        tokenizer = BPETokenizer(_read(folder / TOKENIZER).decode())
    except ValueError as error:
        raise error if isinstance(error, FolderError) else FolderError(f"{folder / TOKENIZER}: {error}") from error
    if tokenizer.vocab_size > config.shape.vocab_size:
        raise FolderError(
            f"{folder}: the tokenizer has tokens up to {tokenizer.vocab_size - 1}, and the model "
            f"{config.shape.vocab_size} of them: it belongs to another model"
        )
    with torch.device("meta"):
        model = Llama(config)
    try:
        params = _read_weights(folder, config.shape)
    except (MemoryError, RuntimeError) as error:  # torch and safetensors have no narrower one
        size = config.shape.num_params() * torch.float32.itemsize
        why = (str(error).splitlines() or ["too little memory"])[0][:200]
        raise FolderError(f"{folder}: its parameters, {size / 1e9:,.1f} GB in fp32, cannot be read: {why}") from error
    model.load_state_dict(params, assign=True)
    return Opened(model, tokenizer, ends)


# --- what things are called --------------------------------------------------------------------------------------


def rows_of(shape: Shape) -> dict[str, list[Rows]]:
    """Our parameter → the tensors there whose rows, one after another, it is."""
    heads, kv_heads = (number * shape.head_dim for number in (shape.heads, shape.kv_heads))
    wide, narrow = (shape.ffn_dim, shape.dim), (shape.dim, shape.ffn_dim)
    embedding = (shape.vocab_size, shape.dim)
    found: dict[str, list[Rows]] = {"embedding": [("model.embed_tokens.weight", embedding)]}
    for number in range(shape.layers):
        block, there = f"blocks.{number}.", f"model.layers.{number}."
        qkv = (("q", heads), ("k", kv_heads), ("v", kv_heads))
        found |= {
            block + "attention_norm": [(there + "input_layernorm.weight", (shape.dim,))],
            block + "qkv": [(f"{there}self_attn.{name}_proj.weight", (rows, shape.dim)) for name, rows in qkv],
            block + "out": [(there + "self_attn.o_proj.weight", (shape.dim, shape.dim))],
            block + "ffn_norm": [(there + "post_attention_layernorm.weight", (shape.dim,))],
            block + "gate_up": [(f"{there}mlp.{name}_proj.weight", wide) for name in ("gate", "up")],
            block + "down": [(there + "mlp.down_proj.weight", narrow)],
        }
    found["norm"] = [("model.norm.weight", (shape.dim,))]
    if not shape.tied:
        found["head"] = [("lm_head.weight", embedding)]
    return found


def config_json(shape: Shape, dtype: str, ends: frozenset[int] = frozenset()) -> dict[str, Any]:
    """What `LlamaConfig` says of this shape, and of the tokens with which a text ends."""
    end = sorted(ends) if len(ends) > 1 else next(iter(ends), None)
    return {
        "architectures": ["LlamaForCausalLM"],
        **FIXED,
        **{there: getattr(shape, here) for there, here in NAMES.items()},
        **{there: getattr(shape, here) for there, (here, _) in MORE_NAMES.items()},
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "rope_theta": shape.rope_theta,  # before transformers 5
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "bos_token_id": None, "eos_token_id": end, "pad_token_id": None,
        "dtype": dtype,
    }  # fmt: skip


def tokenizer_config(shape: Shape) -> dict[str, Any]:
    """How `transformers` is to load tokenizer.json: as it is."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": shape.max_sequence_length,
    }


def config_of(tree: Mapping[str, Any]) -> Llama.Config:
    """Our settings for what a config.json describes.

    Raises:
        FolderError: this decoder is not that model.
    """
    for name, value in FIXED.items():
        if (said := tree.get(name, value if name != "model_type" else None)) != value:
            raise FolderError(f"{name} = {json.dumps(said)[:40]}, but this decoder has {json.dumps(value)} only")
    if lacking := [name for name in NAMES if name not in tree]:
        raise FolderError(f"does not say {', '.join(lacking)}")
    settings = {here: tree[there] for there, here in NAMES.items()}
    settings |= {here: tree.get(there, default) for there, (here, default) in MORE_NAMES.items()}
    settings |= {"kv_heads": tree.get("num_key_value_heads") or settings["heads"], "rope_theta": _rope_theta(tree)}
    try:
        config = Llama.Config.model_validate(settings, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}: " for part in first["loc"])
        raise FolderError(f"{where}{first['msg']}") from error
    if tree.get("head_dim") not in (None, config.shape.head_dim):
        raise FolderError(f"head_dim = {tree['head_dim']}, but hidden_size / heads = {config.shape.head_dim}")
    return config


def ends_of(tree: Mapping[str, Any]) -> frozenset[int]:
    """The tokens of a config.json with which texts end."""
    said = tree.get("eos_token_id")
    ends = said if isinstance(said, list) else [] if said is None else [said]
    if not all(type(end) is int for end in ends):
        raise FolderError("eos_token_id is neither a token nor a list of them")
    return frozenset(ends)


def _rope_theta(tree: Mapping[str, Any]) -> Any:
    """Base of the wavelengths, as transformers 5 writes it or as it was before."""
    rope = tree.get("rope_parameters") or tree.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise FolderError("rope_parameters is no object")
    if (kind := rope.get("rope_type", rope.get("type", "default"))) != "default":
        raise FolderError(f"rope_type = {json.dumps(kind)[:40]}, but this decoder turns positions unscaled only")
    return rope.get("rope_theta", tree.get("rope_theta", 10_000.0))


# --- files -------------------------------------------------------------------------------------------------------


def _write_weights(folder: Path, model: Llama, dtype: torch.dtype, shard_bytes: int) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    shards = list(_shards(rows_of(model.shape), dtype.itemsize, shard_bytes))
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    names = names if len(shards) > 1 else [WEIGHTS]
    params, where = dict(model.named_parameters()), dict[str, str]()
    for name, shard in zip(names, shards, strict=True):
        tensors = dict[str, Tensor]()
        for param, rows in shard.items():
            parts = params[param].detach().cpu().to(dtype).split([shape[0] for _, shape in rows])
            tensors |= {there: part.contiguous() for (there, _), part in zip(rows, parts, strict=True)}
        try:
            save_file(tensors, folder / name, metadata={"format": "pt"})
        except SafetensorError as error:
            raise FolderError(f"{folder / name}: cannot be written: {error}") from error
        shutil.copymode(folder / CONFIG, folder / name)  # the library makes it readable to its user alone
        where |= dict.fromkeys(tensors, name)
    if len(shards) > 1:
        total = model.shape.num_params() * dtype.itemsize
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": where})


def _shards(rows: dict[str, list[Rows]], itemsize: int, most: int) -> Iterator[dict[str, list[Rows]]]:
    """Parameters that go into one file, in their order; one that is larger than a file has one of its own."""
    shard: dict[str, list[Rows]] = {}
    full = 0
    for name, parts in rows.items():
        size = itemsize * sum(torch.Size(shape).numel() for _, shape in parts)
        if shard and full + size > most:
            yield shard
            shard, full = {}, 0
        shard[name], full = parts, full + size
    yield shard


def _read_weights(folder: Path, shape: Shape) -> dict[str, Tensor]:
    """Our parameters, fp32. Names, shapes and types of everything are compared before anything is read."""
    from safetensors import SafetensorError, safe_open

    wanted, found = rows_of(shape), dict[str, Any]()
    with ExitStack() as stack:
        for path in _weight_files(folder):
            try:
                file = stack.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise FolderError(f"{path}: {error}") from error
            for name in file.keys():  # noqa: SIM118 - it is no dict
                if name in found:
                    raise FolderError(f"{path}: {name} is in another file too")
                found[name] = file
        _check_layout(folder, found, wanted)
        params = {}
        for ours, rows in wanted.items():
            params[ours] = param = torch.empty(sum(size[0] for _, size in rows), *rows[0][1][1:])
            for part, (there, _) in zip(param.split([size[0] for _, size in rows]), rows, strict=True):
                part.copy_(found[there].get_tensor(there))
            if not torch.isfinite(param).all():
                raise FolderError(f"{folder}: {rows[0][0]}: a value is infinite or not a number")
        if shape.tied and "lm_head.weight" in found:
            head = found["lm_head.weight"].get_tensor("lm_head.weight")
            if head.shape != params["embedding"].shape or not torch.equal(head.float(), params["embedding"]):
                raise FolderError(f"{folder}: tie_word_embeddings = true, but lm_head.weight is another matrix")
    return params


def _weight_files(folder: Path) -> list[Path]:
    if not (folder / INDEX).is_file():
        return [folder / WEIGHTS]
    listed = _read_json(folder / INDEX).get("weight_map")
    names = set(listed.values()) if isinstance(listed, dict) and all(map(_is_text, listed.values())) else set()
    if not names or not all(name.endswith(".safetensors") and name == Path(name).name for name in names):
        raise FolderError(f"{folder / INDEX}: does not list files of this folder")
    return [folder / name for name in sorted(names)]


def _check_layout(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, list[Rows]]) -> None:
    shapes = {there: shape for rows in wanted.values() for there, shape in rows}
    for name, shape in shapes.items():
        if name not in found:
            raise FolderError(f"{folder}: {name} is not there")
        held = found[name].get_slice(name)
        if tuple(held.get_shape()) != shape:
            raise FolderError(f"{folder}: {name} is {held.get_shape()}; {CONFIG} makes it {list(shape)}")
        if held.get_dtype() not in FLOATS:
            raise FolderError(f"{folder}: {name} is of type {held.get_dtype()}; known: {', '.join(FLOATS)}")
    known = {*shapes, "lm_head.weight"} if "head" not in wanted else set(shapes)
    for name in sorted(set(found) - known):
        if not name.endswith(".rotary_emb.inv_freq"):  # older files carry what follows from the config
            raise FolderError(f"{folder}: {name[:80]!r} is no part of this decoder")


def _read(path: Path) -> bytes:
    try:
        size, most = path.stat().st_size, MOST_BYTES[path.name]
        if size > most:
            raise FolderError(f"{path}: {size:,} bytes are more than the {most:,} that are read")
        with path.open("rb") as file:
            return file.read(most)
    except OSError as error:
        raise FolderError(f"{path}: {error.strerror}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(_read(path))
    except FolderError:
        raise
    except (ValueError, RecursionError) as error:
        raise FolderError(f"{path}: not JSON: {error}") from error
    if not isinstance(tree, dict):
        raise FolderError(f"{path}: not a JSON object")
    return tree


def _write_json(path: Path, tree: dict[str, Any]) -> None:
    path.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
