"""Trains a study into its run directory."""

import json

import keras

from leap_tf.experiments.plots import plot_learning_curve
from leap_tf.experiments.run_directory import RunDirectory, replacing, write_atomically
from leap_tf.experiments.study import Study
from leap_tf.training import CollapseWarning, MetricsLog, TensorBoardLog, read_metrics


def meta_train(
    study: Study,
    run: RunDirectory,
    meta_steps: int = 100,
    validation_freq: int = 10,
    validation_steps: int | None = None,
    patience: int | None = None,
    monitor: str = "val_error",
    checkpoint_seconds: float = 30.0,
    verbose: bool = True,
) -> None:
    """Meta-trains, or goes on with it, and leaves the learned initialization in the folder.

    Args:
        study: what to train.
        run: the run's folder.
        meta_steps: meta-updates to have made in the end; 0 leaves the fresh initialization.
        validation_freq: meta-steps from one validation to the next.
        validation_steps: gradient steps on a validation task; the trainer's number by default.
        patience: validations without a lower `monitor` after which training stops and the best
            initialization is taken; None trains to the end and takes the last.
        monitor: the validation metric that `patience` looks at, lower being better. The paper's
            runs of Omniglot use "val_training_error".
        checkpoint_seconds: least time between two checkpoints.
        verbose: whether to show progress.
    """
    trainer = study.trainer
    callbacks: list[keras.callbacks.Callback] = [
        MetricsLog(run.metrics),
        TensorBoardLog(run.tensorboard),
        CollapseWarning(),
    ]
    early_stopping = None
    if patience is not None:
        early_stopping = keras.callbacks.EarlyStopping(
            monitor, mode="min", patience=patience, restore_best_weights=True
        )
        callbacks.append(early_stopping)
    trainer.fit(
        study.tasks.train,
        meta_steps,
        validation_tasks=study.tasks.validation,
        callbacks=callbacks,
        validation_freq=validation_freq,
        validation_steps=validation_steps,
        checkpoint_dir=run.checkpoints,
        checkpoint_seconds=checkpoint_seconds,
        verbose=verbose,
    )
    if trainer.was_stopped:
        return
    meta_step = trainer.meta_step
    if early_stopping and early_stopping.best_weights is not None:
        meta_step = early_stopping.best_epoch + 1
    write_atomically(run.origin, json.dumps({"meta_step": meta_step}) + "\n")
    run.save_learner(trainer.learner_variables)
    with replacing(run.initialization) as partial:
        trainer.model.save(partial)
    if trainer.meta_step:
        with replacing(run.plots / "learning_curve.png") as partial:
            plot_learning_curve(read_metrics(run.metrics), partial)
