"""How much memory adding up takes: one dense tensor and the payloads, however many peers there are."""

import subprocess
import sys

import pytest

SIDE, PEERS = 2048, 70
PROGRAM = f"""
import resource, sys, torch
from elastic.reduce.sparseloco import SparseLoCo
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
torch.set_num_threads(1)
sut = SparseLoCo(SparseLoCo.Config(), compiled=sys.argv[1] == "True")
small = {{"w": torch.ones(128, 128)}}
warm, _ = sut.compress(small, {{}})
sut.aggregate([(warm, 1.0)], small)
like = {{"w": torch.empty({SIDE}, {SIDE}, device="meta")}}
delta = torch.randn({SIDE}, {SIDE}, generator=torch.Generator().manual_seed(0))
sent = [sut.encode(sut.compress({{"w": delta.roll(64 * peer, 1)}}, {{}})[0]) for peer in range({PEERS})]
room = {{"w": torch.zeros({SIDE}, {SIDE})}}
before = peak()
payloads = [sut.decode(data, like) for data in sent]
sut.aggregate([(payload, 1 / {PEERS}) for payload in payloads], like, out=room)
print(peak() - before, sum(map(len, sent)))
"""


@pytest.mark.parametrize("compiled", [True, False])
def test_seventy_peers_take_the_memory_of_their_payloads(compiled: bool) -> None:
    # given / when 70 payloads are added up, where the dense tensor is already there
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(compiled)], capture_output=True, text=True, check=True)
    more, payloads = map(int, done.stdout.split())
    # then it takes less than the entries of all of them, unpacked to an index and a value each, would
    entries = PEERS * SIDE * SIDE * 64 // 4096
    assert more < 3 * payloads + 8 * 2**20 < entries * (8 + 4)
