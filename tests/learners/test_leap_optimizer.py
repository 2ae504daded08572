"""LeapOptimizer under `model.fit`: the numbers of the original code, and its contract."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from leap_tf.optimizer import LeapOptimizer
from tests import golden

MSE = keras.losses.MeanSquaredError()
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def leap(inner=None, meta=None, **options):
    return LeapOptimizer(
        inner or keras.optimizers.SGD(0.1), meta or keras.optimizers.SGD(0.1), **options
    )


def regression_model(*layers):
    layers = layers or (keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(1))
    return keras.Sequential([keras.layers.Input((3,)), *layers])


def batches(seed=0, count=6):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(count * 4, 3)).astype("float32")
    return tf.data.Dataset.from_tensor_slices((inputs, inputs.sum(axis=1, keepdims=True))).batch(4)


def values(variables):
    return [np.array(variable) for variable in variables]


def assert_same(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def assert_changed(actual, expected):
    assert any(not np.array_equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("switches", golden.SWITCHES, ids=lambda s: "-".join(map(str, s.values())))
@pytest.mark.parametrize(("case", "tolerance"), [("a_sgd_lr0.1", 1e-5), ("c_adam_lr0.01", 1e-3)])
def test_fit_gives_the_meta_gradients_of_the_original(case, tolerance, switches):
    model = golden.build_model()
    optimizer = leap(golden.OPTIMIZERS[case](), **switches)
    model.compile(optimizer, loss=CROSS_ENTROPY)
    for task in range(golden.TASKS):
        with optimizer.task(model):
            model.fit(golden.task_dataset(task), verbose=0)
    expected = golden.to_keras(golden.meta_gradient(case, "float32", switches))
    assert golden.relative_error(optimizer.meta_gradients(), expected) < tolerance


@pytest.mark.parametrize(
    "compile_options",
    [{"run_eagerly": True}, {"steps_per_execution": 4}, {"jit_compile": True}],
    ids=lambda options: next(iter(options)),
)
def test_every_way_of_running_fit_records_the_same_path(compile_options):
    model = golden.build_model()
    optimizer = leap()
    model.compile(optimizer, loss=CROSS_ENTROPY, **compile_options)
    for task in range(golden.TASKS):
        with optimizer.task(model):
            model.fit(golden.task_dataset(task), verbose=0)
    expected = golden.to_keras(golden.meta_gradient("a_sgd_lr0.1", "float32", golden.SWITCHES[0]))
    assert golden.relative_error(optimizer.meta_gradients(), expected) < 1e-5


@pytest.mark.parametrize("in_graph", [False, True])
def test_a_gradient_tape_loop_passes_the_loss_to_scale_loss(in_graph):
    model, optimizer = golden.build_model("float64"), leap()

    def step(inputs, labels):
        with tf.GradientTape() as tape:
            loss = optimizer.scale_loss(CROSS_ENTROPY(labels, model(inputs, training=True)))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)

    for task in range(golden.TASKS):
        run = tf.function(step) if in_graph else step
        with optimizer.task(model):
            for batch in golden.task_dataset(task, "float64"):
                run(*batch)
    expected = golden.to_keras(golden.meta_gradient("a_sgd_lr0.1", "float64", golden.SWITCHES[0]))
    assert optimizer.meta_gradients()[0].dtype == tf.float64
    assert golden.relative_error(optimizer.meta_gradients(), expected) < 1e-6


def test_every_task_starts_from_the_initialization_with_an_unused_optimizer():
    model = regression_model(
        keras.layers.Dense(4), keras.layers.BatchNormalization(), keras.layers.Dense(1)
    )
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 12)
    optimizer = leap(keras.optimizers.Adam(schedule))
    model.compile(optimizer, loss=MSE)
    start = values(model.weights)
    ends = []
    for _ in range(2):
        with optimizer.task(model):
            assert_same(values(model.weights), start)
            assert int(optimizer.iterations.numpy()) == 0
            model.fit(batches(), shuffle=False, verbose=0)
        ends.append(values(model.weights))
    assert_changed(ends[0], start)
    assert_same(ends[1], ends[0])


def test_meta_update_descends_on_the_mean_and_the_model_becomes_the_initialization():
    model = regression_model()
    optimizer = leap(meta=keras.optimizers.SGD(0.5))
    model.compile(optimizer, loss=MSE)
    start = values(model.trainable_variables)
    for seed in range(3):
        with optimizer.task(model):
            model.fit(batches(seed), verbose=0)
    gradients = values(optimizer.meta_gradients())
    optimizer.meta_update()
    for variable, theta, gradient in zip(model.trainable_variables, start, gradients):
        np.testing.assert_allclose(variable.numpy(), theta - 0.5 * gradient, rtol=1e-5, atol=1e-7)
    with pytest.raises(RuntimeError, match="No task has finished"):
        optimizer.meta_gradients()


def test_steps_outside_a_task_train_and_record_nothing():
    model, optimizer = regression_model(), leap()
    model.compile(optimizer, loss=MSE)
    start = values(model.weights)
    model.fit(batches(), verbose=0)
    assert_changed(values(model.weights), start)
    with pytest.raises(RuntimeError, match="No task has finished"):
        optimizer.meta_gradients()


def test_a_task_left_by_an_exception_adds_nothing():
    model, optimizer = regression_model(), leap()
    model.compile(optimizer, loss=MSE)
    start = model.get_weights()

    class Interrupted(Exception):
        pass

    with pytest.raises(Interrupted), optimizer.task(model):
        model.fit(batches(), verbose=0)
        raise Interrupted
    with optimizer.task(model):
        model.fit(batches(), shuffle=False, verbose=0)
    once = values(optimizer.meta_gradients())

    other = keras.models.clone_model(model)
    other.set_weights(start)
    undisturbed = leap()
    other.compile(undisturbed, loss=MSE)
    with undisturbed.task(other):
        other.fit(batches(), shuffle=False, verbose=0)
    assert_same(once, values(undisturbed.meta_gradients()))


def test_task_layers_are_reinitialized_and_not_meta_learned():
    model = regression_model(
        keras.layers.Dense(4, name="encoder"), keras.layers.Dense(1, name="head")
    )
    optimizer = leap(task_layers=["head"])
    model.compile(optimizer, loss=MSE)
    heads = []
    for _ in range(2):
        with optimizer.task(model):
            heads.append(values(model.get_layer("head").weights))
            model.fit(batches(), verbose=0)
    assert_changed(heads[0], heads[1])
    encoder = model.get_layer("encoder").trainable_variables
    assert [id(v) for v in optimizer.meta_variables] == [id(v) for v in encoder]
    assert [tuple(g.shape) for g in optimizer.meta_gradients()] == [(3, 4), (4,)]


def test_the_head_is_not_part_of_the_path():
    """On zeros, an encoder without biases does not move, while the head's bias learns."""
    model = regression_model(
        keras.layers.Dense(4, use_bias=False, name="encoder"), keras.layers.Dense(1, name="head")
    )
    zeros = batches().map(lambda x, y: (tf.zeros_like(x), tf.ones_like(y)))
    lengths = {}
    for task_layers in (["head"], []):
        optimizer = leap(task_layers=task_layers, include_loss=False)
        model.compile(optimizer, loss=MSE)
        with optimizer.task(model):
            before = model.get_layer("head").bias.numpy().copy()
            model.fit(zeros, verbose=0)
        assert np.all(model.get_layer("head").bias.numpy() != before)
        lengths[len(task_layers)] = optimizer.path_length
    assert lengths[1] == 0.0
    assert lengths[0] > 0.1


