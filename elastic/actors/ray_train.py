"""Ray Train with its private parts exchanged: it starts faster, and a dead life of it holds no CPUs.

Verified with Ray 2.60 only: private methods are overridden here, and `tests/actors` holds them to that version.
"""

import os
from typing import Any

import ray
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy, ResizeDecision
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.execution.worker_group.placement_group_handle import DefaultPlacementGroupHandle
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group


class OwnCluster(FixedScalingPolicy):  # type: ignore[misc]
    """As many workers as configured, or as the cluster still has room for.

    It does not ask the AutoscalingCoordinator, a detached actor that outlives us.
    """

    def __init__(self, scaling_config: Any, owner: str) -> None:
        super().__init__(scaling_config=scaling_config)
        self._owner = owner

    def after_controller_start(self, train_run_context: Any) -> None:
        """Nothing to register; but this is the first that runs of us in the controller's process."""
        OwnedGroup.owner = self._owner
        TrainController.worker_group_cls = OwnedGroup

    def make_decision_for_non_running_worker_group(self) -> ResizeDecision:
        """Before each start: a machine that was lost is not waited for, the others share its work."""
        each = self.scaling_config._resources_per_worker_not_none
        return ResizeDecision(room_for(self.scaling_config.num_workers, each, ray.cluster_resources()), each)

    def _maybe_send_resource_request(self) -> None:
        """Nothing to request."""


def room_for(wanted: int, each: dict[str, float], there_is: dict[str, float]) -> int:
    """Workers to start: `wanted`, or as many as all that there is would do for, and one at least.

    What others of the cluster use is not looked at: what a group that ended has just freed still counts as used.
    """
    most = [int(there_is.get(kind, 0.0) / amount + 1e-6) for kind, amount in each.items() if amount]
    return max(1, min([wanted, *most]))


class OwnedGroup(WorkerGroup):  # type: ignore[misc]
    """Workers whose placement group says whose it is, so that `sweep` finds it when the controller is dead."""

    owner = ""

    def _create_placement_group(self, scaling_config: Any, worker_group_context: Any) -> Any:
        return DefaultPlacementGroupHandle(
            placement_group(
                bundles=[worker_group_context.resources_per_worker] * worker_group_context.num_workers,
                strategy=worker_group_context.placement_strategy,
                bundle_label_selector=worker_group_context.label_selector,
                name=f"{self.owner}/{os.urandom(8).hex()}",
            )
        )


class LeanTorchTrainer(TorchTrainer):  # type: ignore[misc]
    """Without the parts that start detached actors or need the dashboard: seconds at start, noise in the log."""

    _DROP = frozenset({"PlacementGroupCleanerCallback", "DatasetsCallback"})

    def __init__(self, *args: Any, owner: str, **kwargs: Any) -> None:
        """Like a TorchTrainer.

        Args:
            args: of TorchTrainer.
            owner: what `sweep` will be asked for.
            kwargs: of TorchTrainer.
        """
        super().__init__(*args, **kwargs)
        self._owner = owner

    def _create_default_callbacks(self) -> list[Any]:
        return [each for each in super()._create_default_callbacks() if type(each).__name__ not in self._DROP]

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        policy = OwnCluster(self.scaling_config, self._owner)
        return super()._initialize_and_run_controller(**{**parts, "scaling_policy": policy})


def sweep(owner: str) -> None:
    """Free what a killed controller had reserved: Ray gives it back only when the whole job ends.

    Workers that are left in it are killed.
    """
    for id_, entry in ray.util.placement_group_table().items():
        if entry["name"].startswith(f"{owner}/") and entry["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(id_))))
