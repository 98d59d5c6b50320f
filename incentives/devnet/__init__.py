"""A local devnet in this process: it speaks to the real Bittensor SDK, and it is no chain.

It keeps real storage keys and SCALE bytes, checks real signatures, applies the chain's rules for weights and
commitments in the chain's order, and fails in the ways that real endpoints fail. There is one node, no consensus, no
money, no emission, no reveal of timelocked commits and no MEV shield. Nothing that lands here lands anywhere else.

Read `chain.py` first; `node.py` serves it on a loopback port.
"""