def test_ambiguous_names_of_task_layers_are_refused():
    inputs = keras.Input((4, 3))
    attended = keras.layers.MultiHeadAttention(1, 2, name="attention")(inputs, inputs)
    outputs = keras.layers.Dense(1, name="value")(keras.layers.Flatten()(attended))
    model = keras.Model(inputs, outputs)
    with pytest.raises(ValueError, match="attention/value/.*occur nowhere else"):
        with leap(task_layers=["value"]).task(model):
            pass


@pytest.mark.parametrize("how", ["keras", "checkpoint"])
def test_the_learning_rate_a_task_starts_with_survives_saving(tmp_path, how):
    model, optimizer = regression_model(), leap()
    model.compile(optimizer, loss=MSE)
    with optimizer.task(model):
        model.fit(batches(), verbose=0)
        optimizer.learning_rate = 0.01  # as a LearningRateScheduler does
    if how == "keras":
        model.save(tmp_path / "model.keras")
        model = keras.saving.load_model(tmp_path / "model.keras")
        optimizer, expected = model.optimizer, 0.1
    else:
        optimizer.learning_rate = expected = 0.02  # for good
        saved = tf.train.Checkpoint(optimizer=optimizer).save(tmp_path / "ckpt")
        model, optimizer = regression_model(), leap()
        model.compile(optimizer, loss=MSE)
        optimizer.build(model.trainable_variables)
        tf.train.Checkpoint(optimizer=optimizer).restore(saved)
    with optimizer.task(model):
        assert float(optimizer.learning_rate.numpy()) == pytest.approx(expected)
        model.fit(batches(), verbose=0)


