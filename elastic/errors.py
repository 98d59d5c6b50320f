"""Everything we raise.

    ElasticError
    ├── ConfigError               the user's run file or flags; the message says what to write instead
    │   ├── MissingExtraError     an optional library is not installed; the message is the pip command
    │   └── MissingCorpusError    the training text is not where the run file says, or is another text
    ├── RayUnavailableError       no Ray cluster to attach to, or none with enough resources
    ├── NetworkError              our side of the internet
    │   ├── BootstrapError        nobody answered at the bootstrap addresses
    │   ├── PortTakenError        the port to listen on is in use
    │   ├── ClockSkewError        this machine's clock disagrees with the swarm's
    │   ├── FetchError            no holder could give us the bytes we asked for
    │   └── AveragingError        an all-reduce failed or left replicas different
    ├── NotThisRunError           the swarm under this name runs another [shared] configuration
    ├── MalformedError            bytes that do not decode: a peer's fault, turned into a Verdict
    ├── SignatureInvalidError     a signature that does not verify: likewise
    ├── StateError                our state on disk cannot be read or written
    ├── TrainerLostError          the Ray Train worker group failed and is restarted
    ├── TrainerFailedError        the trainer failed in a way that a restart does not mend
    ├── PeerDiedError             the peer's processes die again and again
    ├── DivergedError             inner steps ended in NaN or infinity: this round is sat out
    └── BugError                  a mistake of ours; the traceback is in the log

A peer's misbehaviour is a Verdict and an unlucky round is a Skip; neither is an exception. No class here has an
`__init__`: Ray rebuilds exceptions from their arguments when they cross processes.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class ElasticError(Exception):
    """Base of all errors raised by this project; its message is one line for a person."""


class ConfigError(ElasticError):
    """The run file or a flag is wrong."""


class MissingExtraError(ConfigError):
    """An optional library is needed and not installed."""


class MissingCorpusError(ConfigError):
    """The training text is missing or is not the one the run names."""


class RayUnavailableError(ElasticError):
    """There is no Ray cluster to attach to, or it lacks what the peer needs."""


class NetworkError(ElasticError):
    """Our side of the network failed."""


class BootstrapError(NetworkError):
    """Nobody answered at any bootstrap address."""


class PortTakenError(NetworkError):
    """The port to listen on is in use."""


class ClockSkewError(NetworkError):
    """This machine's clock is too far from the swarm's."""


class FetchError(NetworkError):
    """No holder could give the bytes asked for."""


class AveragingError(NetworkError):
    """An all-reduce failed, or left the replicas different."""


class NotThisRunError(ElasticError):
    """The swarm runs another [shared] configuration under this name."""


class MalformedError(ElasticError):
    """Bytes from elsewhere do not decode."""


class SignatureInvalidError(ElasticError):
    """A signature does not verify."""


class StateError(ElasticError):
    """State on disk cannot be read or written."""


class TrainerLostError(ElasticError):
    """The trainer's worker group failed; it is being restarted from the state on disk."""


class TrainerFailedError(ElasticError):
    """The trainer failed in a way that a restart does not mend."""


class PeerDiedError(ElasticError):
    """The peer died again and again without finishing a round in between."""


class BugError(ElasticError):
    """A mistake of ours; the traceback is in the log."""


class DivergedError(ElasticError):
    """Inner steps ended in NaN or infinity; the anchor and the residual are as before."""


def is_out_of_memory(error: BaseException) -> bool:
    """A GPU's, which has a class of its own, or the host's, which torch tells by its text; without importing torch."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or any(text in str(error) for text in ("can't allocate memory", "unable to mmap"))


@contextmanager
def enough_memory(advice: str) -> Iterator[None]:
    """While this lasts, too little memory is a ConfigError that ends with the advice."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise ConfigError(f"this machine has too little memory for it: {advice}") from error


def state_error(path: Path, error: OSError) -> StateError:
    """What went wrong with a file of ours and what to do about it, in one line."""
    advice = {
        errno.ENOSPC: "free some space on that disk, or keep fewer anchors (local.checkpoints)",
        errno.EDQUOT: "free some of your quota on that disk, or keep fewer anchors (local.checkpoints)",
        errno.EFBIG: "the limit on file sizes is too low (ulimit -f, or the file system's)",
        errno.EACCES: "make it readable and writable for this user",
        errno.EPERM: "make it readable and writable for this user",
        errno.EROFS: "that file system is read-only; choose another local.state_dir",
        errno.EIO: "that disk is failing; choose another local.state_dir",
    }.get(error.errno or 0, "choose another local.state_dir if this stays")
    return StateError(f"{path}: {error.strerror or error}; {advice}")
