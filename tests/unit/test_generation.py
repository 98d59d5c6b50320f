"""Generation keeps what it has read, and draws the same tokens as a model that reads everything again."""

import pytest
import torch
from torch import Tensor

from model_zoo.generation import Cache, draw
from model_zoo.llama import Llama

LONGEST = 12


def tiny(**changes: object) -> Llama:
    """A small model whose parameters are large enough for every part to matter."""
    config = Llama.Config(
        vocab_size=11, layers=3, dim=16, heads=4, kv_heads=2, ffn_dim=24, max_sequence_length=LONGEST
    )  # fmt: skip
    model = Llama(config.model_copy(update=changes))
    model.initialize(0)
    with torch.no_grad():
        for param in model.parameters():
            param.mul_(6 if param.ndim > 1 else 1.5)
    return model


def slowly(model: Llama, prompt_1T: Tensor, num_tokens: int, temperature: float, seed: int) -> Tensor:
    """The same text by a model that remembers nothing."""
    generator, longest = torch.Generator().manual_seed(seed), model.shape.max_sequence_length
    text, context = prompt_1T, prompt_1T[:, -longest:]
    for _ in range(num_tokens):
        with torch.no_grad():
            token = draw(model(context)[:, -1], temperature, generator)
        text, context = torch.cat((text, token), 1), torch.cat((context, token), 1)
        if context.shape[1] > longest:
            context = context[:, -max(1, longest // 2) :]
    return text


@pytest.mark.parametrize("changes", [{}, {"tied": False}, {"kv_heads": 4}, {"kv_heads": 1}, {"max_sequence_length": 1}])
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.5])
@pytest.mark.parametrize("length", [1, 5, LONGEST, LONGEST + 7])
def test_the_same_tokens_as_without_a_cache(changes: dict[str, object], temperature: float, length: int) -> None:
    model = tiny(**changes)
    prompt = torch.randint(0, 11, (1, length), generator=torch.Generator().manual_seed(length))

    fast = model.generate(prompt, 3 * LONGEST, temperature, torch.Generator().manual_seed(9))

    assert torch.equal(fast, slowly(model, prompt, 3 * LONGEST, temperature, 9))
    assert torch.equal(fast[:, :length], prompt)


def test_logits_from_the_cache_are_those_of_the_whole_text() -> None:
    model = tiny()
    tokens = torch.randint(0, 11, (1, LONGEST), generator=torch.Generator().manual_seed(1))
    cache = Cache(model.shape, LONGEST, model.embedding)

    with torch.no_grad():
        whole = model(tokens)[0]
        begun = model.next_logits(tokens[:, :4], cache)
        stepwise = [model.next_logits(tokens[:, t : t + 1], cache) for t in range(4, LONGEST)]

    torch.testing.assert_close(torch.cat((begun, *stepwise)), whole[3:], atol=1e-4, rtol=1e-4)
    assert cache.length == LONGEST


def test_tokens_come_as_they_are_drawn() -> None:
    model, prompt = tiny(), torch.tensor([[3, 1, 4]])

    stream = model.stream(prompt, 2**60, 1.0, torch.Generator().manual_seed(2))
    first = [next(stream) for _ in range(5)]

    assert torch.equal(torch.cat(first, 1), model.generate(prompt, 5, 1.0, torch.Generator().manual_seed(2))[:, 3:])


def test_each_token_after_the_prompt_costs_one_position(monkeypatch: pytest.MonkeyPatch) -> None:
    model, whole = tiny(), Llama.next_logits
    read: list[int] = []

    def noted(self: Llama, new: Tensor, cache: Cache) -> Tensor:
        read.append(new.shape[1])
        return whole(self, new, cache)

    monkeypatch.setattr(Llama, "next_logits", noted)

    model.generate(torch.tensor([[3, 1, 4]]), 8, 0)

    assert read == [3, *[1] * 7]


def test_generation_leaves_no_trace_in_training() -> None:
    model, batch = tiny(), torch.randint(0, 11, (2, 6), generator=torch.Generator().manual_seed(3))
    before = torch.autograd.grad(model.loss(batch), list(model.parameters()))

    for token in model.stream(batch[:1], 3):
        assert torch.is_grad_enabled() and not token.requires_grad

    assert all(map(torch.equal, before, torch.autograd.grad(model.loss(batch), list(model.parameters()))))
