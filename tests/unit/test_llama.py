import hashlib
import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

import model_zoo.llama
from model_zoo.gradients import rms_norm, turn
from model_zoo.llama import Llama, rope_tables
from model_zoo.shapes import PRESETS

TINY = Llama.Config(vocab_size=11, layers=2, dim=16, heads=4, kv_heads=2, ffn_dim=24, max_sequence_length=12)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small only lose time to threads that wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny(**changes: object) -> Llama:
    """A small model whose parameters are large enough for every part to matter."""
    model = Llama(TINY.model_copy(update=changes))
    model.initialize(0)
    with torch.no_grad():
        for param in model.parameters():
            param.mul_(10 if param.ndim > 1 else 1.5)
    return model


def tokens_of(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 11, shape, generator=torch.Generator().manual_seed(seed))


def slow_logits(model: Llama, tokens: Tensor) -> Tensor:
    """The same decoder, one sequence, one head and one position at a time, in fp64."""
    shape, width = model.shape, model.shape.head_dim
    params = {name: param.detach().double() for name, param in model.named_parameters()}

    def norm(x: Tensor, scale: Tensor) -> Tensor:
        return x / torch.sqrt((x * x).mean() + 1e-5) * scale

    def turn(x: Tensor, position: int) -> Tensor:
        out = x.clone()
        for i in range(width // 2):
            angle = position * shape.rope_theta ** (-2 * i / width)
            real, imaginary = x[i].item(), x[i + width // 2].item()
            turned = complex(real, imaginary) * complex(math.cos(angle), math.sin(angle))
            out[i], out[i + width // 2] = turned.real, turned.imag
        return out

    xs = [params["embedding"][token] for token in tokens]
    for layer in range(shape.layers):
        block = {name.split(".")[2]: value for name, value in params.items() if name.startswith(f"blocks.{layer}.")}
        heads = [(block["qkv"] @ norm(x, block["attention_norm"])).split(width) for x in xs]
        for t in range(len(xs)):
            mixed = []
            for h in range(shape.heads):
                kv = shape.heads + h * shape.kv_heads // shape.heads
                query = turn(heads[t][h], t)
                scores = torch.stack([query @ turn(heads[s][kv], s) for s in range(t + 1)]) / math.sqrt(width)
                values = torch.stack([heads[s][kv + shape.kv_heads] for s in range(t + 1)])
                mixed.append(torch.softmax(scores, 0) @ values)
            xs[t] = xs[t] + block["out"] @ torch.cat(mixed)
            gate, up = (block["gate_up"] @ norm(xs[t], block["ffn_norm"])).split(shape.ffn_dim)
            xs[t] = xs[t] + block["down"] @ (gate * torch.sigmoid(gate) * up)
    return torch.stack([params.get("head", params["embedding"]) @ norm(x, params["norm"]) for x in xs])


@pytest.mark.parametrize("changes", [{}, {"tied": False}, {"kv_heads": 4}, {"kv_heads": 1}])
def test_logits_are_those_of_the_slow_decoder(changes: dict[str, object]) -> None:
    model, batch = tiny(**changes), tokens_of(2, 7)

    logits = model(batch)

    for row, tokens in zip(logits, batch, strict=True):
        torch.testing.assert_close(row.double(), slow_logits(model, tokens), atol=1e-4, rtol=1e-4)


def test_rms_norm_leaves_a_mean_square_of_one() -> None:
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)) * 7

    normed = rms_norm(x, torch.full((64,), 2.0), 1e-5)

    torch.testing.assert_close(normed.square().mean(-1), torch.full((5,), 4.0), rtol=1e-4, atol=0)


def test_rotation_depends_on_distance_only() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 16, generator=generator)
    cos, sin = rope_tables(50, 16, 10_000.0, torch.device("cpu"))

    turned_q, turned_k = (turn(x.expand(1, 50, 1, 16), cos, sin)[0, :, 0] for x in (query, key))
    products = turned_q @ turned_k.T

    for distance in (0, 1, 17):
        diagonal = products.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4, rtol=1e-4)


def test_a_token_does_not_see_the_future() -> None:
    model, batch = tiny(), tokens_of(1, 12)
    changed = batch.clone()
    changed[0, 8:] = (changed[0, 8:] + 1) % 11

    before, after = model(batch), model(changed)

    assert torch.equal(before[:, :8], after[:, :8])
    assert not torch.allclose(before[:, 8:], after[:, 8:])


def test_loss_is_the_cross_entropy_of_the_next_token() -> None:
    model, batch = tiny(), tokens_of(3, 9)

    loss = model.loss(batch)

    logits = model(batch[:, :-1])
    torch.testing.assert_close(loss, F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()))


def test_loss_in_pieces_has_the_same_value_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = tiny(), tokens_of(3, 9)
    whole = model.loss(batch)
    whole_gradients = torch.autograd.grad(whole, list(model.parameters()))

    monkeypatch.setattr(model_zoo.llama, "LOGITS_AT_ONCE", 11 * 5)
    pieces = model.loss(batch)

    torch.testing.assert_close(pieces, whole)
    gradients = torch.autograd.grad(pieces, list(model.parameters()))
    torch.testing.assert_close(gradients, whole_gradients, atol=1e-4, rtol=1e-4)


