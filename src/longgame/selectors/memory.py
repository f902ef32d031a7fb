"""First in, first out: the latest sketches of selected examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from longgame.errors import PluginError, ResumeError
from longgame.selectors.distance import mean_distance


class SketchBuffer:
    """The last ``size`` sketches pushed (UDS keeps 1024), in float64 so that distances need no conversion."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._ring: Float[np.ndarray, "size d"] = np.zeros((0, 0))
        self._pushed = 0

    def __len__(self) -> int:
        return min(self._pushed, self.size)

    def push(self, sketches: Float[np.ndarray, "k d"]) -> None:
        """Append k sketches; the oldest leave.

        Raises:
            PluginError: their width is not that of the sketches before.
        """
        if not len(sketches):
            return
        if not self._pushed:
            self._ring = np.zeros((self.size, sketches.shape[1]))
        if sketches.shape[1] != self._ring.shape[1]:
            raise PluginError(
                f"a logit sketch of width {sketches.shape[1]} came after ones of width {self._ring.shape[1]}; "
                "keep the sketch size fixed through a run."
            )
        skipped = max(0, len(sketches) - self.size)
        places = (self._pushed + np.arange(skipped, len(sketches))) % self.size
        self._ring[places] = sketches[skipped:]
        self._pushed += len(sketches)

    def mean_distance(self, sketches: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
        """Mean L2 distance of each sketch to those in the buffer; zero for every one while the buffer is empty."""
        return mean_distance(sketches, self._ring[: len(self)])

    def state_dict(self) -> dict[str, Any]:
        """The sketches (float32, as they came), in ring order, and how many were pushed."""
        return {"sketches": self._ring[: len(self)].astype(np.float32), "pushed": self._pushed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` returned.

        Raises:
            ResumeError: the state was saved by a buffer of another size.
        """
        saved, pushed = np.asarray(state["sketches"]), int(state["pushed"])
        if len(saved) != min(pushed, self.size):
            raise ResumeError(
                f"the saved buffer holds {len(saved)} of {pushed} sketches but buffer_size is {self.size}; "
                "resume with the setting the run was started with."
            )
        self._ring = np.zeros((self.size if pushed else 0, saved.shape[1]))
        self._ring[: len(saved)] = saved
        self._pushed = pushed
