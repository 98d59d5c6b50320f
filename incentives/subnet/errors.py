"""What can go wrong with a chain; each message says what to do.

ElasticError
├── NetworkError
│   └── ChainUnreachableError     the endpoint does not answer, or not in time: it is asked again at the next tick
├── ConfigError
│   ├── RuntimeMismatchError      the SDK that is installed does not fit the chain's runtime
│   ├── NoSubnetError             there is no such subnet on this chain
│   └── KeyFileError              the hotkey's key file is missing, encrypted, or readable by others
├── ChainAnswerError              the endpoint's answers make no sense: it lies, or is of another chain
├── ChainRefusedError             the chain says no: rules, rates, permits
└── LockedError                   another process publishes with this hotkey on this subnet
"""

from elastic.errors import ConfigError, ElasticError, NetworkError


class ChainUnreachableError(NetworkError):
    """The endpoint does not answer, or not in time."""


class RuntimeMismatchError(ConfigError):
    """The installed SDK does not fit the chain's runtime."""


class NoSubnetError(ConfigError):
    """There is no such subnet on this chain."""


class KeyFileError(ConfigError):
    """The key file of the hotkey cannot or must not be used."""


class ChainAnswerError(ElasticError):
    """An answer that no honest endpoint of this chain would give."""


class ChainRefusedError(ElasticError):
    """The chain does not allow it."""


class LockedError(ElasticError):
    """Another process holds the lock of this hotkey and subnet."""
