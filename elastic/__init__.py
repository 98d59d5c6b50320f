"""Elastic: strangers train one language model together. Read `elastic.round` first, then `elastic.contracts`."""

__version__ = "0.1.0"