def test_a_meta_update_straight_after_loading_moves_the_model(tmp_path):
    model, _ = half_done(keras.optimizers.SGD(0.05))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for of in (model, loaded):
        of.optimizer.meta_update()
    assert_same(values(loaded.trainable_variables), values(model.trainable_variables))


def test_the_initialization_keeps_its_constraints():
    model = regression_model(keras.layers.Dense(1, kernel_constraint="non_neg"))
    optimizer = leap(meta=keras.optimizers.SGD(100.0))
    model.compile(optimizer, loss=MSE)
    with optimizer.task(model):
        model.fit(batches().map(lambda x, y: (x, -y)), verbose=0)
    optimizer.meta_update()
    assert np.all(model.layers[0].kernel.numpy() >= 0.0)


@pytest.mark.parametrize("good_batches", [0, 3])
def test_a_diverging_task_under_loss_scaling_is_counted(good_batches):
    model = regression_model()
    optimizer = leap(
        keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.05), initial_scale=2.0)
    )
    model.compile(optimizer, loss=MSE)
    broken = batches().take(6 - good_batches).map(lambda x, y: (x * np.nan, y))
    with optimizer.task(model):
        model.fit(batches().take(good_batches).concatenate(broken), shuffle=False, verbose=0)
    assert optimizer.skipped_tasks == 1


def test_a_diverging_task_is_left_out_and_counted():
    model, optimizer = regression_model(), leap()
    model.compile(optimizer, loss=MSE)
    with optimizer.task(model):
        model.fit(batches(), shuffle=False, verbose=0)
    alone = values(optimizer.meta_gradients())
    with optimizer.task(model):
        model.fit(batches().map(lambda x, y: (x * np.inf, y)), verbose=0)
    assert optimizer.skipped_tasks == 1
    assert_same(values(optimizer.meta_gradients()), alone)


def test_weights_that_are_not_numbers_behind_finite_losses_are_divergence():
    """The activation turns them into zeros, also in the last step, which ends no segment.

    TensorFlow's ReLU does so on some processors.
    """
    activation = keras.layers.Activation(lambda values: tf.where(values > 0, values, 0.0))
    model = regression_model(keras.layers.Dense(4), activation, keras.layers.Dense(1))
    optimizer = leap()
    model.compile(optimizer, loss=MSE)
    broken = batches().take(1).map(lambda x, y: (x * np.nan, y))
    for dataset in (broken.concatenate(batches()), batches().concatenate(broken)):
        with optimizer.task(model):
            history = model.fit(dataset, shuffle=False, verbose=0)
        assert np.isfinite(history.history["loss"]).all()
    assert optimizer.skipped_tasks == 2


