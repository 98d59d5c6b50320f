"""The devnet takes what the chain would take and refuses the rest, for the chain's reasons."""

import pytest

pytest.importorskip("bittensor_core")

import bittensor_core as core
from devnet_cases import MINERS, NETUID, STRANGER, VALIDATOR, made, signed, weights

from incentives.devnet.chain import Chain
from incentives.devnet.rules import RefusedError

GOOD = weights([1, 2], [65535, 32768])


def failure(chain: Chain, data: bytes) -> str | None:
    """What became of it in the next block."""
    chain.submit(data)
    chain.produce()
    return chain.applied[-1].failed


def test_weights_land_and_are_scaled_to_the_top() -> None:
    chain = made()
    assert failure(chain, signed(chain, weights([1, 2], [10, 5]))) is None
    assert chain.state.get("Weights", NETUID, 0) == [(1, 65535), (2, 32768)]
    assert chain.state.get("LastUpdate", NETUID)[0] == chain.head.number
    assert chain.state.nonce(VALIDATOR.ss58_address) == 1


def test_an_ed25519_hotkey_signs_as_well() -> None:
    chain, key = made(), core.Keypair.create_from_seed(bytes([7]) * 32, crypto_type=core.CRYPTO_ED25519)
    chain.register(NETUID, key.ss58_address, STRANGER.ss58_address, stake=10, permit=True)
    chain.produce()
    assert failure(chain, signed(chain, GOOD, by=key)) is None
    assert chain.applied[-1].extrinsic.scheme == "Ed25519"


@pytest.mark.parametrize("place", [-1, -9, 40, 100])
def test_one_flipped_bit_in_the_signature_or_the_call_is_refused(place: int) -> None:
    chain = made()
    data = bytearray(signed(chain, GOOD))
    data[place] ^= 1
    with pytest.raises(RefusedError, match=r"bad signature|decode"):
        chain.submit(bytes(data))
    assert chain.pool == []


def test_a_signature_for_another_chain_or_fork_is_refused() -> None:
    one, other = made(), made(rate_limit=6)
    other.produce()
    with pytest.raises(RefusedError, match="bad signature"):
        one.submit(signed(other, GOOD))


@pytest.mark.parametrize("data", [b"", b"\0", b"\xff" * 20, bytes(300)])
def test_rubbish_is_refused(data: bytes) -> None:
    with pytest.raises(RefusedError, match="decode"):
        made().submit(data)


def test_a_nonce_is_used_once() -> None:
    chain = made(rate_limit=0)
    first = signed(chain, GOOD)
    chain.submit(first)
    with pytest.raises(RefusedError, match="Already Imported"):
        chain.submit(first)
    with pytest.raises(RefusedError, match="Priority is too low"):
        chain.submit(signed(chain, weights([1], [1]), nonce=0))
    chain.submit(signed(chain, weights([2], [1]), nonce=1))
    chain.produce()
    assert [each.extrinsic.nonce for each in chain.applied] == [0, 1]
    with pytest.raises(RefusedError, match="outdated"):
        chain.submit(signed(chain, GOOD, nonce=1))


def test_a_transaction_waits_for_the_nonce_before_it() -> None:
    chain = made(rate_limit=0)
    chain.submit(signed(chain, GOOD, nonce=1))
    chain.produce()
    assert chain.applied == []
    chain.submit(signed(chain, GOOD, nonce=0))
    chain.produce()
    assert len(chain.applied) == 2


@pytest.mark.parametrize(("waited", "landed"), [(14, 1), (15, 0)])
def test_after_its_era_a_transaction_never_lands(waited: int, landed: int) -> None:
    chain = made()
    chain.submit(signed(chain, GOOD, period=16))
    chain.withheld = True
    for _ in range(waited):
        chain.produce()
    chain.withheld = False
    chain.produce()
    assert len(chain.applied) == landed
    assert chain.pool == []


def test_weights_set_too_fast_and_by_strangers_are_refused_by_the_pool() -> None:
    chain = made(rate_limit=5)
    failure(chain, signed(chain, GOOD))
    with pytest.raises(RefusedError, match="Custom error: 6"):
        chain.submit(signed(chain, GOOD))
    with pytest.raises(RefusedError, match="Custom error: 19"):
        chain.submit(signed(chain, GOOD, by=STRANGER))
    for _ in range(4):
        chain.produce()
    assert failure(chain, signed(chain, GOOD)) is None


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (weights([1, 2], [1]), "WeightVecNotEqualSize"),
        (weights([1], [1], mecid=1), "MechanismDoesNotExist"),
        (weights([0, 1, 2, 3, 4, 5], [1] * 6), "UidsLengthExceedUidsInSubNet"),
        (weights([1, 2], [1, 1], version_key=6), "IncorrectWeightVersionKey"),
        (weights([1, 1], [1, 1], version_key=7), "DuplicateUids"),
        (weights([1, 9], [1, 1], version_key=7), "UidVecContainInvalidOne"),
        (weights([1], [1], version_key=7), "WeightVecLengthIsLow"),
        (weights([1, 2], [9, 1], version_key=7), "MaxWeightExceeded"),
        (weights([1, 2], [1, 1], version_key=7), None),
        (weights([0], [1], version_key=7), None),
    ],
    ids=str,
)
def test_a_vector_that_does_not_fit_fails_in_its_block(call: tuple[str, dict[str, object]], name: str | None) -> None:
    chain = made(WeightsVersionKey=7, MinAllowedWeights=2, MaxWeightsLimit=40000)
    assert failure(chain, signed(chain, call)) == name
    assert chain.state.nonce(VALIDATOR.ss58_address) == 1


