"""A folder of a model is there in full or not at all, and nothing is written over what was there."""

import subprocess
import sys
from pathlib import Path

import pytest

from model_zoo.folders import FolderError, appearing
from model_zoo.hugging_face import WEIGHTS, open_folder, write_folder
from model_zoo.llama import Llama
from tests.unit.folder_cases import BPE, BYTES, tiny


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="the tokenizer has 300 tokens, and the model 256"):
        write_folder(tiny(vocab_size=256), tmp_path / "out", BPE.to_json(), "# card")

    assert not list(tmp_path.iterdir())


def test_nothing_is_written_over_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("")
    (tmp_path / "file").write_text("")
    for name, says in (("taken", "is not empty"), ("file", "is a file"), ("file/below", "File exists|Not a directory")):
        with pytest.raises((FolderError, OSError), match=says):
            write_folder(tiny(), tmp_path / name, BPE.to_json(), "# card")

    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "taken", "thesis.tex"]


def test_an_empty_folder_may_be_there(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()

    write_folder(tiny(), tmp_path / "out", BPE.to_json(), "# card")

    assert open_folder(tmp_path / "out").ends == frozenset()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


LIMITED = """
import resource, signal, sys
from pathlib import Path
from model_zoo.hugging_face import FolderError, write_folder
from model_zoo.llama import Llama
from model_zoo.tokenizer import ByteTokenizer
model = Llama(Llama.Config())
model.initialize(0)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_folder(model, Path(sys.argv[1]), ByteTokenizer().to_json(), "# card")
except (FolderError, OSError) as error:
    print(error)
"""


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, tmp_path / "out"], capture_output=True, text=True, check=False
    )

    assert WEIGHTS in done.stdout and "too large" in done.stdout, done.stdout + done.stderr
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_seen_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = type("Usage", (), {"free": 300_000})
    monkeypatch.setattr("shutil.disk_usage", lambda where: free)

    with pytest.raises(FolderError, match=r"takes 1\.2 MB, and 0\.3 MB are free on that disk"):
        write_folder(tiny(), tmp_path / "out", BPE.to_json(), "# card")

    assert not list(tmp_path.iterdir())


def test_what_a_crash_left_is_no_folder_and_goes(tmp_path: Path) -> None:
    # given a process that died in the middle
    (tmp_path / ".out.part").mkdir()
    (tmp_path / ".out.part" / "model-00001-of-00009.safetensors").write_text("half")
    assert not (tmp_path / "out").exists()
    # when
    write_folder(tiny(), tmp_path / "out", BPE.to_json(), "# card")
    # then
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip


def test_the_folder_is_there_only_when_it_is_whole(tmp_path: Path) -> None:
    with appearing(tmp_path / "out") as part:
        (part / "one").write_text("")
        assert not (tmp_path / "out").exists()
        with pytest.raises(FolderError, match="another process is writing it"), appearing(tmp_path / "out"):
            pass
    assert (tmp_path / "out" / "one").exists()


def test_a_model_of_somebody_else_has_no_name_there(tmp_path: Path) -> None:
    class Mine(Llama):
        """Another forward pass."""

    with pytest.raises(FolderError, match="Mine is no model of the zoo"):
        write_folder(Mine(Llama.Config()), tmp_path / "out", BYTES.to_json(), "# card")