def test_a_meta_batch_that_diverges_altogether_is_an_error():
    model, optimizer = regression_model(), leap()
    model.compile(optimizer, loss=MSE)
    with optimizer.task(model):
        model.fit(batches().map(lambda x, y: (x * np.nan, y)), verbose=0)
    with pytest.raises(FloatingPointError, match="All 1 tasks"):
        optimizer.meta_update()


def test_mixed_precision_records_unscaled_values_and_skips_skipped_steps():
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    try:
        model = regression_model(
            keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(1, dtype="float32")
        )
    finally:
        keras.mixed_precision.set_dtype_policy("float32")
    reference = keras.models.clone_model(model)
    reference.set_weights(model.get_weights())
    lengths = {}
    for scale in (1.0, 2.0**10):
        model.set_weights(reference.get_weights())
        scaled = keras.optimizers.LossScaleOptimizer(
            keras.optimizers.SGD(0.05), initial_scale=scale
        )
        optimizer = leap(scaled)
        model.compile(optimizer, loss=MSE, auto_scale_loss=False)
        with optimizer.task(model):
            model.fit(batches(), shuffle=False, verbose=0)
        lengths[scale] = optimizer.path_length
        assert optimizer.meta_gradients()[0].dtype == tf.float32
    full = keras.Sequential([keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(1)])
    full.build(reference.input_shape)
    full.set_weights(reference.get_weights())
    optimizer = leap(keras.optimizers.SGD(0.05))
    full.compile(optimizer, loss=MSE)
    with optimizer.task(full):
        full.fit(batches(), shuffle=False, verbose=0)
    assert optimizer.path_length > 0.1
    for length in lengths.values():
        assert length == pytest.approx(optimizer.path_length, rel=0.02)

    overflowing = leap(
        keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.05), initial_scale=2.0**40)
    )
    model.compile(overflowing, loss=MSE, auto_scale_loss=False)
    with overflowing.task(model):
        model.fit(batches(count=40), verbose=0)
    assert overflowing.skipped_tasks == 0
    assert 0 < overflowing.path_length < np.inf
    before = overflowing.meta_gradients()
    with pytest.raises(ValueError, match="skipped 4 of 4 steps of this task.*Lower initial_scale"):
        with overflowing.task(model):
            model.fit(batches(count=4), verbose=0)
    for kept, gradient in zip(overflowing.meta_gradients(), before, strict=True):
        np.testing.assert_array_equal(kept, gradient)  # not a mean with an empty task


def test_a_plain_loss_scale_factor_does_not_change_the_path():
    gradients = []
    model = golden.build_model()
    start = model.get_weights()
    for factor in (None, 64.0):
        model.set_weights(start)
        optimizer = leap(keras.optimizers.SGD(0.1, loss_scale_factor=factor))
        model.compile(optimizer, loss=CROSS_ENTROPY)
        with optimizer.task(model):
            model.fit(golden.task_dataset(0), verbose=0)
        gradients.append(optimizer.meta_gradients())
    assert golden.relative_error(gradients[1], gradients[0]) < 1e-6


def test_per_segment_and_metric_are_those_of_the_learner():
    gradients = {}
    for name, options in {"sum": {}, "mean": {"per_segment": True}}.items():
        model = golden.build_model()
        optimizer = leap(keras.optimizers.SGD(0.1), **options)
        model.compile(optimizer, loss=CROSS_ENTROPY)
        with optimizer.task(model):
            model.fit(golden.task_dataset(0), verbose=0)
            steps = optimizer._recorder._steps.numpy()
        gradients[name] = optimizer.meta_gradients()
    for total, mean in zip(gradients["sum"], gradients["mean"], strict=True):
        np.testing.assert_allclose(mean, total / (steps - 1), rtol=1e-6)
    fisher = leap(metric="fisher", per_segment=True)
    read = LeapOptimizer.from_config(fisher.get_config())
    assert (read.geometry.metric, read.geometry.per_segment) == ("fisher", True)


