"""A model and tokenizers for the tests of folders."""

import torch

from model_zoo.corpus import read_corpus
from model_zoo.llama import Llama
from model_zoo.tokenizer import BPETokenizer, ByteTokenizer

TEXT = read_corpus("pride_and_prejudice").decode()[:40_000]
BPE = BPETokenizer.train(TEXT, 300)
BYTES = ByteTokenizer()


def tiny(**changes: object) -> Llama:
    """A small model whose parameters are large enough for every part to matter."""
    settings = {"layers": 3, "dim": 32, "heads": 4, "kv_heads": 2, "ffn_dim": 48, "max_sequence_length": 40}
    model = Llama(Llama.Config.model_validate({"vocab_size": 300, **settings, **changes}))
    model.initialize(0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for param in model.parameters():
            param.mul_(5 if param.ndim > 1 else 1 + torch.rand(param.shape, generator=generator))
    return model
