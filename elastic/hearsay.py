"""What validators said in the last rounds, and who told different peers different things.

Nobody can see alone that it is told something else than the others. So each validator names, beside its scores, what it
heard the others say the round before. Where that differs, they show the signed words they have: two of one validator on
one round prove that it lies, and it is heard no more.
"""

from collections.abc import Collection, Iterable

from elastic.messages import MAX_VALIDATORS, Digest, PeerId, RoundIndex, SignedScoreboard, digest_of

ROUNDS = 2
"""Words of so many rounds are kept."""
LIAR = Digest("0" * 64)
"""In place of a word's digest: whoever says so has two of them."""


class Hearsay:
    """Of one peer. Kept in memory only: others tell it again after a restart."""

    def __init__(self) -> None:
        self._words: dict[RoundIndex, dict[PeerId, SignedScoreboard]] = {}
        self._proofs: dict[PeerId, list[SignedScoreboard]] = {}
        """Liar → its two words."""

    @property
    def liars(self) -> set[PeerId]:
        """Whose two words we have seen."""
        return set(self._proofs)

    def take(self, said: Iterable[SignedScoreboard]) -> list[SignedScoreboard]:
        """What was said; the first word of each counts. Returns what is to be heard."""
        found = [each for each in said if each.peer not in self._proofs]
        for each in found:
            self._words.setdefault(each.round, {}).setdefault(each.peer, each)
        for old in sorted(self._words)[:-ROUNDS]:
            del self._words[old]
        return found

    def word(self, peer: PeerId, round_: RoundIndex) -> SignedScoreboard | None:
        """What that one said on that round, as far as we know."""
        return self._words.get(round_, {}).get(peer)

    def digests(self, round_: RoundIndex) -> dict[PeerId, Digest]:
        """Validator → digest of its word on that round, or LIAR."""
        words = {peer: digest_of(word.body()) for peer, word in self._words.get(round_, {}).items()}
        known = dict.fromkeys(sorted(self._proofs), LIAR) | {
            peer: words[peer] for peer in sorted(words.keys() - self._proofs)
        }
        return dict(list(known.items())[:MAX_VALIDATORS])

    def questions(self, said: SignedScoreboard) -> set[PeerId]:
        """Of whom `said` heard something else than we did, or knows that they lie, which we do not know."""
        ours = self.digests(RoundIndex(said.round - 1))
        return {
            peer for peer, digest in said.heard.items()
            if peer not in self._proofs and (digest == LIAR or ours.get(peer, digest) != digest)
        }  # fmt: skip

    def shows(self, round_: RoundIndex, asked: Collection[PeerId]) -> list[SignedScoreboard]:
        """At most two words for others to see: of a liar that we know, by turns; else ours of somebody asked for."""
        if self._proofs:
            return self._proofs[sorted(self._proofs)[round_ % len(self._proofs)]]
        return [words[peer] for _, words in sorted(self._words.items()) for peer in sorted(asked & words.keys())][:1]

    def convict(self, shown: Iterable[SignedScoreboard]) -> list[SignedScoreboard]:
        """Two words of one validator on one round, if these and ours have such; it is a liar from now on."""
        seen = {(word.peer, word.round): word for words in self._words.values() for word in words.values()}
        for word in shown:
            first = seen.setdefault((word.peer, word.round), word)
            if first.body() != word.body() and word.peer not in self._proofs:
                self._proofs[word.peer] = [first, word]
                return [first, word]
        return []
