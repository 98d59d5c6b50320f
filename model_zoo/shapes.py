"""Shapes of Llama models: what the sizes are called, and how many parameters they come to. No torch."""

import difflib
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of one model.

    Raises:
        ValueError: sizes that do not divide as they must; the message says which.
    """

    vocab_size: int
    layers: int
    dim: int
    heads: int
    kv_heads: int
    ffn_dim: int
    rope_theta: float
    max_sequence_length: int
    tied: bool
    norm_epsilon: float = 1e-5
    """Added to the mean square in RMSNorm; as in Llama 3. Another value is another model."""

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise ValueError(f"dim = {self.dim} is not a multiple of heads = {self.heads}")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads = {self.heads} is not a multiple of kv_heads = {self.kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"dim / heads = {self.head_dim} is odd; rotary positions turn pairs of coordinates")

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.dim // self.heads

    def num_params(self) -> int:
        """Trained numbers, exactly; tied embeddings count once."""
        attention = self.dim * (self.heads + 2 * self.kv_heads) * self.head_dim + self.dim**2
        block = attention + 3 * self.dim * self.ffn_dim + 2 * self.dim
        matrices = 1 if self.tied else 2
        return self.layers * block + self.dim + matrices * self.vocab_size * self.dim


PRESETS: dict[str, Shape] = {
    # For a laptop: one CPU thread trains it on bytes at some 17,000 tokens a second. Two wider
    # layers learned less from as many bytes of Austen, three wider ones no more in half as much time again.
    "nano": Shape(
        vocab_size=256, layers=4, dim=128, heads=4, kv_heads=2, ffn_dim=384,
        rope_theta=10_000.0, max_sequence_length=512, tied=True,
    ),
    # For one small GPU, or an evening on a CPU.
    "micro": Shape(
        vocab_size=256, layers=12, dim=256, heads=4, kv_heads=2, ffn_dim=768,
        rope_theta=10_000.0, max_sequence_length=1024, tied=True,
    ),
    # OpenDiLoCo's config_150m, arXiv 2407.07852 (its name leaves the embeddings out).
    "150m": Shape(
        vocab_size=32_000, layers=12, dim=1024, heads=16, kv_heads=16, ffn_dim=2688,
        rope_theta=10_000.0, max_sequence_length=2048, tied=False,
    ),
    # TinyLlama, arXiv 2401.02385; also OpenDiLoCo's config_1b.
    "1b": Shape(
        vocab_size=32_000, layers=22, dim=2048, heads=32, kv_heads=4, ffn_dim=5632,
        rope_theta=10_000.0, max_sequence_length=2048, tied=False,
    ),
    # Llama 3 8B, arXiv 2407.21783.
    "8b": Shape(
        vocab_size=128_256, layers=32, dim=4096, heads=32, kv_heads=8, ffn_dim=14_336,
        rope_theta=500_000.0, max_sequence_length=8192, tied=False,
    ),
    # Covenant-72B, arXiv 2603.08163, trained tied: 70.6B numbers. Its 72.7B count the shared matrix twice.
    "72b": Shape(
        vocab_size=262_144, layers=80, dim=8192, heads=64, kv_heads=8, ffn_dim=28_672,
        rope_theta=500_000.0, max_sequence_length=2048, tied=True,
    ),
}  # fmt: skip


def shape_of(preset: str, changes: dict[str, Any]) -> Shape:
    """A preset with some sizes changed.

    Raises:
        ValueError: no such preset, or sizes that do not go together.
    """
    if preset not in PRESETS:
        near = difflib.get_close_matches(preset, PRESETS, n=1)
        hint = f'did you mean "{near[0]}"?' if near else f"known: {', '.join(PRESETS)}"
        raise ValueError(f'no preset is called "{preset}"; {hint}')
    return replace(PRESETS[preset], **changes)
