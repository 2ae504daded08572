"""HAT and Progressive Nets: the contract of all learners, and the definition of each."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from leap_tf.learners import HAT, HardAttentionModel, ProgressiveNets, progressive_columns
from leap_tf.learners.hat import attention, gated_gradient
from leap_tf.learners.sequential import split_into_blocks
from leap_tf.models import conv_net
from leap_tf.tasks import ArrayTask, FiniteTasks
from leap_tf.training import MetaTrainer, StopOnPlateau
from tests.learner_contract import CROSS_ENTROPY, LearnerContract, blobs, small_model


class SequentialContract(LearnerContract):
    task_layers = ("head",)
    meta_rate = 1.0
    meta_batch_size = 1

    def test_weight_decay_and_other_meta_optimizers_are_refused(self):
        for meta, inner in (
            (keras.optimizers.SGD(0.5), keras.optimizers.SGD(0.1)),
            (keras.optimizers.Adam(1.0), keras.optimizers.SGD(0.1)),
            (keras.optimizers.SGD(1.0, global_clipnorm=1.0), keras.optimizers.SGD(0.1)),
            (keras.optimizers.SGD(1.0, weight_decay=0.1), keras.optimizers.SGD(0.1)),
            (keras.optimizers.SGD(1.0), keras.optimizers.SGD(0.1, weight_decay=0.1)),
        ):
            with pytest.raises(ValueError, match=r"SGD\(1.0\)|weight_decay"):
                MetaTrainer(
                    small_model(),
                    CROSS_ENTROPY,
                    inner,
                    meta,
                    learner=self.learner(),
                    meta_batch_size=1,
                    task_layers=("head",),
                )

    def test_a_meta_step_has_one_task(self):
        with pytest.raises(ValueError, match="Set meta_batch_size to 1"):
            MetaTrainer(
                small_model(),
                CROSS_ENTROPY,
                keras.optimizers.SGD(0.1),
                keras.optimizers.SGD(1.0),
                learner=self.learner(),
                meta_batch_size=2,
                task_layers=("head",),
            )

    def test_tasks_take_turns(self):
        sampler = self.trainer().problem.sampler
        sampler.use_distribution(self.tasks())
        specs = [spec for step in range(8) for spec in sampler.training_specs(step)]
        assert [sampler.resolve(spec).number for spec in specs] == [0, 1, 2, 3, 4, 5, 0, 1]

    def test_evaluation_tasks_have_the_number_after_all_training_tasks(self):
        plan = self.trainer().problem.plan
        assert plan.evaluation_task(blobs(9)).number == self.learner().tasks

    def test_a_saved_model_gives_the_same_outputs(self, tmp_path):
        trainer = self.trainer()
        trainer.fit(self.tasks(), 2, verbose=False)
        trainer.model.save(tmp_path / "model.keras")
        read = keras.saving.load_model(tmp_path / "model.keras")
        for a, b in zip(trainer.model.get_weights(), read.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
        task = trainer.problem.plan.evaluation_task(blobs(3))
        (inputs, _), *_ = task.test_batches()
        np.testing.assert_allclose(trainer.model(inputs), read(inputs), rtol=1e-6)


class TestHAT(SequentialContract):
    def learner(self):
        return HAT(tasks=6, steps_per_epoch=4)


class TestProgressiveNets(SequentialContract):
    def learner(self):
        return ProgressiveNets(tasks=6)


def sequential_trainer(learner, model=None, steps=4):
    return MetaTrainer(
        model or small_model(),
        CROSS_ENTROPY,
        keras.optimizers.SGD(0.1),
        keras.optimizers.SGD(1.0),
        learner=learner,
        steps_per_task=steps,
        meta_batch_size=1,
        task_layers=("head",),
    )


@pytest.mark.parametrize("learner", [HAT(tasks=6, steps_per_epoch=4), ProgressiveNets(tasks=6)])
def test_bfloat16_is_near_float32(learner):
    errors = []
    for policy in ("float32", "mixed_bfloat16"):
        keras.mixed_precision.set_dtype_policy(policy)
        try:
            keras.utils.set_random_seed(0)
            trainer = sequential_trainer(learner)
        finally:
            keras.mixed_precision.set_dtype_policy("float32")
        history = trainer.fit(TestHAT().tasks(), 3, verbose=False).history
        errors.append(history["final_loss"])
    np.testing.assert_allclose(*errors, rtol=0.1)


# -- HAT ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1 / 400, 0.3, 1.0, 20.0])
@pytest.mark.parametrize("embedding", [-1.7, 0.0, 0.4, 2.0])
def test_the_compensated_gradient_is_that_of_the_paper(scale, embedding):
    """s_max/s (cosh(s e) + 1)/(cosh(e) + 1) times the true gradient, in float64."""
    value = tf.constant([embedding], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(value)
        gate = attention(value, tf.constant(scale, tf.float64), 400.0)
    sigmoid = 1 / (1 + np.exp(-scale * embedding))
    true = scale * sigmoid / (1 + np.exp(scale * embedding))
    compensation = 400 / scale * (np.cosh(scale * embedding) + 1) / (np.cosh(embedding) + 1)
    np.testing.assert_allclose(gate, [sigmoid], rtol=1e-12)
    np.testing.assert_allclose(tape.gradient(gate, value), [true * compensation], rtol=1e-9)


def test_the_compensation_stays_finite_where_attention_is_saturated():
    value = tf.constant([-6.0, 0.2, 6.0])
    with tf.GradientTape() as tape:
        tape.watch(value)
        gate = attention(value, tf.constant(400.0), 400.0)
    gradient = tape.gradient(gate, value).numpy()
    slope = 1 / (1 + np.exp(-0.2)) / (1 + np.exp(0.2))
    assert gradient[0] == gradient[2] == 0.0  # |s e| = 2,400, far beyond 50
    np.testing.assert_allclose(gradient[1], 400 * slope * np.exp(50.0 - 80.0), rtol=1e-4)


def test_gated_gradients_leave_the_value_to_the_bit():
    value = tf.constant([0.1, 0.7, -3.3])
    with tf.GradientTape() as tape:
        tape.watch(value)
        gated = gated_gradient(value, tf.constant([0.0, 0.3, 1.0]))
    np.testing.assert_array_equal(gated, value)
    np.testing.assert_allclose(tape.gradient(gated, value), [0.0, 0.3, 1.0])


def hard_attention_model(**options):
    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Dense(8, activation="tanh", name="first"),
        keras.layers.Dense(6, activation="tanh", name="second"),
        keras.layers.Dense(3, name="head"),
    ]
    original = keras.Sequential([keras.layers.Input((4,)), *layers])
    return HardAttentionModel(original, "head", tasks=3, **options)


def attend(model, task, *units):
    """Makes a task attend to these units of each block only, and marks it as trained."""
    for bank, attended in zip(model.embeddings, units, strict=True):
        embeddings = bank.numpy()
        # ±6 saturate: σ(400·6) is 1 in float32, σ(−400·6) is 0.
        embeddings[task] = np.where(np.isin(np.arange(bank.shape[1]), attended), 6.0, -6.0)
        bank.assign(embeddings)
    visited = model.trained.numpy()
    visited[task] = 1.0
    model.trained.assign(visited)


def batch(task, rows=5, progress=1.0):
    points = np.random.default_rng(task).normal(size=(rows, 4)).astype("float32")
    return [
        points,
        np.full(rows, task, "int32"),
        np.full(rows, 3, "int32"),
        np.full(rows, progress, "float32"),
    ]


def test_weights_between_units_of_another_task_have_no_gradient():
    """1 − min(Aₗᵢ, Aₗ₋₁ⱼ) on kernels and 1 − Aₗᵢ on biases, by hand."""
    model = hard_attention_model(penalty=0.0)
    attend(model, 1, [0, 3], [2, 5])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(batch(0, progress=0.0), training=True) ** 2)
    kernels = {"/".join(v.path.split("/")[-2:]): v for v in model.trainable_variables}
    gradients = dict(zip(kernels, tape.gradient(loss, [v.value for v in kernels.values()])))
    taken_columns = np.isin(np.arange(8), [0, 3])
    np.testing.assert_array_equal(np.any(gradients["first/kernel"] != 0, axis=0), ~taken_columns)
    np.testing.assert_array_equal(gradients["first/bias"] != 0, ~taken_columns)
    protected = np.outer(taken_columns, np.isin(np.arange(6), [2, 5]))
    np.testing.assert_array_equal(gradients["second/kernel"] != 0, ~protected)


def test_a_task_is_not_protected_from_itself():
    model = hard_attention_model(penalty=0.0)
    for task in range(3):
        attend(model, task, [task], [])
    for task, expected in ((0, [0, 1, 1]), (1, [1, 0, 1]), (2, [1, 1, 0])):
        taken, _ = model.reserved_by_others(tf.constant(task))
        np.testing.assert_array_equal(taken[:3], expected)


def test_attention_of_a_task_protects_from_its_first_run_on_as_it_is_after_the_last_step():
    trainer = TestHAT().trainer()
    trainer.fit(TestHAT().tasks(), 1, verbose=False)
    model = trainer.model
    np.testing.assert_array_equal(model.trained, np.eye(7)[0])
    taken = model.reserved_by_others(tf.constant(1))[0]
    np.testing.assert_array_equal(taken, tf.sigmoid(400.0 * model.embeddings[0][0]))


def test_the_penalty_counts_attention_to_free_units():
    model = hard_attention_model(penalty=0.5)
    for bank in model.embeddings:
        bank.assign(np.zeros(bank.shape))  # a = 1/2 everywhere
    attend(model, 1, range(8), [])  # task 1 took the whole first block
    model(batch(0, progress=1.0), training=True)
    np.testing.assert_allclose(model.losses, [0.5 * (6 * 0.5) / 6])
    np.testing.assert_array_equal(model.trained, [1.0, 1.0, 0.0])


def test_the_scale_rises_within_an_epoch():
    model = hard_attention_model()
    embedding = model.embeddings[1][0].numpy()
    for progress, scale in ((0.0, 1 / 400), (0.5, 1 / 800 + 200), (1.0, 400.0)):
        features = keras.ops.tanh(
            keras.ops.matmul(
                keras.ops.tanh(keras.ops.matmul(batch(0)[0], model.blocks[0][0].kernel))
                / (1 + np.exp(-scale * model.embeddings[0][0].numpy())),
                model.blocks[1][0].kernel,
            )
        ) / (1 + np.exp(-scale * embedding))
        expected = features @ model.heads.kernel[0]
        actual = model(batch(0, progress=progress), training=True)
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_a_later_task_does_not_change_the_outputs_of_an_earlier_one():
    """To the bit, with saturated attention and normalization, while the later task does learn."""
    keras.utils.set_random_seed(0)
    network = conv_net((8, 8, 1), classes=3, filters=8, blocks=2)
    trainer = sequential_trainer(HAT(tasks=2, steps_per_epoch=10), network, steps=20)
    model = trainer.model
    for bank in model.embeddings:  # ±6 saturate: σ(400·6) is 1 in float32, σ(−400·6) is 0
        bank.assign(np.where(np.arange(8) % 2, 6.0, -6.0)[np.newaxis] * [[1.0], [-1.0], [1.0]])
    rng = np.random.default_rng(0)

    def images(number):
        labels = np.tile(np.arange(3), 10)
        part = rng.normal(size=(30, 8, 8, 1)).astype("float32") + labels[:, None, None, None]
        return ArrayTask(f"images {number}", (part, labels), (part, labels), batch_size=10)

    tasks = FiniteTasks([images(0), images(1)])
    trainer.fit(tasks, 1, verbose=False)
    (inputs, _), *_ = trainer.learner.numbered_task(0, tasks.tasks[0]).test_batches()
    # in training mode, so that the batch's own statistics normalize
    before = model(inputs, training=True).numpy()
    kernel = model.blocks[1][0].kernel.numpy()
    history = trainer.fit(tasks, 2, verbose=False).history
    assert history["final_loss"][-1] < history["loss"][-1]
    assert not np.array_equal(kernel, model.blocks[1][0].kernel.numpy())
    np.testing.assert_array_equal(before, model(inputs, training=True).numpy())


def flattened_network():
    """Returns a network that flattens units of a convolution to positions times units."""
    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Conv2D(4, 3, name="first"),
        keras.layers.ReLU(name="relu"),
        keras.layers.Flatten(name="flatten"),
        keras.layers.Dense(6, activation="sigmoid", name="second"),
        keras.layers.Dense(3, name="head"),
    ]
    return keras.Sequential([keras.layers.Input((4, 4, 1)), *layers])


def small_images(number):
    rng = np.random.default_rng(number)
    labels = np.tile(np.arange(3), 10)
    values = rng.normal(size=(30, 4, 4, 1)).astype("float32") + labels[:, None, None, None]
    return ArrayTask(f"images {number}", (values, labels), (values, labels), batch_size=10)


def test_weights_behind_flattening_are_protected_by_unit_at_every_position():
    model = HardAttentionModel(flattened_network(), "head", tasks=3, penalty=0.0)
    attend(model, 1, [0, 3], [2, 5])
    inputs = next(iter(HAT(steps_per_epoch=2).numbered_task(0, small_images(0)).train_batches(0)))[
        0
    ]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(inputs, training=True) ** 2)
    gradient = tape.gradient(loss, model.blocks[1][0].kernel.value).numpy()
    protected = np.outer(np.isin(np.arange(16) % 4, [0, 3]), np.isin(np.arange(6), [2, 5]))
    np.testing.assert_array_equal(gradient == 0, protected)


def test_flattening_does_not_let_a_later_task_change_the_outputs_of_an_earlier_one():
    trainer = sequential_trainer(HAT(tasks=2, steps_per_epoch=10), flattened_network(), steps=20)
    model = trainer.model
    attend(model, 0, [0, 1], [0, 1, 2])
    attend(model, 1, [2, 3], [3, 4, 5])
    model.trained.assign(np.zeros(3))
    tasks = FiniteTasks([small_images(0), small_images(1)])
    trainer.fit(tasks, 1, verbose=False)
    (inputs, _), *_ = trainer.learner.numbered_task(0, tasks.tasks[0]).test_batches()
    before, kernel = model(inputs).numpy(), model.blocks[1][0].kernel.numpy()
    trainer.fit(tasks, 2, verbose=False)
    assert not np.array_equal(kernel, model.blocks[1][0].kernel.numpy())
    np.testing.assert_array_equal(before, model(inputs).numpy())


@pytest.mark.parametrize(
    "mixing",
    [
        keras.layers.LayerNormalization(name="mixing"),
        keras.layers.GroupNormalization(2, name="mixing"),
        keras.layers.UnitNormalization(name="mixing"),
        keras.layers.BatchNormalization(axis=1, name="mixing"),
        keras.layers.Activation("softmax", name="mixing"),
        keras.layers.Softmax(name="mixing"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_that_mix_units_are_refused(mixing):
    layers = [keras.layers.Conv2D(4, 1, name="first"), mixing]
    layers += [keras.layers.Flatten(), keras.layers.Dense(3, name="head")]
    original = keras.Sequential([keras.layers.Input((4, 4, 1)), *layers])
    with pytest.raises(ValueError, match="'mixing' is not known to act on each unit by itself"):
        HardAttentionModel(original, "head", tasks=2)


def test_softmax_in_a_layer_with_units_and_weights_behind_flattening_are_refused():
    softmax = [
        keras.layers.Dense(4, activation="softmax", name="first"),
        keras.layers.Dense(3, name="head"),
    ]
    with pytest.raises(ValueError, match="activation of 'first' mixes units"):
        HardAttentionModel(keras.Sequential([keras.layers.Input((4,)), *softmax]), "head", tasks=2)
    normalized = [
        keras.layers.Conv2D(4, 3, name="first"),
        keras.layers.Flatten(),
        keras.layers.BatchNormalization(name="norm"),
        keras.layers.Dense(3, name="head"),
    ]
    with pytest.raises(ValueError, match="'norm' has weights and follows a change of shape"):
        HardAttentionModel(
            keras.Sequential([keras.layers.Input((3, 3, 1)), *normalized]), "head", tasks=2
        )


def test_embeddings_are_clipped_to_where_the_sigmoid_has_a_slope():
    trainer = TestHAT().trainer()
    trainer.model.embeddings[0].assign(trainer.model.embeddings[0] * 100)
    trainer.fit(FiniteTasks([blobs(0)]), 1, verbose=False)
    assert np.abs(trainer.model.embeddings[0].numpy()).max() <= 6.0


def test_arguments_out_of_range_are_refused():
    for options in ({"tasks": 0}, {"steps_per_epoch": 1}, {"largest_scale": 0}, {"penalty": -1}):
        with pytest.raises(ValueError, match="must|at least"):
            HAT(**options)


def test_the_penalty_moves_embeddings_of_free_units_only():
    """λ s_max σ′(e) (1 − A) / Σ(1 − A), by hand; e = 0, so σ′ = 1/4."""
    model = hard_attention_model(penalty=0.5)
    for bank in model.embeddings:
        bank.assign(np.zeros(bank.shape))
    attend(model, 1, [0, 1, 2], [4])
    with tf.GradientTape() as tape:
        model(batch(0, progress=0.5), training=True)
        (penalty,) = model.losses
    gradients = tape.gradient(penalty, [bank.value for bank in model.embeddings])
    for gradient, free in zip(gradients, (np.arange(8) > 2, np.arange(6) != 4), strict=True):
        gradient = tf.convert_to_tensor(gradient).numpy()
        np.testing.assert_allclose(gradient[0], 0.5 * 400 * 0.25 * free / 10, rtol=1e-6)
        np.testing.assert_array_equal(gradient[1:], 0.0)


def test_every_epoch_goes_from_soft_to_hard():
    task = HAT(tasks=6, steps_per_epoch=4).numbered_task(2, blobs(2))
    progress = [float(inputs[-1][0]) for inputs, _ in task.train_batches(seed=0).take(9)]
    np.testing.assert_allclose(progress, [0, 1 / 3, 2 / 3, 1, 0, 1 / 3, 2 / 3, 1, 0], rtol=1e-6)
    assert {float(inputs[-1][0]) for inputs, _ in task.test_batches()} == {1.0}


def test_a_task_that_ends_within_an_epoch_is_refused():
    assert sequential_trainer(HAT(6, steps_per_epoch=3), steps=6).problem.plan.steps == 6
    with pytest.raises(ValueError, match="task of 4 gradient steps ends within an epoch of 3"):
        sequential_trainer(HAT(6, steps_per_epoch=3), steps=4)


def test_stopping_between_the_ends_of_epochs_is_refused():
    """s is far below s_max there, and held-out examples are evaluated with s_max."""
    for every in (1, 6):
        with pytest.raises(ValueError, match=f"every {every} gradient steps.*multiple of"):
            TestHAT().trainer(stopping=StopOnPlateau(every=every))
    trainer = TestHAT().trainer(stopping=StopOnPlateau(every=4))
    trainer.fit(TestHAT().tasks(), 1, verbose=False)


# -- Progressive Nets -----------------------------------------------------------------------


def columns(count=3):
    keras.utils.set_random_seed(0)
    return progressive_columns(conv_net((8, 8, 1), classes=3, filters=4, blocks=2), "head", count)


def images(rows=6):
    values = np.random.default_rng(0).normal(size=(rows, 8, 8, 1)).astype("float32")
    return [values, np.zeros(rows, "int32"), np.full(rows, 3, "int32")]


def test_a_column_trains_itself_and_its_laterals_and_nothing_else():
    first, second, third = columns()
    for number, column in enumerate((first, second, third)):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(column(images(), training=True) ** 2)
        variables = column.trainable_variables
        gradients = tape.gradient(loss, [variable.value for variable in variables])
        for variable, gradient in zip(variables, gradients):
            assert (gradient is not None) == (column_of(variable.path) == number), variable.path
            assert gradient is None or np.any(gradient), variable.path
    laterals = [v.path for v in third.trainable_variables if "adapt_" in v.path]
    assert {path.split("/")[-2] for path in laterals} >= {
        "adapt_conv2_2",
        "adapt_head_2",
    }


def test_the_first_column_is_the_original_model():
    original = conv_net((8, 8, 1), classes=3, filters=4, blocks=2)
    (first,) = progressive_columns(original, "head", 1)
    for target, source in zip(first.weights, original.weights, strict=True):
        target.assign(source)
    np.testing.assert_array_equal(first(images()), original(images()[0]))


def test_columns_and_adapters_start_apart_even_if_the_model_has_seeds():
    def dense(name, seed):
        return keras.layers.Dense(
            4, kernel_initializer=keras.initializers.GlorotUniform(seed), name=name
        )

    layers = [dense("a", 1), dense("b", 2), dense("head", 3)]
    original = keras.Sequential([keras.layers.Input((4,)), *layers])
    first, again = (
        {
            variable.path: variable.numpy()
            for column in progressive_columns(original, "head", 3)
            for variable in column.variables
            if variable.path.split("/")[-2].removeprefix("adapt_")[:-2] in ("a", "b", "head")
            and variable.path.endswith("kernel")
        }
        for _ in range(2)
    )
    assert len(first) == 3 + (3 + 2) + (3 + 2)  # of every column, and of its adapters
    for one, other in itertools.combinations(first.values(), 2):
        assert np.abs(one - other).max() > 0.1
    for path, value in first.items():
        np.testing.assert_array_equal(value, again[path])  # as seeds promise


def test_the_second_column_by_hand():
    """A dense network small enough to write out, laterals included."""
    layers = [
        keras.layers.Dense(3, activation="relu", name="a"),
        keras.layers.Dense(5, activation="relu", name="b"),
        keras.layers.Dense(2, name="head"),
    ]
    original = keras.Sequential([keras.layers.Input((4,)), *layers])
    _, second = progressive_columns(original, "head", 2)
    weight = {v.path: v.numpy() for v in second.variables}

    def dense(values, name):
        found = [path for path in weight if path.split("/")[-2] == name]
        kernel, bias = (
            weight[next(p for p in found if p.endswith(end))] for end in ("kernel", "bias")
        )
        return values @ kernel + bias

    def relu(values):
        return np.maximum(values, 0.0)

    inputs = np.random.default_rng(1).normal(size=(3, 4)).astype("float32")
    a0, a1 = relu(dense(inputs, "a_0")), relu(dense(inputs, "a_1"))
    b0 = relu(dense(a0, "b_0"))
    lateral = dense(relu(dense(0.01 * a0, "project_1_1")), "adapt_b_1")
    b1 = relu(dense(a1, "b_1") + lateral)
    logits = dense(b1, "head_1") + dense(relu(dense(0.01 * b0, "project_head_1")), "adapt_head_1")
    given = [inputs, np.ones(3, "int32"), np.full(3, 2, "int32")]
    np.testing.assert_allclose(second(given), logits, rtol=1e-4, atol=1e-6)


def test_earlier_columns_do_not_move_and_keep_their_statistics():
    keras.utils.set_random_seed(0)
    network = conv_net((8, 8, 1), classes=3, filters=4, blocks=2)
    trainer = sequential_trainer(ProgressiveNets(tasks=2), network, steps=10)
    rng = np.random.default_rng(0)
    labels = np.tile(np.arange(3), 10)
    tasks = [
        ArrayTask(name, (values, labels), (values, labels), batch_size=10)
        for name in ("one", "two")
        for values in [rng.normal(size=(30, 8, 8, 1)).astype("float32")]
    ]
    trainer.fit(FiniteTasks(tasks), 1, verbose=False)
    first = {v.path: v for v in trainer.model.variables if "_0/" in v.path}
    before = {path: variable.numpy() for path, variable in first.items()}
    means = [path for path in first if "moving_mean" in path]
    assert means
    assert all(np.any(before[path]) for path in means)  # training has left its statistics
    moved = {v.path: v.numpy() for v in trainer.problem.meta_variables if "conv1_1" in v.path}
    trainer.fit(FiniteTasks(tasks), 2, verbose=False)
    for path, variable in first.items():
        np.testing.assert_array_equal(before[path], variable.numpy())
    for variable in trainer.problem.meta_variables:
        if variable.path in moved:
            assert np.any(moved[variable.path] != variable.numpy())


@pytest.mark.parametrize("count", [5, 7])
def test_as_many_tasks_as_columns_are_required(count):
    tasks = FiniteTasks([blobs(number) for number in range(count)])
    with pytest.raises(ValueError, match=f"{count} tasks|room for 6"):
        TestProgressiveNets().trainer().fit(tasks, 1, verbose=False)


def test_a_task_of_the_second_round_moves_its_own_column_only():
    trainer = TestProgressiveNets().trainer()
    tasks = TestProgressiveNets().tasks()
    trainer.fit(tasks, 8, verbose=False)
    before = {variable.path: variable.numpy() for variable in trainer.problem.meta_variables}
    trainer.fit(tasks, 9, verbose=False)  # the third task for the second time
    moved = {v.path for v in trainer.problem.meta_variables if np.any(before[v.path] != v.numpy())}
    of_third = {path for path in before if column_of(path) == 2}
    assert moved == of_third
    assert any("body" in path for path in moved)


def column_of(path):
    """The number of the column that a variable belongs to, from names such as adapt_head_2."""
    return int(path.split("/")[-2].rsplit("_", 1)[-1])


def test_models_that_are_not_a_chain_of_layers_are_refused():
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(4)(inputs)
    branched = keras.Model(inputs, keras.layers.Dense(2, name="head")(inputs + hidden))
    with pytest.raises(ValueError, match="one layer after the other"):
        split_into_blocks(branched, "head")
    no_block = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(2, name="head")])
    with pytest.raises(ValueError, match="no layer with units"):
        split_into_blocks(no_block, "head")
    chain = split_into_blocks(conv_net(blocks=2), "head")
    names = [[layer.name.rstrip("0123456789") for layer in block] for block in chain.blocks]
    assert names == [["conv", "norm", "pool", "relu"]] * 2
    assert [layer.name for layer in chain.reshaping] == ["flatten"]


@pytest.mark.parametrize(
    "pull",
    [
        {"kernel_regularizer": "l2"},
        {"bias_regularizer": "l1"},
        {"kernel_constraint": "max_norm"},
        {"activity_regularizer": "l2"},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "learner", [HAT(2, steps_per_epoch=4), ProgressiveNets(2)], ids=["hat", "progressive"]
)
def test_penalties_and_constraints_move_weights_of_other_tasks_and_are_refused(learner, pull):
    layers = [keras.layers.Dense(6, name="body", **pull), keras.layers.Dense(3, name="head")]
    model = keras.Sequential([keras.layers.Input((4,)), *layers])
    with pytest.raises(ValueError, match="'body' has a regularizer or constraint"):
        sequential_trainer(learner, model)