def test_the_default_meta_optimizer_is_that_of_the_trainer():
    keras.utils.set_random_seed(0)
    model = golden.build_model()
    optimizer = LeapOptimizer(keras.optimizers.SGD(0.1))
    model.compile(optimizer, loss=CROSS_ENTROPY)
    start = values(model.trainable_variables)
    with optimizer.task(model):
        model.fit(golden.task_dataset(0), verbose=0)
        end = values(model.trainable_variables)
    distance = np.sqrt(sum(np.sum((b - a) ** 2) for a, b in zip(start, end, strict=True)))
    scaled = tf.linalg.global_norm(optimizer.meta_gradients())
    np.testing.assert_allclose(scaled, distance, rtol=1e-5)
    optimizer.meta_update()
    moved = [new - old for new, old in zip(values(model.trainable_variables), start, strict=True)]
    np.testing.assert_allclose(tf.linalg.global_norm(moved), distance, rtol=1e-5)
    read = LeapOptimizer.from_config(optimizer.get_config())
    assert read.geometry == optimizer.geometry
    assert float(read.meta_optimizer.learning_rate) == 1.0


def test_a_meta_update_that_overflows_is_not_made():
    model = regression_model()
    optimizer = LeapOptimizer(keras.optimizers.SGD(0.05), keras.optimizers.SGD(1e38))
    model.compile(optimizer, loss=MSE)
    before = model.get_weights()
    with optimizer.task(model):
        model.fit(batches(), shuffle=False, verbose=0)
    with pytest.raises(FloatingPointError, match="would overflow and was not applied"):
        optimizer.meta_update()
    optimizer.meta_optimizer.learning_rate = 0.1
    optimizer.meta_update()
    for old, new in zip(before, model.get_weights(), strict=True):
        assert np.all(np.isfinite(new))
        assert np.any(old != new)


def test_a_meta_optimizer_may_exclude_biases_from_weight_decay():
    meta = keras.optimizers.SGD(0.5, weight_decay=1.0)
    meta.exclude_from_weight_decay(var_names=["bias"])
    model = regression_model()
    optimizer = LeapOptimizer(keras.optimizers.SGD(0.0), meta, include_loss=False)
    model.compile(optimizer, loss=MSE)
    model.set_weights([np.ones_like(array) for array in model.get_weights()])
    with optimizer.task(model):
        model.fit(batches(), shuffle=False, verbose=0)
    optimizer.meta_update()
    for variable in model.trainable_variables:  # paths of no length: only decay moves them
        np.testing.assert_allclose(variable, 1.0 if variable.name == "bias" else 0.5)


def test_tasks_without_a_path_are_refused():
    model, optimizer = regression_model(), leap()
    model.compile(optimizer, loss=MSE)
    with pytest.raises(ValueError, match="One training step is one point"):
        with optimizer.task(model):
            model.fit(batches().take(1), verbose=0)
    model = regression_model(keras.layers.Dense(1, name="only"))
    optimizer = leap(task_layers=["only"])
    model.compile(optimizer, loss=MSE)
    with pytest.raises(ValueError, match="nothing is left to meta-learn"):
        with optimizer.task(model):
            pass


def test_unused_and_sparse_gradients():
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.embedding = keras.layers.Embedding(5, 2)
            self.unused = keras.layers.Dense(3, name="unused")
            self.out = keras.layers.Dense(1)

        def build(self, shape):
            self.unused.build((None, 2))
            super().build(shape)

        def call(self, inputs):
            return self.out(self.embedding(inputs))

    model = Model()
    model(np.zeros((1,), "int32"))
    optimizer = leap()
    model.compile(optimizer, loss=MSE)
    dataset = tf.data.Dataset.from_tensor_slices(([[0, 1], [1, 2]], [[0.0, 1.0], [1.0, 2.0]]))
    with optimizer.task(model), pytest.warns(UserWarning, match="Gradients do not exist"):
        model.fit(dataset, verbose=0)
    by_path = dict(zip([v.path for v in optimizer.meta_variables], optimizer.meta_gradients()))
    embedding = next(g for path, g in by_path.items() if "embedding" in path)
    unused = next(g for path, g in by_path.items() if path.endswith("unused/kernel"))
    assert np.any(embedding[0])
    np.testing.assert_array_equal(embedding[3:], np.zeros((2, 2)))
    np.testing.assert_array_equal(unused, np.zeros_like(unused))