def test_without_permit_stake_or_in_another_regime_weights_fail() -> None:
    chain = made()
    assert failure(chain, signed(chain, GOOD, by=MINERS[0])) == "NeuronNoValidatorPermit"
    chain.state.put("StakeThreshold", value=10**6)
    assert failure(chain, signed(chain, GOOD)) == "NotEnoughStakeToSetWeights"
    hidden = made(commit_reveal=True)
    assert failure(hidden, signed(hidden, GOOD)) == "CommitRevealEnabled"
    commit = {"netuid": NETUID, "mecid": 0, "commit": "0x01ff", "reveal_round": 9, "commit_reveal_version": 4}
    assert failure(chain, signed(chain, ("commit_timelocked_mechanism_weights", commit))) == "CommitRevealDisabled"
    old = ("commit_timelocked_mechanism_weights", {**commit, "commit_reveal_version": 3})
    assert failure(hidden, signed(hidden, old)) == "IncorrectCommitRevealVersion"


def test_a_timelocked_commit_is_kept_and_moves_last_update() -> None:
    chain = made(commit_reveal=True)
    commit = {"netuid": NETUID, "mecid": 0, "commit": "0x01ff", "reveal_round": 9, "commit_reveal_version": 4}
    assert failure(chain, signed(chain, ("commit_timelocked_mechanism_weights", commit))) is None
    kept = chain.state.get("TimelockedWeightCommits", NETUID, 0)
    assert kept == [(VALIDATOR.ss58_address, chain.head.number, "0x01ff", 9)]
    assert chain.state.get("LastUpdate", NETUID)[0] == chain.head.number
    assert chain.state.get("Weights", NETUID, 0) == []


def test_a_commitment_belongs_to_who_is_registered() -> None:
    chain = made()
    call = ("set_commitment", {"netuid": NETUID, "info": {"fields": [{"Raw3": "0x616263"}]}})
    assert failure(chain, signed(chain, call, pallet="Commitments")) is None
    kept = chain.state.get("CommitmentOf", NETUID, VALIDATOR.ss58_address, pallet="Commitments")
    assert kept["block"] == chain.head.number
    assert failure(chain, signed(chain, call, by=STRANGER, pallet="Commitments")) == "AccountNotAllowedCommit"
    many = ("set_commitment", {"netuid": NETUID, "info": {"fields": [{"Raw0": "0x"}] * 4}})
    assert failure(chain, signed(chain, many, pallet="Commitments")) == "TooManyFieldsInCommitmentInfo"


def test_a_newcomer_takes_a_place_and_who_had_it_is_gone() -> None:
    chain = made()
    chain.register(NETUID, STRANGER.ss58_address, VALIDATOR.ss58_address, uid=1)
    chain.produce()
    assert chain.state.uid(NETUID, MINERS[0].ss58_address) is None
    assert chain.state.uid(NETUID, STRANGER.ss58_address) == 1
    assert chain.state.get("SubnetworkN", NETUID) == 5


def test_a_subnet_of_256_keeps_its_vectors_whole() -> None:
    chain = made()
    for number in range(251):
        chain.register(NETUID, core.ss58_encode(number.to_bytes(32, "little"), 42), VALIDATOR.ss58_address)
    assert len(chain.state.get("LastUpdate", NETUID)) == 256
    assert chain.state.get("ValidatorPermit", NETUID) == [True] + [False] * 255
    assert chain.state.get("Uids", NETUID, core.ss58_encode((250).to_bytes(32, "little"), 42)) == 255


def test_a_block_keeps_the_state_it_had() -> None:
    chain = made()
    before = chain.head
    failure(chain, signed(chain, GOOD))
    assert before.state.get("Weights", NETUID, 0) == []
    assert chain.head.state.get("Weights", NETUID, 0) != []


def test_a_reorg_undoes_what_was_in_the_dropped_blocks() -> None:
    chain = made()
    failure(chain, signed(chain, GOOD))
    height, dropped = chain.head.number, chain.head.hash
    chain.reorg(1, forget=True)
    assert chain.head.number == height + 1
    assert dropped not in chain.by_hash
    assert chain.state.get("Weights", NETUID, 0) == []
    assert chain.state.nonce(VALIDATOR.ss58_address) == 0


def test_after_a_reorg_the_pool_tries_again() -> None:
    chain = made()
    failure(chain, signed(chain, GOOD))
    chain.reorg(1)
    assert [each.block for each in chain.applied] == [chain.head.number]
    assert chain.state.get("Weights", NETUID, 0) != []


def test_finality_lags_behind() -> None:
    chain = made()
    chain.finality_lag = 3
    for _ in range(5):
        chain.produce()
    assert chain.finalized.number == chain.head.number - 3


def test_an_epoch_comes_after_each_tempo() -> None:
    chain = made()
    for _ in range(45):
        chain.produce()
    assert chain.state.get("SubnetEpochIndex", NETUID) == 2
    assert chain.state.get("LastEpochBlock", NETUID) == 42
