"""The folder in which a training keeps its last few checkpoints, beside what others keep there."""

import logging
import pathlib
import re
import shutil

from leap_tf.training.checkpoint import (
    CheckpointMismatchError,
    CheckpointUnreadableError,
    TrainingState,
)

_LOGGER = logging.getLogger("leap_tf")

# The files of a checkpoint, and what TensorFlow leaves of one when it is killed. A folder may hold
# files of others, which are never touched.
_INDEX = re.compile(r"step-\d{8,}\.index")
_OWN_FILE = re.compile(r"(step-\d{8,})\.(index|data-\d{5}-of-\d{5})(\.tempstate\d+)?")
_OWN_FOLDER = re.compile(r"step-\d{8,}_temp")


class CheckpointFolder:
    """The last few checkpoints of a run, and how to get back to the newest good one.

    Args:
        folder: where they are; made when the first one is written.
        keep: how many are kept.
    """

    def __init__(self, folder: str | pathlib.Path, keep: int = 3):
        self.path = pathlib.Path(folder).resolve()
        self._keep = keep

    def save(self, state: TrainingState) -> None:
        """Writes a checkpoint of the present meta-step and removes the oldest ones.

        The index is what makes a checkpoint count, and TensorFlow renames it into place
        last: a process killed while saving leaves the earlier checkpoints as they were.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        state.save(self.path / f"step-{state.progress.meta_step:08d}")
        self._remove_all_but({path.name for path in self._newest_first()[: self._keep]})

    def _remove_all_but(self, kept):
        """Removes older checkpoints, and what a process killed while saving has left."""
        for path in self.path.glob("step-*"):
            own = _OWN_FILE.fullmatch(path.name)
            if own and (own[1] not in kept or own[3]) and path.is_file():
                path.unlink()
            elif _OWN_FOLDER.fullmatch(path.name) and path.is_dir():
                shutil.rmtree(path)

    @property
    def newest_step(self) -> int:
        """The meta-step of the newest checkpoint, 0 if there is none."""
        newest = self._newest_first()[:1]
        return _step_of(newest[0]) if newest else 0

    def restore(self, state: TrainingState) -> bool:
        """Restores the newest readable checkpoint; says so if a newer one is damaged.

        Returns:
            Whether there was any checkpoint.

        Raises:
            CheckpointMismatchError: the checkpoint is of another run.
            CheckpointUnreadableError: there are checkpoints, and none can be read.
        """
        candidates = self._newest_first()
        for path in candidates:
            try:
                state.load(path)
            except CheckpointUnreadableError as error:
                _LOGGER.warning("%s Falling back to the checkpoint before it.", error)
                continue
            return True
        if candidates:
            raise CheckpointUnreadableError(
                f"None of the {len(candidates)} checkpoints in {self.path} can be read. Start "
                "again in another directory; nothing has been overwritten."
            )
        return False

    def go_on(self, state: TrainingState, from_here: bool) -> bool:
        """Restores what is here if the training is at its start, and else refuses what is ahead.

        Args:
            state: of the training.
            from_here: whether the training has come from this folder, or has been here before.

        Returns:
            Whether there was anything to restore.

        Raises:
            CheckpointMismatchError: the training cannot go on in this folder.
            CheckpointUnreadableError: as for `restore`.
        """
        reached, newest = state.progress.meta_step, self.newest_step
        if not reached:
            return self.restore(state)
        if newest > reached or (newest and not from_here):
            raise CheckpointMismatchError(
                f"The folder holds a checkpoint of meta-step {newest}, and this trainer is at "
                f"{reached}, which it did not reach from there. Give another checkpoint_dir, or a "
                "new trainer to go on from the folder."
            )
        return False

    def _newest_first(self):
        found = (index for index in self.path.glob("step-*.index") if _INDEX.fullmatch(index.name))
        return [index.with_suffix("") for index in sorted(found, key=_step_of, reverse=True)]


def _step_of(path):
    return int(path.stem.removeprefix("step-"))
