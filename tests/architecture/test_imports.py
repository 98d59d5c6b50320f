"""Who imports whom: the contracts of pyproject.toml, and what a slim import does not load."""

import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import BaseModel

import elastic
from elastic import registry

ROOT = Path(__file__).parents[2]
HEAVY = (
    "torch",
    "numpy",
    "tokenizers",
    "safetensors",
    "transformers",
    "ray",
    "hivemind",
    "bittensor",
    "bittensor_core",
    "websockets",
    "obstore",
    "nicegui",
    "uvicorn",
    "lm_eval",
    "datasets",
    "opentelemetry.sdk",
    "opentelemetry.exporter",
    "prometheus_client",
    "incentives",
    "model_zoo",
)
OPTIONAL = (
    "bittensor", "bittensor_core", "websockets", "obstore", "nicegui", "fastapi", "starlette", "uvicorn", "lm_eval",
    "datasets",
)  # fmt: skip
"""Extras that the test machine need not have."""
WALLED_IN = {
    "bittensor": ("incentives/subnet/chain.py",),
    "bittensor_core": ("incentives/devnet/",),
    "websockets": ("incentives/devnet/",),
    "opentelemetry.sdk.metrics": ("elastic/metrics_export.py",),
    "prometheus_client": ("elastic/metrics_export.py",),
    "nicegui": ("elastic/look/dashboard.py",),
    "obstore": ("elastic/exchange/bucket/store.py", "elastic/data/bucket.py"),
    "pyarrow": ("model_zoo/documents.py",),
    "safetensors": ("model_zoo/hugging_face.py",),
    "lm_eval": ("elastic/evals/harness.py",),
    "datasets": ("elastic/evals/harness.py",),
    "transformers": (
        "elastic/models/card.py",  # in the text of a model card
        "elastic/bench/decoders.py",
    ),
}
"""Library → the only sources that import it, by how their paths begin."""
PUBLIC: set[str] = set()
"""What `import elastic` offers beside its modules and its version."""


def python(code: str) -> str:
    """Run in a fresh interpreter; gives its stdout."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_import_contracts_are_kept() -> None:
    out = python("from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))")
    assert "0 broken" in out


@pytest.mark.parametrize(
    "imported",
    [
        "elastic",
        "elastic.contracts, elastic.config, elastic.messages, elastic.errors, elastic.registry, elastic.trace",
        "elastic.metrics",
        "elastic.cli, elastic.check, elastic.view",
        "elastic.look.commands, elastic.look.collect, elastic.look.html.page, elastic.look.top",
        "elastic.plan.commands, elastic.plan.view, elastic.plan.figures, elastic.plan.simulate",
        "elastic.models.commands, elastic.evals.tasks",
        "elastic.data.commands",
        "elastic.actors.environment, elastic.actors.journal, elastic.actors.mailbox, elastic.actors.measuring",
        "incentives.uniform, incentives.reputation, incentives.subnet.backend",
    ],
)
def test_a_slim_import_loads_nothing_heavy(imported: str) -> None:
    loaded = python(f"import sys, {imported}; print(*sys.modules)").split()
    heavy = [name for name in HEAVY if name in loaded and not imported.startswith(name)]
    assert heavy == []


@pytest.mark.parametrize("library", WALLED_IN)
def test_a_library_is_imported_only_where_it_is_walled_in(library: str) -> None:
    importing = re.compile(rf"^\s*(import|from) {library}\b", re.MULTILINE)
    for package in ("elastic", "incentives", "model_zoo"):
        for path in (ROOT / package).rglob("*.py"):
            if not path.relative_to(ROOT).as_posix().startswith(WALLED_IN[library]):
                assert not importing.search(path.read_text(encoding="utf-8")), path


def test_importing_starts_nothing() -> None:
    code = """
import logging, os, threading
before = dict(os.environ)
import elastic.cli, elastic.actors.environment, elastic.trace
assert dict(os.environ) == before, "the environment was changed"
assert threading.active_count() == 1, threading.enumerate()
assert not logging.getLogger().handlers and not logging.getLogger("elastic").handlers, "logging was set up"
"""
    python(code)


def test_the_public_names_of_elastic() -> None:
    names = {
        name for name, value in vars(elastic).items() if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert names == PUBLIC
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert elastic.__version__ == project["version"]


@pytest.mark.parametrize(
    ("slot", "name"), [(slot, name) for slot, names in registry.KNOWN.items() for name in names], ids=str
)
def test_every_registered_name_is_a_class_with_settings_of_its_own(slot: str, name: str) -> None:
    if name == "bucket":
        pytest.importorskip("obstore")
    cls = registry.load(registry.KNOWN[slot][name])
    assert inspect.isclass(cls)
    assert issubclass(cls.Config, BaseModel)
    assert cls.Config.__qualname__ == f"{cls.__name__}.Config"
    assert cls.__doc__


@pytest.mark.parametrize(
    "target",
    [
        registry.CORPUS, registry.READ_CORPUS, registry.WRITE_FOLDER, registry.OPEN_FOLDER, registry.PREPARE,
        registry.PREPARE_SETTINGS, registry.READING, registry.KIND_OF, registry.OPEN_PIECES, registry.READ_INDEX,
        registry.OPEN_PREPARED, registry.VERIFY_PREPARED, registry.ROW,
    ],
)  # fmt: skip
def test_every_other_registered_target_is_there(target: str) -> None:
    assert callable(registry.load(target))


def test_every_module_can_be_imported_and_says_what_it_is_for() -> None:
    for package in ("elastic", "incentives", "model_zoo"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if path.name == "__main__.py":
                continue
            parts = path.relative_to(ROOT).with_suffix("").parts
            try:
                module = importlib.import_module(".".join(parts).removesuffix(".__init__"))
            except ModuleNotFoundError as error:
                if error.name in OPTIONAL:
                    continue
                raise
            assert (module.__doc__ or "").strip(), path
