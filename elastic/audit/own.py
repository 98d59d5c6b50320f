"""Which incentive a run had: that of its run file, or what it agreed on later."""

from __future__ import annotations

from pathlib import Path

from elastic.audit.evidence import Witness, run_file_beside
from elastic.config import RunConfig, load_config
from elastic.errors import ConfigError, MalformedError
from elastic.sections import PluginChoice
from elastic.terms import standing

WHAT_ELSE = "`elastic incentives compare` and `export` take another incentive after --with"


def own_incentive(where: Path, witness: Witness, run_file: Path | None) -> PluginChoice:
    """The last one, as far as the run file's peer and this witness know.

    Args:
        where: the folder that the witness was found in.
        witness: whose evidence it is.
        run_file: None: the one that lies there.

    Raises:
        ConfigError: there is no run file, or one of another run, or with another incentive than the run began with.
        StateError: the chain of manifests there is damaged.
    """
    beside = run_file_beside(where)
    path = run_file or beside
    if path is None:
        raise ConfigError(f"{where}: no run file there: say which it is with --run-file")
    config = load_config(path)
    if config.shared.run != witness.run:
        raise ConfigError(
            f'{where}: what was written down there is of the run "{witness.run}", and {path} is the run file of '
            f'"{config.shared.run}": say --run-file with that of "{witness.run}"'
        )
    if beside is not None and beside != path:
        _check_same(config, path, beside)
    folders = {config.local.state_dir, witness.folder or config.local.state_dir}
    try:
        newest = max((standing(config, folder) for folder in sorted(folders)), key=lambda each: each.amended)
    except MalformedError as error:
        raise ConfigError(
            f"{where}: the manifests there are not of the run that {path} describes ({error}): say --run-file with the "
            "run file that its peers had"
        ) from error
    return PluginChoice.from_canonical(newest.terms.incentive)


def _check_same(config: RunConfig, path: Path, beside: Path) -> None:
    """Whether the run file that was given has the incentive of the one that lies there."""
    there = load_config(beside).shared
    if there.run == config.shared.run and there.incentive != config.shared.incentive:
        names = config.shared.incentive.name, there.incentive.name
        how = f'"{names[0]}", is not "{names[1]}"' if names[0] != names[1] else f'"{names[0]}", has other settings than'
        raise ConfigError(
            f"{path}: its [shared.incentive], {how} in {beside}, with which the run was made: leave --run-file out; "
            f"{WHAT_ELSE}"
        )