def test_the_learning_rate_is_the_inner_one_and_resets_with_the_task():
    model, optimizer = regression_model(), leap()
    model.compile(optimizer, loss=MSE)
    with optimizer.task(model):
        model.fit(batches(), verbose=0)
        optimizer.learning_rate = 0.01
    with optimizer.task(model):
        assert float(optimizer.learning_rate.numpy()) == pytest.approx(0.1)
        model.fit(batches(), verbose=0)
    optimizer.learning_rate = 0.02
    with optimizer.task(model):
        assert float(optimizer.learning_rate.numpy()) == pytest.approx(0.02)
        model.fit(batches(), verbose=0)


def half_done(inner):
    """Returns a model with batch norm after one meta-update and one more task."""
    model = regression_model(
        keras.layers.Dense(4), keras.layers.BatchNormalization(), keras.layers.Dense(1)
    )
    optimizer = leap(inner, keras.optimizers.Adam(0.01), distance="energy")
    model.compile(optimizer, loss=MSE)
    for seed in range(2):
        with optimizer.task(model):
            model.fit(batches(seed), shuffle=False, verbose=0)
    optimizer.meta_update()
    with optimizer.task(model):
        model.fit(batches(3), shuffle=False, verbose=0)
    return model, optimizer


def finish(model, optimizer):
    with optimizer.task(model):
        model.fit(batches(4), shuffle=False, verbose=0)
    optimizer.meta_update()
    return values(model.weights)


def test_a_keras_file_saved_within_a_meta_batch_continues_to_the_bit(tmp_path):
    model, optimizer = half_done(keras.optimizers.Adam(0.05))
    model.save(tmp_path / "model.keras")
    expected = finish(model, optimizer)
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.geometry == optimizer.geometry
    assert_same(finish(loaded, loaded.optimizer), expected)


def test_a_checkpoint_saved_within_a_meta_batch_continues_to_the_bit(tmp_path):
    model, optimizer = half_done(keras.optimizers.SGD(0.05, momentum=0.9))
    saved = tf.train.Checkpoint(model=model, optimizer=optimizer).save(tmp_path / "ckpt")
    expected = finish(model, optimizer)
    other = regression_model(
        keras.layers.Dense(4), keras.layers.BatchNormalization(), keras.layers.Dense(1)
    )
    restored = leap(
        keras.optimizers.SGD(0.05, momentum=0.9), keras.optimizers.Adam(0.01), distance="energy"
    )
    other.compile(restored, loss=MSE)
    restored.build(other.trainable_variables)
    tf.train.Checkpoint(model=other, optimizer=restored).restore(saved).assert_consumed()
    assert_same(finish(other, restored), expected)


@pytest.mark.parametrize("scaled", [False, True])
def test_exclusions_from_weight_decay_reach_the_inner_optimizer(scaled):
    excluded, kept = keras.Variable(2.0, name="excluded"), keras.Variable(2.0, name="kept")
    inner = keras.optimizers.SGD(1.0, weight_decay=0.004)
    optimizer = leap(keras.optimizers.LossScaleOptimizer(inner) if scaled else inner)
    optimizer.exclude_from_weight_decay(var_names=["excluded"])
    optimizer.scale_loss(tf.constant(0.0))
    optimizer.apply([tf.constant(0.0), tf.constant(0.0)], [excluded, kept])
    assert float(excluded.value) == 2.0
    assert float(kept.value) == pytest.approx(2.0 * (1 - 0.004))


