"""A run as a Bittensor subnet: peers are bound to hotkeys, scores become weights on the chain.

    vector.py     scores of hotkeys → weights of uids                          pure
    binding.py    which peer is which hotkey, said by both                     pure
    keys.py       where the hotkey's key file is, and who may read it
    chain.py      the chain as we need it; the only file that imports `bittensor`
    receipts.py   what we want from the chain, and what came of it
    journal.py    both on disk, before they count
    publisher.py  weights onto the chain, never twice
    settler.py    all of this, tick by tick, in a thread of its own
    backend.py    the `Incentive` that a run file names; knows no chain

The chain never stalls training: boards go into a mailbox, news come out of another.
"""
