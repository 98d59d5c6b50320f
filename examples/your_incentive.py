"""An incentive of your own: `name = "your_incentive:YourIncentive"` in a run file, and this folder on PYTHONPATH."""

from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from elastic.messages import JSON, ContributionHeader, Evidence, PeerId, RoundIndex, Said, Scoreboard


class YourIncentive:
    """Members only, in turns; the reliable count double. Keeps what `elastic.contracts.Incentive` promises."""

    class Config(BaseModel):
        """[shared.incentive]: these settings are part of the run, equal on every peer."""

        model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

        members: list[str] = []
        """Peer ids of those who may contribute; empty: everyone."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._rounds: dict[str, list[int]] = {}  # peer → [rounds accepted, rounds seen]

    def select(self, round_: RoundIndex, candidates: Sequence[PeerId], limit: int) -> Sequence[PeerId]:
        allowed = sorted(peer for peer in set(candidates) if not self._config.members or peer in self._config.members)
        first = round_ * limit % len(allowed) if allowed else 0
        return sorted((allowed[first:] + allowed[:first])[:limit])

    def shares(self, accepted: Sequence[ContributionHeader]) -> Mapping[PeerId, float]:
        parts = {each.peer: max(each.tokens, 1) * (1 + (self._reliability(each.peer) > 0.9)) for each in accepted}
        return {peer: parts[peer] / sum(parts.values()) for peer in sorted(parts)}

    def trust(self, round_: RoundIndex, peers: Sequence[PeerId]) -> Mapping[PeerId, float]:
        return {}  # who decides is not our business

    def score(self, round_: RoundIndex, evidence: Sequence[Evidence]) -> Scoreboard:
        for each in evidence:
            accepted, seen = self._rounds.get(each.verdict.peer, [0, 0])
            self._rounds[each.verdict.peer] = [accepted + each.verdict.accepted, seen + 1]
        return Scoreboard(round=round_, scores={PeerId(peer): self._reliability(peer) for peer in sorted(self._rounds)})

    def hear(self, said: Sequence[Said]) -> None:
        """Others' opinions do not count here."""

    async def settle(self, board: Scoreboard) -> None:
        """Nothing to write anywhere; a backend with a chain would do it here."""

    def state(self) -> JSON:
        return {"rounds": self._rounds}

    def restore(self, state: JSON) -> None:
        self._rounds = {peer: list(counts) for peer, counts in state["rounds"].items()}

    def _reliability(self, peer: str) -> float:
        accepted, seen = self._rounds.get(peer, [0, 1])
        return accepted / seen