@pytest.mark.parametrize(
    "setting",
    {
        "clipnorm": 1.0,
        "clipvalue": 1.0,
        "ema_momentum": 0.5,
        "ema_overwrite_frequency": 3,
        "global_clipnorm": 1.0,
        "gradient_accumulation_steps": 2,
        "loss_scale_factor": 2.0,
        "momentum": 0.9,
        "use_ema": True,
        "weight_decay": 0.1,
    }.items(),
    ids=lambda item: item[0],
)
def test_settings_of_the_inner_optimizer_are_read_from_it_and_not_set_here(setting):
    name, value = setting
    optimizer = leap()
    if name != "momentum":
        assert getattr(optimizer, name) == getattr(optimizer.inner_optimizer, name)
    with pytest.raises(AttributeError, match=f"no {name} of its own. Set {name} on the inner"):
        setattr(optimizer, name, value)
    assert getattr(optimizer.inner_optimizer, name) != value
    decaying = leap(keras.optimizers.SGD(0.1, weight_decay=0.25))
    assert decaying.weight_decay == 0.25


def test_methods_of_keras_that_cannot_work_are_refused_by_name():
    optimizer, variable = leap(), keras.Variable(1.0)
    optimizer.build([variable])
    with pytest.raises(NotImplementedError, match=r"Call apply\(\), or update_step of the inner"):
        optimizer.update_step(tf.constant(1.0), variable, 0.1)
    with pytest.raises(NotImplementedError, match="no stateless form. Use leap_tf.MetaTrainer"):
        optimizer.stateless_apply([], [], [])


def test_the_counter_and_the_weights_are_those_of_all_optimizers_inside():
    optimizer, variable = leap(keras.optimizers.Adam(0.1)), keras.Variable([1.0, 2.0])
    for _ in range(3):
        optimizer.scale_loss(tf.constant(1.0))
        steps = optimizer.apply_gradients([(tf.constant([1.0, -1.0]), variable)])
    assert int(steps) == int(optimizer.inner_optimizer.iterations) == 3
    copy = leap(keras.optimizers.Adam(0.1))
    copy.build([variable])
    copy.set_weights(values(optimizer.variables))
    assert_same(values(copy.variables), values(optimizer.variables))
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        copy.set_weights(values(optimizer.variables)[:-1])


def test_configuration_round_trip():
    optimizer = leap(
        keras.optimizers.RMSprop(keras.optimizers.schedules.ExponentialDecay(0.1, 5, 0.9)),
        keras.optimizers.Adam(0.01),
        include_loss=False,
        task_layers=["head"],
        seed=3,
    )
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer))
    assert copy.get_config() == optimizer.get_config()
    assert isinstance(copy.inner_optimizer, keras.optimizers.RMSprop)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: leap(clipnorm=1.0), "Set clipping, weight decay and the like on"),
        (lambda: leap(keras.optimizers.SGD(gradient_accumulation_steps=2)), "larger batches"),
        (lambda: leap(keras.optimizers.SGD(use_ema=True)), "without EMA"),
        (lambda: leap(meta=keras.optimizers.SGD(use_ema=True)), "meta_optimizer has use_ema"),
        (
            lambda: leap(
                keras.optimizers.LossScaleOptimizer(
                    keras.optimizers.SGD(gradient_accumulation_steps=2)
                )
            ),
            "larger batches",
        ),
        (
            lambda: leap(meta=keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())),
            "meta-gradients are unscaled",
        ),
        (lambda: leap(meta=keras.optimizers.SGD(loss_scale_factor=2.0)), "unscaled"),
        (lambda: leap(leap()), "do not nest"),
        (lambda: leap(keras.optimizers.ScheduleFreeAdamW()), "keeps copies of the parameters"),
        (
            lambda: leap(
                keras.optimizers.MultiOptimizer(
                    keras.optimizers.OptimizerMap(keras.optimizers.SGD(use_ema=True))
                )
            ),
            "without EMA",
        ),
        (
            lambda: leap(
                keras.optimizers.MultiOptimizer(
                    keras.optimizers.OptimizerMap(keras.optimizers.SGD())
                )
            ),
            "no learning rate of its own",
        ),
        (lambda: leap(distance="fisher"), "distance must be one of"),
    ],
)
def test_options_that_contradict_each_other_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_optimizers_must_be_two_unused_keras_optimizers():
    with pytest.raises(TypeError, match="must be a keras.optimizers.Optimizer"):
        LeapOptimizer("sgd", keras.optimizers.SGD())
    used = keras.optimizers.SGD()
    used.build(regression_model().trainable_variables)
    with pytest.raises(ValueError, match="has been used already"):
        leap(used)
    shared = keras.optimizers.SGD()
    with pytest.raises(ValueError, match="same optimizer object"):
        leap(shared, shared)


