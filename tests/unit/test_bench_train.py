"""`elastic bench train`: its arithmetic, and a run of it with a tiny number of steps."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest

from elastic.bench.decoders import OURS, THEIRS, Block, Trainee, Work, in_processes
from elastic.bench.train import CPU_CASES, Case, Setup, chosen, measure, table, utilisation
from elastic.errors import ConfigError, ElasticError
from elastic.plan.gpus import CALLED, GPUS, kind_of
from elastic.plan.shape import flops_per_token, sizes_of
from elastic.sections import PluginChoice

NANO = Setup((Case("nano", 2, 16, layers=1),), pairs=1, steps=1)


def sizes(preset: str) -> Any:
    return sizes_of(PluginChoice.model_validate({"name": "llama", "preset": preset}))


class Timed:
    """A side that takes so many seconds for a step."""

    def __init__(
        self, seconds: Sequence[float], loss: float = 5.0, told: list[str] | None = None, who: str = ""
    ) -> None:
        self._seconds, self._loss, self._told, self._who = iter(seconds), loss, told, who

    def train(self, steps: int) -> Block:
        if self._told is not None:
            self._told.append(self._who)
        seconds = next(self._seconds)
        return Block(100 * steps, seconds * steps, 2 * seconds * steps, self._loss)

    def peak_bytes(self) -> int:
        return 7_000_000


def sides_of(**sides: Timed) -> Any:
    @contextmanager
    def start(work: Work, wanted: Sequence[str]) -> Iterator[Mapping[str, Timed]]:
        yield {who: sides[who] for who in wanted}

    return start


def test_flops_of_a_token_by_hand() -> None:
    # 12 blocks: 4 · 1024² of attention, 3 · 1024 · 2688 of the feed-forward layer; the output; half of T is looked at
    products = 12 * (4 * 1024**2 + 3 * 1024 * 2688) + 32_000 * 1024
    assert flops_per_token(sizes("150m"), 2048) == 6 * products + 12 * 12 * 1024 * 2048 / 2
    # and 4 key-value heads of 32 make key and value an eighth as large
    products = 22 * (2048**2 * (1 + 2 / 8 + 1) + 3 * 2048 * 5632) + 32_000 * 2048
    assert flops_per_token(sizes("1b"), 2048) == 6 * products + 12 * 22 * 2048 * 2048 / 2


def test_utilisation_is_part_of_the_peak_of_a_gpu_that_is_known() -> None:
    row = {"device": "NVIDIA H200", "flops per token": 1e9, OURS: {"tokens/s": 494_500.0}}

    assert utilisation(row) == pytest.approx(0.5)
    assert utilisation({**row, "device": "NVIDIA H200 MIG 1g.18gb"}) is None
    assert utilisation({**row, "device": "cpu"}) is None


def test_drivers_names_are_of_gpus_whose_peak_is_known() -> None:
    assert set(CALLED.values()) == GPUS.keys() - {"cpu"}
    assert kind_of("NVIDIA H100 PCIe") is None


def test_blocks_alternate_and_ratios_are_medians_over_pairs() -> None:
    # given two steps to warm up, then three pairs, of which one is an outlier
    told: list[str] = []
    ours = Timed([9, 1, 1, 1, 1], told=told, who="a")
    theirs = Timed([9, 1, 1.5, 30, 2], told=told, who="b")
    setup = Setup((Case("nano", 2, 16),), pairs=3, steps=1)
    # when
    (row,) = measure(setup, lambda line: None, sides_of(ours=ours, transformers=theirs))
    # then
    assert "".join(told) == "abab" + "ab" + "ba" + "ab"
    assert row["ratios"] == pytest.approx([1.5, 30, 2])
    assert row["ratio"] == row["cpu time ratio"] == pytest.approx(2)
    assert row[OURS] == {"tokens/s": 100, "peak bytes": 7_000_000}
    assert "2.000" in table([row]) and "nano, 2 × 16, fp32" in table([row])


def test_a_block_has_as_many_steps_as_take_a_second() -> None:
    ours = Timed([9, 0.25, 0.25])

    (row,) = measure(Setup((Case("nano", 2, 16),), pairs=1, alone=True), lambda line: None, sides_of(ours=ours))

    assert row["steps"] == 4
    assert THEIRS not in row and "ratio" not in row
    assert "nano" in table([row])


def test_two_that_do_not_say_the_same_are_not_compared() -> None:
    sides = sides_of(ours=Timed([1, 1, 1]), transformers=Timed([1, 1, 1], loss=5.1))

    with pytest.raises(ElasticError, match="not the same model"):
        measure(NANO, lambda line: None, sides)


class Stopped(Timed):
    def train(self, steps: int) -> Block:
        raise KeyboardInterrupt


def test_ctrl_c_before_there_is_a_row_ends_it() -> None:
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        measure(NANO, said.append, sides_of(ours=Stopped([]), transformers=Timed([])))
    assert said[-1] == "stopped"


def test_ctrl_c_leaves_the_rows_that_are_done() -> None:
    # given a user who stops it in the second of two cases
    sides = iter([{OURS: Timed([9, 0.25, 0.25])}, {OURS: Stopped([])}])
    setup = Setup((Case("nano", 2, 16), Case("nano", 4, 16)), pairs=1, alone=True)
    # when
    rows = measure(setup, lambda line: None, lambda work, who: nullcontext(next(sides)))
    # then
    assert [row["what"] for row in rows] == [label for label, _ in setup.works()][:1]


def test_cases_and_what_is_changed_in_them() -> None:
    assert chosen((), {}, "cpu", quick=False) == [*CPU_CASES]
    assert chosen((), {"batch": 3, "layers": 0}, "cpu", quick=True) == [Case("nano", 3, 128)]
    assert [case.preset for case in chosen((), {}, "cuda", quick=False)] == ["150m", "1b"]
    assert chosen(("8b",), {"layers": 1}, "cpu", quick=False) == [Case("8b", 1, 512, layers=1)]
    with pytest.raises(ConfigError, match='did you mean "micro"'):
        chosen(("micra",), {}, "cpu", quick=False)


def test_a_gpu_is_measured_compiled_and_not() -> None:
    setup = Setup((Case("1b", 8, 2048),), "cuda", "bf16", (False, True))

    labels, works = zip(*setup.works(), strict=True)

    assert labels == ("1b, 8 × 2048, bf16", "1b, 8 × 2048, bf16, compiled")
    assert [work.how.compile for work in works] == [False, True]


@pytest.mark.parametrize("settings", [{}, {"recompute": True}, {"precision": "bf16"}], ids=str)
def test_the_others_decoder_learns_what_ours_does(settings: dict[str, Any]) -> None:
    # given both, from the same weights
    pytest.importorskip("transformers")
    ((_, work),) = Setup(NANO.cases, **settings).works()
    ours, theirs = (Trainee(who, work) for who in (OURS, THEIRS))
    # when both take the same steps
    for trainee in (ours, theirs):
        trainee.train(3)
    # then they say the same
    assert ours.train(1).first_loss == pytest.approx(theirs.train(1).first_loss, abs=1e-3 if not settings else 2e-2)


def test_a_run_of_it_in_processes() -> None:
    pytest.importorskip("transformers")
    said: list[str] = []

    (row,) = measure(NANO, said.append)

    assert row["first losses"][0] == pytest.approx(row["first losses"][1], abs=1e-3)
    assert row["ratio"] > 0 and row["cpu time ratio"] > 0
    assert all(row[who]["tokens/s"] > 0 and row[who]["peak bytes"] > 1e6 for who in (OURS, THEIRS))
    assert said[0] == "nano of 1 layers, 2 × 16, fp32"


def test_what_goes_wrong_in_a_process_is_told() -> None:
    # given more tokens than the model takes
    ((_, work),) = Setup((Case("nano", 1, 1024),)).works()

    with in_processes(work, [OURS]) as sides, pytest.raises(ElasticError, match=r"ours: ValueError: 1024 tokens"):
        sides[OURS].train(1)
