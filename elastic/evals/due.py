"""Which models of a run an evaluator measures: pure."""

from elastic.messages import RoundIndex


def is_due(holds: RoundIndex, every: int, last: RoundIndex | None) -> bool:
    """Whether the model that a round starts from is to be measured.

    Args:
        holds: that round; what precedes the first is the model that the run begins with, which is measured, too.
        every: rounds from one measured model to the next.
        last: the round whose model was measured last, if any was.
    """
    return holds > 0 and (holds - 1) % every == 0 and (last is None or holds > last)
