"""What validators said in the last rounds, and who told different peers different things.

Nobody can see alone that it is told something else than the others. So each validator names, beside its scores, what it
heard the others say the round before. Where that differs, they show the signed words they have: two of one validator on
one round prove that it lies, and it is heard no more.
"""

from collections.abc import Collection, Iterable

from elastic.errors import StateError
from elastic.messages import JSON, Digest, PeerId, RoundIndex, SignedScoreboard, digest_of

ROUNDS = 2
"""Words of so many rounds are kept."""
LIAR = Digest("0" * 64)
"""In place of a word's digest: whoever says so has two of them."""
MOST_SHOWN = 3
"""Words that a validator shows in a round, beside the two of a liar."""


class Hearsay:
    """Of one peer. What proves a lie is kept over restarts, other words are not: a restart forgets a round's."""

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

    def digests(self, round_: RoundIndex, validators: Collection[PeerId]) -> dict[PeerId, Digest]:
        """Validator → digest of its word on that round, or LIAR."""
        words = {peer: digest_of(word.body()) for peer, word in self._words.get(round_, {}).items()}
        known = words | dict.fromkeys(self._proofs, LIAR)
        return {peer: known[peer] for peer in sorted(known.keys() & set(validators))}

    def questions(self, said: SignedScoreboard, validators: Collection[PeerId]) -> set[PeerId]:
        """Of whom `said` heard something else than we did, or knows that they lie, which we do not know."""
        ours = self.digests(RoundIndex(said.round - 1), validators)
        return {
            peer for peer, digest in said.heard.items()
            if peer in validators and peer not in self._proofs and (digest == LIAR or ours.get(peer, digest) != digest)
        }  # fmt: skip

    def proof(self, round_: RoundIndex, validators: Collection[PeerId]) -> list[SignedScoreboard]:
        """The two words of a validator that lied, by turns, for who does not know it yet; none: we know of none."""
        known = sorted(self._proofs.keys() & set(validators))
        return self._proofs[known[round_ % len(known)]] if known else []

    def answers(self, round_: RoundIndex, asked: Collection[PeerId]) -> list[SignedScoreboard]:
        """Some of our words on that round that were asked for.

        Which ones changes with the round, and is the same for all: an asker that lies cannot keep others' words from
        meeting for long.
        """
        words = self._words.get(round_, {})
        drawn = sorted(words.keys() & set(asked), key=lambda peer: digest_of(f"{round_}:{peer}".encode()))
        return [words[peer] for peer in drawn[:MOST_SHOWN]]

    def convict(self, shown: Iterable[SignedScoreboard]) -> list[SignedScoreboard]:
        """Two words of one validator on one round of one run, if these and ours have such; it is a liar from now on."""
        seen: dict[tuple[PeerId, RoundIndex, Digest], SignedScoreboard] = {}
        for word in [*(word for words in self._words.values() for word in words.values()), *shown]:
            first = seen.setdefault((word.peer, word.round, word.previous), word)
            if first.body() != word.body() and word.peer not in self._proofs:
                self._proofs[word.peer] = [first, word]
                return [first, word]
        return []

    def proofs(self) -> list[SignedScoreboard]:
        """All that prove a lie, two by two."""
        return [word for _, words in sorted(self._proofs.items()) for word in words]

    def state(self) -> JSON | None:
        """What must survive a restart: if all who know are restarted, nobody knows any more. None: nothing."""
        return {"proofs": [word.model_dump(mode="json") for word in self.proofs()]} if self._proofs else None

    def restore(self, state: JSON) -> None:
        """Take back what `state` returned.

        Raises:
            StateError: something else.
        """
        try:
            words = [SignedScoreboard.model_validate(each) for each in state["proofs"]]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StateError(f"not a state of hearsay: {error!r}") from error
        while self.convict(words):
            pass