def test_an_untrained_model_knows_nothing() -> None:
    model = Llama(Llama.Config())
    model.initialize(0)
    tokens = torch.randint(0, 256, (4, 65), generator=torch.Generator().manual_seed(0))

    assert model.loss(tokens).item() == pytest.approx(math.log(256), abs=0.5)


def test_training_lowers_the_loss() -> None:
    model = Llama(TINY)
    model.initialize(0)
    batch = torch.arange(13).expand(2, -1) % 11
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    for _ in range(30):
        optimizer.zero_grad()
        model.loss(batch).backward()
        optimizer.step()

    assert model.loss(batch).item() < 0.5


def test_training_works_after_an_evaluation_in_inference_mode() -> None:
    model, batch = tiny(rope_theta=123.0), tokens_of(1, 5)

    with torch.inference_mode():
        model.loss(batch)
    model.loss(batch).backward()

    assert all(param.grad is not None for param in model.parameters())


def test_everybody_begins_from_these_bits() -> None:
    model = Llama(Llama.Config(preset="nano"))
    model.initialize(0)

    digest = hashlib.sha256()
    for _, param in sorted(model.named_parameters()):
        digest.update(param.detach().numpy().tobytes())

    assert digest.hexdigest() == "9d534c5976d0827301c0d36de905285726944604df6511ce6cb97e36985caa28"


def test_seeds_differ_and_repeat() -> None:
    first, again, other = (Llama(TINY) for _ in range(3))
    for model, seed in ((first, 1), (again, 1), (other, 2)):
        model.initialize(seed)

    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.embedding, other.embedding)


def test_initial_values_have_the_deviation_asked_for() -> None:
    model = Llama(Llama.Config())
    model.initialize(3)

    for name, param in model.named_parameters():
        if param.ndim == 1:
            assert (param == 1).all()
        else:
            assert param.std().item() == pytest.approx(model.initial_std(name), rel=0.02)
            assert abs(param.mean().item()) < 0.02 * model.initial_std(name) + 1e-3


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_counted_exactly(preset: str, tied: bool) -> None:
    with torch.device("meta"):
        model = Llama(Llama.Config(preset=preset, tied=tied))

    assert sum(param.numel() for param in model.parameters()) == model.shape.num_params()


PUBLISHED = {
    ("nano", True): 820_352,
    ("micro", True): 9_509_120,
    ("150m", False): 214_983_680,  # OpenDiLoCo's
    ("1b", False): 1_100_048_384,  # TinyLlama's
    ("8b", False): 8_030_261_248,  # Llama 3's
    ("72b", False): 72_747_327_488,  # the paper's, which counts the shared matrix twice
    ("72b", True): 70_599_843_840,  # what Covenant-72B trained
}


@pytest.mark.parametrize(("preset", "tied"), PUBLISHED)
def test_sizes_are_those_that_are_published(preset: str, tied: bool) -> None:
    with torch.device("meta"):
        model = Llama(Llama.Config(preset=preset, tied=tied))

    assert sum(param.numel() for param in model.parameters()) == PUBLISHED[preset, tied]


def test_72b_is_the_shape_of_covenant_72b() -> None:
    shape = Llama.Config(preset="72b").shape

    assert (shape.layers, shape.dim, shape.heads, shape.kv_heads, shape.head_dim) == (80, 8192, 64, 8, 128)
    assert (shape.ffn_dim, shape.vocab_size, shape.max_sequence_length) == (28_672, 262_144, 2048)
    assert (shape.rope_theta, shape.norm_epsilon, shape.tied) == (500_000.0, 1e-5, True)


def test_all_state_is_in_the_parameters() -> None:
    model = Llama(TINY)

    assert not list(model.buffers())
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "nan"}, 'did you mean "nano"'),
        ({"preset": "zzz"}, "known: nano"),
        ({"dim": 130}, "dim = 130 is not a multiple of heads"),
        ({"heads": 4, "kv_heads": 3}, "kv_heads = 3"),
        ({"dim": 12, "heads": 4, "kv_heads": 2}, "is odd"),
        ({"layers": 0}, "greater than or equal to 1"),
        ({"layer": 3}, "Extra inputs"),
    ],
)
def test_impossible_models_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Llama.Config.model_validate(settings)


def test_sequences_beyond_the_longest_are_refused() -> None:
    with pytest.raises(ValueError, match="13 tokens in a sequence"):
        tiny()(tokens_of(1, 13))


def test_generation_goes_on_past_the_longest_sequence() -> None:
    model, prompt = tiny(), tokens_of(1, 3)

    first, again = (model.generate(prompt, 15, 0.8, torch.Generator().manual_seed(5)) for _ in range(2))

    assert first.shape == (1, 18)
    assert torch.equal(first[:, :3], prompt)
    assert torch.equal(first, again)


def test_temperature_zero_takes_the_most_likely_token() -> None:
    model, prompt = tiny(), tokens_of(1, 3)

    tokens = model.generate(prompt, 4, temperature=0)

    for end in range(3, 7):
        assert tokens[0, end] == model(tokens[:, :end])[0, -1].argmax()
