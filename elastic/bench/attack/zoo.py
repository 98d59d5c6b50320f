"""The zoo of bad peers: every kind by name."""

from elastic.bench.attack.conduct import Conduct
from elastic.bench.attack.malformed import (
    NeverServe,
    NotFinite,
    RepeatedIndex,
    ShapeBomb,
    SizeBomb,
    SizeLie,
    Withhold,
)
from elastic.bench.attack.sly import Colluders, Copy, LateCopy, NearCopy, Sybils, TwoFaced
from elastic.bench.attack.work import (
    Idle,
    Noise,
    NoProof,
    OldAnchor,
    PoisonSome,
    Sandbag,
    Sandbag10,
    Sandbag25,
    Sandbag75,
    Sandbag90,
    Scale,
    SignFlip,
    SlowPoison,
    SlowPoison10,
    SlowPoison40,
    Stale,
    Traitor,
    WrongData,
)

ABSENT = "absent"
"""No bad peers at all: what damage is measured against."""
CONTROL = "honest"
"""Honest peers in the places of the bad ones: how far two clean runs lie apart."""

ZOO: dict[str, type[Conduct]] = {
    "sign flip": SignFlip,
    "scale x100": Scale,
    "noise": Noise,
    "idle": Idle,
    "copy": Copy,
    "late copy": LateCopy,
    "copy + noise": NearCopy,
    "stale replay": Stale,
    "old anchor": OldAnchor,
    "no proof": NoProof,
    "nan": NotFinite,
    "shape bomb": ShapeBomb,
    "repeated index": RepeatedIndex,
    "size bomb": SizeBomb,
    "size lie": SizeLie,
    "withhold": Withhold,
    "never serve": NeverServe,
    "wrong data": WrongData,
    "sandbag 10 %": Sandbag10,
    "sandbag 25 %": Sandbag25,
    "sandbag 50 %": Sandbag,
    "sandbag 75 %": Sandbag75,
    "sandbag 90 %": Sandbag90,
    "sybils": Sybils,
    "colluders": Colluders,
    "two faces": TwoFaced,
    "slow poison": SlowPoison,
    "slow poison 10 %": SlowPoison10,
    "slow poison 40 %": SlowPoison40,
    "poison 1 in 4": PoisonSome,
    "traitor": Traitor,
}
QUICK = ("sign flip", "copy", "copy + noise", "nan", "slow poison")
"""Kinds that tell most: a gross one, two thieves, a malformed one, and one that hides."""
