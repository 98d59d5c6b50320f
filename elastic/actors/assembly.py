"""From a run file to the parts of a peer. No Ray: whoever has a trainer and an exchange can put a peer together."""

from collections.abc import Callable
from functools import partial

from elastic.actors.job import assigner, layout, load_corpus
from elastic.agreement.charter import Charter
from elastic.agreement.quorum import BALLOT_FILE, Memory, Quorum
from elastic.config import RunConfig
from elastic.contracts import Exchange, Trainer
from elastic.peer import Peer
from elastic.registry import build
from elastic.reports import TrainerState
from elastic.schedule.clock import WallClock
from elastic.state.chain import CHAIN_FILE, Chain
from elastic.state.files import read_if_there, write_durably
from elastic.state.store import STATE_FOLDER, StateStore
from elastic.train.session import Parts
from elastic.wire.signing import Identity


def assemble(
    config: RunConfig,
    exchange: Exchange,
    trainer: Trainer,
    state: TrainerState,
    on_phase: Callable[[str], None],
) -> Peer:
    """A peer on the wall clock; its chain and its ballot are those of its state directory. Its incentive is new.

    Raises:
        StateError: what was kept there is damaged.
    """
    shared, local, identity = config.shared, config.local, Identity.load(config.key_path)
    ballot, chain = local.state_dir / BALLOT_FILE, Chain(local.state_dir / CHAIN_FILE)
    charter = Charter(shared.run, shared.terms(), chain.amendments())
    memory = Memory(read_if_there(ballot), partial(write_durably, ballot))
    return Peer(
        identity=identity, name=local.name or identity.peer[-6:], shared=shared, clock=WallClock(), trainer=trainer,
        reducer=build("reducer", shared.reducer), like=layout(config), exchange=exchange,
        agreement=Quorum(identity, charter, shared.run, exchange, WallClock(), memory),
        incentive=build("incentive", shared.incentive), chain=chain, state=state, on_phase=on_phase,
        watching=local.evaluator.wanted,
    )  # fmt: skip


def session_parts(config: RunConfig) -> Parts:
    """What a trainer's session is made of.

    Raises:
        ConfigError, MissingCorpusError, StateError: the user's to mend.
    """
    import torch

    shared, corpus, kept = config.shared, load_corpus(config), config.local.checkpoints
    with torch.device("meta"):  # the session makes room for this worker's part of it
        model = build("model", shared.model)
    return Parts(
        model=model, corpus=corpus, assign=assigner(config, corpus),
        reducer=build("reducer", shared.reducer),
        store=StateStore(config.local.state_dir / STATE_FOLDER, kept.keep_last, kept.keep_every),
    )  # fmt: skip
