"""Going on from a checkpoint with other or more data (`start_from`): what a run takes over, and what starts anew.

Kept are all networks with their input statistics, the optimisers, the count of gradient steps, and what rewards are
multiplied by. The dynamics model is trained further from its weights, unless the data are the same. Model buffer,
metrics and iterations start anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.fs
from ray.rllib.core import COMPONENT_LEARNER_GROUP
from ray.rllib.core.learner.learner_group import LearnerGroup

from rllib_damo.errors import CheckpointError
from rllib_damo.evaluation.checkpoints import STATES, read_pickle, verify
from rllib_damo.utils.paths import place_of


@dataclass(frozen=True)
class Start:
    """A checkpoint that a run goes on from.

    Attributes:
        name: what the user gave.
        training: what the checkpoint holds of its algorithm, beside networks and optimisers.
    """

    name: str
    filesystem: pyarrow.fs.FileSystem
    path: str
    training: Mapping[str, Any]

    @classmethod
    def read(cls, name: str, component: str) -> Start:
        """Reads a checkpoint's own state. Pickles are executed: read only checkpoints that you trust.

        Args:
            name: the folder or the address of a checkpoint.
            component: where its state has what is wanted.

        Raises:
            CheckpointError: no checkpoint of this package's algorithms, or a damaged one.
        """
        filesystem, path = place_of(name)
        verify(path, filesystem)
        state = read_pickle(f"{path}/{STATES[0]}", filesystem)
        if component not in state:
            raise CheckpointError(f"start_from {name}: not a checkpoint of an algorithm of this package.")
        return cls(name, filesystem, path, state[component])

    def restore_learners(self, group: LearnerGroup) -> None:
        """Sets networks and optimisers.

        Raises:
            CheckpointError: they are of other sizes.
        """
        try:
            group.restore_from_path(f"{self.path}/{COMPONENT_LEARNER_GROUP}", filesystem=self.filesystem)
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"start_from {self.name}: its networks do not fit this configuration. Give the same spaces and the "
                f"same options of networks as there. ({str(error).strip().splitlines()[0]})"
            ) from error