def test_calls_in_the_wrong_order_or_for_another_model_are_refused():
    model, optimizer = regression_model(), leap()
    model.compile(optimizer, loss=MSE)
    with pytest.raises(ValueError, match="No training step was recorded"), optimizer.task(model):
        pass
    with optimizer.task(model):
        with pytest.raises(RuntimeError, match="do not nest"), optimizer.task(model):
            pass
        with pytest.raises(RuntimeError, match="Leave the task"):
            optimizer.meta_gradients()
        model.fit(batches(), verbose=0)
    other = regression_model()
    with pytest.raises(ValueError, match="not those this LeapOptimizer was built"):
        with optimizer.task(other):
            pass
    with pytest.raises(ValueError, match="no variables to train yet"):
        with leap().task(keras.Sequential([keras.layers.Dense(1)])):
            pass
    assert leap().path_length == leap().path_energy == 0.0
    other.compile(keras.optimizers.SGD())
    with pytest.raises(ValueError, match="compiled with SGD"), optimizer.task(other):
        pass
    with pytest.raises(ValueError, match="no layer named"):
        with leap(task_layers=["nose"]).task(regression_model()):
            pass


def test_an_optimizer_that_hides_the_loss_is_named():
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    try:
        model = regression_model()
    finally:
        keras.mixed_precision.set_dtype_policy("float32")
    optimizer = leap()
    model.compile(optimizer, loss=MSE)
    with pytest.raises(ValueError, match="auto_scale_loss=False"), optimizer.task(model):
        pass
    with pytest.raises(RuntimeError, match="auto_scale_loss=False"):
        model.fit(batches(), verbose=0)


def test_distribution_strategies_are_refused():
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        model, optimizer = regression_model(), leap()
        with pytest.raises(ValueError, match="does not run under tf.distribute"):
            optimizer.build(model.trainable_variables)


def test_gradients_of_some_variables_only_are_refused():
    model, optimizer = regression_model(), leap()
    optimizer.build(model.trainable_variables)
    optimizer.scale_loss(tf.constant(1.0))
    with pytest.raises(ValueError, match="all 4 variables"):
        optimizer.apply([tf.zeros((3, 4))], model.trainable_variables[:1])


def test_a_task_that_leaves_infinite_running_statistics_is_skipped():
    keras.utils.set_random_seed(0)
    layers = [keras.Input((2,)), keras.layers.BatchNormalization(), keras.layers.Dense(1)]
    model = keras.Sequential(layers)
    model.compile(LeapOptimizer(keras.optimizers.SGD(0.01)), loss="mse")
    x = np.ones((8, 2), np.float32)
    with model.optimizer.task(model):
        model.fit(x, x[:, :1], epochs=3, verbose=0)
    with model.optimizer.task(model):
        model.fit(x, x[:, :1], epochs=3, verbose=0)
        model.layers[0].moving_variance.assign([np.inf, 1.0])
    assert model.optimizer.skipped_tasks == 1
    model.optimizer.meta_update()
    assert np.isfinite(model.layers[0].moving_variance.numpy()).all()
