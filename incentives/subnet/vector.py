"""Scores of hotkeys → weights of uids. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import fsum, isfinite


@dataclass(frozen=True)
class Vector:
    """What is to be set on the chain."""

    weights: Mapping[int, float]
    """uid → positive weight, in uid order; they sum to 1, or there are none."""
    dropped: tuple[str, ...]
    """Hotkeys with a positive score and no uid: no longer registered, or not yet."""


def vector(
    scores: Mapping[str, float],
    uids: Mapping[str, int],
    *,
    own: str,
    burn: float = 0.0,
    burn_uid: int | None = None,
) -> Vector:
    """Weights in proportion to scores; what is no positive finite number counts as none.

    The burn comes after the others are made to sum to 1, and its uid is not among them: mixed up, a high score of the
    burn uid would take from everyone, or burn more than was meant.

    Args:
        scores: hotkey → score of any scale.
        uids: hotkey → uid, at one block.
        own: our hotkey, which never rates itself.
        burn: part of the whole that goes to `burn_uid`, in [0, 1].
        burn_uid: a uid of the subnet's owner, whose part the chain burns; it gets everything if nobody has a score.
    """
    positive = {hotkey: score for hotkey, score in scores.items() if hotkey != own and isfinite(score) and score > 0}
    rated = {uids[hotkey]: score for hotkey, score in positive.items() if hotkey in uids and uids[hotkey] != burn_uid}
    top = max(rated.values(), default=0.0)
    scaled = {uid: score / top for uid, score in rated.items()}
    total = fsum(scaled.values())
    burnt = (burn if scaled else 1.0) if burn_uid is not None else 0.0
    weights = {uid: (1 - burnt) * score / total for uid, score in scaled.items()}
    if burn_uid is not None:
        weights[burn_uid] = burnt
    return Vector(
        weights={uid: weight for uid, weight in sorted(weights.items()) if weight > 0},
        dropped=tuple(sorted(hotkey for hotkey in positive if hotkey not in uids)),
    )
