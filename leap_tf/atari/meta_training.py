"""Trains a study of games into its run directory."""

from leap_tf.atari.study import AtariStudy
from leap_tf.experiments.run_directory import RunDirectory, replacing
from leap_tf.training import CollapseWarning, MetricsLog, TensorBoardLog


def atari_meta_train(
    study: AtariStudy,
    run: RunDirectory,
    meta_steps: int = 100,
    checkpoint_seconds: float = 30.0,
    verbose: bool = True,
) -> None:
    """Meta-trains, or goes on with it, and leaves the learned encoder in the folder.

    It is there as `initialization.keras`, and as a SavedModel in `encoder/`.

    Args:
        study: what to train.
        run: the run's folder.
        meta_steps: meta-updates to have made in the end; 0 leaves the fresh encoder.
        checkpoint_seconds: least time between two checkpoints.
        verbose: whether to show progress.
    """
    trainer = study.trainer
    trainer.fit(
        study.games,
        meta_steps,
        callbacks=[
            MetricsLog(run.metrics),
            TensorBoardLog(run.tensorboard),
            CollapseWarning(),
        ],
        checkpoint_dir=run.checkpoints,
        checkpoint_seconds=checkpoint_seconds,
        verbose=verbose,
    )
    if trainer.was_stopped:
        return
    run.save_learner(trainer.learner_variables)
    trainer.model.export(run.path / "encoder", format="tf_saved_model", verbose=False)
    with replacing(run.initialization) as partial:  # last: it says that training is over
        trainer.model.save(partial)
