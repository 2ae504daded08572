"""The contract of all learners, and the definition of each."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from leap_tf.functional import FunctionalModel, FunctionalOptimizer, TaskLayers
from leap_tf.geometry import PathPoint
from leap_tf.learners import (
    ANIL,
    FOMAML,
    HAT,
    MAML,
    JointTraining,
    Leap,
    MetaSGD,
    NoMetaLearning,
    Reptile,
    TaskEnd,
    TaskUpdate,
    TrainingSetup,
    with_meta_optimizer,
)
from leap_tf.learners.joint import MixedTask, multi_headed
from leap_tf.models import mlp
from leap_tf.tasks import FiniteTasks, Sinusoids, TaskDistribution
from leap_tf.training import InnerLoop, MetaTrainer, StopAtError
from tests.learner_contract import CROSS_ENTROPY, LearnerContract, blobs, small_model

MSE = keras.losses.MeanSquaredError()


class TestLeap(LearnerContract):
    def learner(self):
        return Leap()


class TestLeapPerSegment(LearnerContract):
    def learner(self):
        return Leap(per_segment=True)


class TestLeapScaled(LearnerContract):
    meta_rate = 1.0

    def learner(self):
        return Leap(scaled=True)


class TestLeapFisher(LearnerContract):
    def learner(self):
        return Leap(metric="fisher", include_loss=False)


class TestReptile(LearnerContract):
    def learner(self):
        return Reptile()


class TestFOMAML(LearnerContract):
    def learner(self):
        return FOMAML()


class TestMAML(LearnerContract):
    def learner(self):
        return MAML(query_batches=2)


class TestMAMLWithAllRemedies(LearnerContract):
    def learner(self):
        return MAML(multi_step_until=5, first_order_until=2, learned_rates=True)


class TestANIL(LearnerContract):
    def learner(self):
        return ANIL()


class TestMetaSGD(LearnerContract):
    def learner(self):
        return MetaSGD()


class TestJointTraining(LearnerContract):
    task_layers = ("head",)
    meta_rate = 1.0

    def learner(self):
        return JointTraining(heads=6)


class TestNoMetaLearning(LearnerContract):
    learns = False

    def learner(self):
        return NoMetaLearning()


# -- definitions ---------------------------------------------------------------------


def run_learner(learner, points):
    state = learner.begin_task(points[0].position)
    for point in points:
        state = learner.observe(state, point)
    end = TaskEnd(points[0].position, points[-1].position, [])
    return learner.end_task(state, end).meta_gradient


def random_walk(steps=7):
    rng = np.random.default_rng(3)
    return [
        PathPoint(
            [tf.constant(rng.normal(size=(3, 2))), tf.constant(rng.normal(size=4))],
            tf.constant(rng.normal()),
            [tf.constant(rng.normal(size=(3, 2))), tf.constant(rng.normal(size=4))],
        )
        for _ in range(steps)
    ]


def test_leap_with_energy_and_without_loss_is_reptile():
    points = random_walk()
    leap = run_learner(Leap("energy", include_loss=False), points)
    for a, b in zip(leap, run_learner(Reptile(), points), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def test_leap_per_segment_is_the_mean_over_segments():
    points = random_walk(steps=7)
    for mean, total in zip(
        run_learner(Leap(per_segment=True), points), run_learner(Leap(), points), strict=True
    ):
        np.testing.assert_allclose(6 * mean, total, rtol=1e-12)


def test_a_scaled_meta_gradient_has_the_length_of_the_way_and_the_direction_of_the_sum():
    points = [
        PathPoint([tf.constant([position, 0.0])], tf.constant(loss), [tf.constant([-2.0, 1.0])])
        for position, loss in ((0.0, 9.0), (3.0, 5.0))
    ]
    # The segment (3, 0, −4) has length 5, so g = −((3, 0) − 4 (−2, 1)) / 5 = (−2.2, 0.8).
    np.testing.assert_allclose(run_learner(Leap(), points)[0], [-2.2, 0.8], rtol=1e-6)
    scaled = run_learner(Leap(scaled=True), points)[0]
    np.testing.assert_allclose(scaled, 3.0 * np.array([-2.2, 0.8]) / np.hypot(2.2, 0.8), rtol=1e-6)
    still = run_learner(Leap(scaled=True), points[:1] * 2)[0]
    np.testing.assert_array_equal(still, [0.0, 0.0])


@pytest.mark.parametrize("steps", [3, 30])
@pytest.mark.parametrize("inner", [keras.optimizers.SGD(0.02), keras.optimizers.Adam(0.01)])
def test_the_default_meta_step_is_no_longer_than_the_way_of_the_tasks(steps, inner):
    keras.utils.set_random_seed(0)
    trainer = MetaTrainer(mlp(), MSE, inner, steps_per_task=steps, meta_batch_size=5)
    before = [variable.numpy() for variable in trainer.model.trainable_variables]
    history = trainer.fit(Sinusoids(), 1, verbose=False).history
    pairs = zip(trainer.model.trainable_variables, before, strict=True)
    update = np.sqrt(sum(np.sum((new.numpy() - old) ** 2) for new, old in pairs))
    assert 0.3 * history["distance_moved"][0] < update <= history["distance_moved"][0]


@pytest.mark.parametrize(
    "learner", [Leap("energy"), Reptile(), NoMetaLearning(), JointTraining(heads=2), HAT(tasks=2)]
)
def test_the_default_meta_optimizer_keeps_the_settings_of_the_learner(learner):
    suited, optimizer = with_meta_optimizer(learner)
    assert (type(optimizer), float(optimizer.learning_rate)) == (keras.optimizers.SGD, 1.0)
    changed = {"scaled": True} if isinstance(learner, Leap) else {}
    assert suited.get_config() == {**learner.get_config(), **changed}
    assert not getattr(getattr(learner, "geometry", None), "scaled", False)


def test_a_given_meta_optimizer_comes_with_the_learner_as_it_is():
    learner, optimizer = Leap(), keras.optimizers.Adam(0.1)
    assert with_meta_optimizer(learner, optimizer) == (learner, optimizer)
    trainer = MetaTrainer(mlp(), MSE, "sgd", optimizer, learner=learner)
    assert not trainer.learner.geometry.scaled


def test_learners_of_another_scale_have_no_default_meta_optimizer():
    with pytest.raises(ValueError, match="MAML needs a meta_optimizer"):
        MetaTrainer(mlp(), MSE, "sgd", learner=MAML())
    with pytest.raises(TypeError, match="must be an object such as Reptile"):
        MetaTrainer(mlp(), MSE, "sgd", "sgd", learner=Reptile)
    with pytest.raises(ValueError, match="Set only one of per_segment and scaled"):
        MetaTrainer(mlp(), MSE, "sgd", learner=Leap(per_segment=True))


def float64_problem():
    """Returns a small smooth network in float64, and batches."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.layers.Input((2,), dtype="float64"),
            keras.layers.Dense(3, activation="tanh", dtype="float64", name="body"),
            keras.layers.Dense(1, dtype="float64", name="head"),
        ]
    )
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(10, 4, 2))
    targets = np.sin(inputs.sum(axis=-1, keepdims=True))
    return model, tf.data.Dataset.from_tensor_slices((inputs, targets))


def meta_gradient(
    learner, model, dataset, steps=3, parameters=None, learner_values=None, **options
):
    """Returns the loop's meta-gradient, and f(θᴷ; query batches) computed without the loop."""
    functional = FunctionalModel(model, keras.losses.MeanSquaredError(dtype="float64"))
    optimizer = keras.optimizers.SGD(0.25)
    learner.plan(
        TrainingSetup(
            model=model, inner_optimizer=optimizer, meta_optimizer=keras.optimizers.SGD(1.0),
            steps_per_task=steps, meta_batch_size=1,
        )
    )  # fmt: skip
    built = [tf.convert_to_tensor(v.value) for v in learner.build(functional.variables)]
    values = built if learner_values is None else learner_values
    optimizer = FunctionalOptimizer(optimizer, functional.variables)
    indices = range(len(functional.variables))
    loop = InnerLoop(functional, optimizer, learner, indices)
    parameters = functional.parameters() if parameters is None else parameters
    steps_of_loop = steps if learner.second_order else tf.constant(steps)
    result = loop.train(
        iter(dataset), steps_of_loop, parameters, functional.state(0), learner_values=values,
        second_order=learner.second_order, **options,
    )  # fmt: skip
    batches = list(dataset)[steps : steps + learner.query_batches]

    def loss(x, y):
        for variable, value in zip(functional.variables, result.parameters):
            variable.assign(value)
        return tf.reduce_mean(tf.square(model(x) - y))

    saved = [variable.numpy() for variable in functional.variables]
    objective = np.mean([loss(x, y).numpy() for x, y in batches])
    for variable, value in zip(functional.variables, saved):
        variable.assign(value)
    return [np.array(part) for part in result.update.meta_gradient], objective


@pytest.mark.parametrize(
    "make",
    [
        lambda: MAML(2),
        lambda: ANIL(query_batches=2),
        MetaSGD,
        lambda: MAML(2, learned_rates=True),
    ],
)
def test_second_order_gradients_are_those_of_finite_differences(make):
    model, dataset = float64_problem()
    start = [variable.numpy() for variable in model.trainable_variables]
    rates = [np.ones_like(value) for value in start] if isinstance(make(), MetaSGD) else []
    if getattr(make(), "learned_rates", False):
        rates = [np.ones(3) for _ in start]  # of three steps
    values = [*start, *rates]
    gradient, _ = meta_gradient(make(), model, dataset)
    assert len(gradient) == len(values)
    rng, step = np.random.default_rng(5), 1e-5
    for _ in range(4):
        direction = [rng.normal(size=value.shape) for value in values]
        objectives = []
        for sign in (1, -1):
            moved = [tf.constant(v + sign * step * d) for v, d in zip(values, direction)]
            objectives.append(
                meta_gradient(
                    make(),
                    model,
                    dataset,
                    parameters=moved[: len(start)],
                    learner_values=moved[len(start) :],
                )[1]
            )
        expected = (objectives[0] - objectives[1]) / (2 * step)
        actual = sum(np.sum(g * d) for g, d in zip(gradient, direction))
        np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_fomaml_takes_the_gradient_at_the_end_point():
    model, dataset = float64_problem()
    first_order, _ = meta_gradient(FOMAML(query_batches=2), model, dataset)
    second_order, _ = meta_gradient(MAML(query_batches=2), model, dataset)
    # By hand: three SGD steps with Keras, then the gradient of the mean loss of two batches.
    batches = list(dataset)
    variables = model.trainable_variables

    def gradient(*several):
        with tf.GradientTape() as tape:
            losses = [tf.reduce_mean(tf.square(model(x) - y)) for x, y in several]
            loss = tf.add_n(losses) / len(losses)
        return tape.gradient(loss, [variable.value for variable in variables])

    for batch in batches[:3]:
        for variable, part in zip(variables, gradient(batch)):
            variable.assign_sub(0.25 * part)
    for actual, expected in zip(first_order, gradient(*batches[3:5]), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-9)
    assert any(
        not np.allclose(a, b, rtol=1e-2) for a, b in zip(first_order, second_order, strict=True)
    )


def test_the_multi_step_objective_weighs_the_losses_after_all_steps():
    model, dataset = float64_problem()
    batches = list(dataset)

    def after(steps, **options):
        """Meta-gradient of a task whose query batch is always the last one."""
        chosen = tf.data.Dataset.from_generator(
            lambda: iter([*batches[:steps], batches[-1]]), output_signature=dataset.element_spec
        )
        return meta_gradient(MAML(), model, chosen, steps, **options)[0]

    single = [after(steps) for steps in (1, 2, 3)]
    for share, weights in ((1.0, [1 / 3, 1 / 3, 1 / 3]), (0.5, [1 / 6, 1 / 6, 4 / 6])):
        weighed = after(3, multi_step=tf.constant(share))
        for actual, *parts in zip(weighed, *single, strict=True):
            expected = sum(weight * part for weight, part in zip(weights, parts))
            np.testing.assert_allclose(actual, expected, rtol=1e-6)


class _QueryTask:
    """A task with query batches of its own."""

    def __init__(self, number):
        self._blobs = blobs(number)
        self.name = self._blobs.name
        self.train_batches, self.test_batches = self._blobs.train_batches, self._blobs.test_batches

    def query_batches(self, seed):
        return self.train_batches(seed + 1)


def _steps_of(learner, meta_steps, rates=()):
    keras.utils.set_random_seed(0)
    trainer = MetaTrainer(
        small_model(), CROSS_ENTROPY, keras.optimizers.SGD(0.3), keras.optimizers.SGD(0.5),
        learner=learner, steps_per_task=2, meta_batch_size=2,
    )  # fmt: skip
    for variable in trainer.learner_variables:
        variable.assign(rates)
    found = []
    for meta_step in range(1, meta_steps + 1):
        trainer.fit(FiniteTasks([_QueryTask(0), _QueryTask(1)]), meta_step, verbose=False)
        found.append(np.concatenate([v.numpy().ravel() for v in trainer.model.weights]))
    return trainer, found


def test_the_first_meta_steps_can_be_first_order():
    _, mixed = _steps_of(MAML(first_order_until=2), 3)
    _, first_order = _steps_of(FOMAML(), 3)
    _, second_order = _steps_of(MAML(), 1)
    np.testing.assert_array_equal(mixed[0], first_order[0])
    np.testing.assert_array_equal(mixed[1], first_order[1])
    assert np.abs(mixed[2] - first_order[2]).max() > 1e-4
    assert np.abs(mixed[0] - second_order[0]).max() > 1e-4


def test_the_multi_step_objective_ends_in_that_of_the_last_step():
    _, annealed = _steps_of(MAML(multi_step_until=2), 3)
    _, plain = _steps_of(MAML(), 1)
    assert np.abs(annealed[0] - plain[0]).max() > 1e-4
    # From the third meta-step on, the rule is MAML's. Two meta-steps were made by another.
    trainer, _ = _steps_of(MAML(multi_step_until=2), 2)
    start = [variable.numpy() for variable in trainer.model.weights]
    other, _ = _steps_of(MAML(), 2)
    for variable, value in zip(other.model.weights, start):
        variable.assign(value)
    other.fit(FiniteTasks([_QueryTask(0), _QueryTask(1)]), 3, verbose=False)
    np.testing.assert_array_equal(
        np.concatenate([v.numpy().ravel() for v in other.model.weights]), annealed[2]
    )


def test_learned_rates_are_those_of_the_steps_in_evaluation_too():
    """Factors of 2 and 0 on SGD of rate 0.3: one step of rate 0.6, and then none."""
    trainer, _ = _steps_of(MAML(learned_rates=True), 0, rates=[2.0, 0.0])
    keras.utils.set_random_seed(0)
    found = trainer.evaluate([blobs(0)], steps=4).tasks[0]
    doubled = MetaTrainer(
        small_model(), CROSS_ENTROPY, keras.optimizers.SGD(0.6), learner=NoMetaLearning()
    )
    expected = doubled.evaluate([blobs(0)], steps=1).tasks[0]
    assert found.error == expected.error
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)


def test_remedies_that_are_not_used_are_not_in_the_configuration():
    assert MAML(2).get_config() == {"query_batches": 2}
    config = MAML(learned_rates=True, multi_step_until=3).get_config()
    assert config == {"query_batches": 1, "learned_rates": True, "multi_step_until": 3}


def test_learned_rates_are_learned_step_by_step():
    trainer, _ = _steps_of(MAML(learned_rates=True), 2, rates=[1.0, 1.0])
    rates = [variable.numpy() for variable in trainer.learner_variables]
    assert [each.shape for each in rates] == [(2,)] * 4
    assert all(np.abs(each - 1.0).max() > 1e-6 and each[0] != each[1] for each in rates)


def test_query_batches_follow_the_steps():
    model, dataset = float64_problem()
    with pytest.raises(tf.errors.OutOfRangeError):
        meta_gradient(MAML(query_batches=2), model, dataset.take(4))
    meta_gradient(MAML(query_batches=1), model, dataset.take(4))


def test_a_task_without_enough_query_batches_is_named():
    short = blobs(0)
    short.train_batches = lambda seed: blobs(0).train_batches(seed).take(3)
    for learner in (MAML(), FOMAML()):
        trainer = MetaTrainer(
            small_model(),
            CROSS_ENTROPY,
            keras.optimizers.SGD(0.1),
            keras.optimizers.SGD(0.1),
            learner=learner,
            steps_per_task=3,
            meta_batch_size=1,
        )
        with pytest.raises(ValueError, match="'blobs 0' has fewer training batches"):
            trainer.fit(FiniteTasks([short]), 1, verbose=False)


def test_anil_trains_the_head_only():
    trainer = TestANIL().trainer()
    direction = trainer.learner.direction([tf.ones(2)] * 4, [], 0)
    paths = [variable.path for variable in trainer.problem.meta_variables]
    assert [path.split("/")[-2] for path in paths] == ["body", "body", "head", "head"]
    assert [part is None for part in direction] == [True, True, False, False]


def test_anil_refuses_unknown_layer_names():
    with pytest.raises(ValueError, match="no meta-learned layer 'top'"):
        MetaTrainer(
            small_model(),
            CROSS_ENTROPY,
            keras.optimizers.SGD(0.1),
            keras.optimizers.SGD(0.1),
            learner=ANIL(adapted_layers=["top"]),
        )


def test_anil_refuses_a_name_of_several_layers():
    inner = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, name="fc")], name="enc")
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(2, name="fc")(inner(inputs)))
    with pytest.raises(ValueError, match="'fc' is the name of several layers"):
        MetaTrainer(model, CROSS_ENTROPY, "sgd", "sgd", learner=ANIL(["fc"]))


def test_no_meta_learning_keeps_running_statistics():
    layers = [keras.layers.BatchNormalization(momentum=0.5), keras.layers.Dense(3)]
    trainer = trainer_with(NoMetaLearning(), model=keras.Sequential([keras.Input((4,)), *layers]))
    before = [array.copy() for array in trainer.model.get_weights()]
    trainer.fit(FiniteTasks([blobs(0), blobs(1)]), 2, verbose=False)
    for then, now in zip(before, trainer.model.get_weights(), strict=True):
        np.testing.assert_array_equal(then, now)


def test_a_subclass_of_leap_with_other_arguments_needs_a_configuration():
    class Decayed(Leap):
        def __init__(self, decay, **options):
            super().__init__(**options)
            self.decay = decay

    with pytest.raises(NotImplementedError, match="Decayed must define get_config"):
        trainer_with(Decayed(3.0))


@pytest.mark.parametrize(
    ("update", "message"),
    [
        (lambda gradient: (gradient, {"loss": tf.ones(())}), r"cannot be named \['loss'\]"),
        (
            lambda gradient: (gradient[1:], {}),
            r"end_task\(\) returned meta-gradients of the shapes",
        ),
        (lambda gradient: ([tf.transpose(g) for g in gradient], {}), "of the shapes"),
    ],
)
def test_what_a_learner_returns_is_checked(update, message):
    class Own(Reptile):
        def end_task(self, state, end):
            return TaskUpdate(*update(super().end_task(state, end).meta_gradient))

    with pytest.raises(ValueError, match=message):
        trainer_with(Own()).fit(FiniteTasks([blobs(0)]), 1, verbose=False)


def test_meta_sgd_learns_its_rates_and_adapts_with_them():
    trainer = TestMetaSGD().trainer()
    before = trainer.evaluate([blobs(10)], steps=5).tasks[0].training_losses
    trainer.fit(TestMetaSGD().tasks(), 2, verbose=False)
    assert any(np.any(rate.numpy() != 1.0) for rate in trainer.learner_variables)
    for rate in trainer.learner_variables:
        rate.assign(tf.zeros(rate.shape))
    trainer.model.set_weights(TestMetaSGD().trainer().model.get_weights())
    still = trainer.evaluate([blobs(10)], steps=5).tasks[0]
    assert still.path_energy == pytest.approx(np.sum(np.diff(still.training_losses) ** 2))
    assert not np.allclose(before, still.training_losses)


def test_joint_training_is_keras_fit_on_the_mixture():
    """The same updates by `model.fit` of the multi-headed model on the mixture's batches."""
    contract = TestJointTraining()
    trainer = contract.trainer()
    model = multi_headed(small_model(), "head", heads=6)
    bank = [v for v in trainer.problem.meta_variables if "per_task" in v.path]
    assert [tuple(v.shape) for v in bank] == [(6, 6, 3), (6, 3)]
    assert not np.allclose(bank[0][0], bank[0][1])  # every head is initialized by itself
    for target, source in zip(
        model.trainable_variables, trainer.problem.meta_variables, strict=True
    ):
        target.assign(source.numpy())
    sampler = trainer.problem.sampler
    sampler.use_distribution(contract.tasks())
    (spec,) = sampler.training_specs(0)
    assert spec.steps == 16  # four steps for each of four tasks
    batches = sampler.resolve(spec).train_batches(spec.seed).take(spec.steps)
    trainer.fit(contract.tasks(), 1, verbose=False)
    model.compile(keras.optimizers.SGD(0.3), loss=CROSS_ENTROPY)
    model.fit(batches, verbose=0)
    for actual, expected in zip(
        trainer.problem.meta_variables, model.trainable_variables, strict=True
    ):
        np.testing.assert_allclose(actual.numpy(), expected.numpy(), rtol=1e-4, atol=1e-6)


def mixture_of(learner, distribution):
    """Returns the training task of a meta-step with three tasks."""
    trainer = trainer_with(
        learner, meta=keras.optimizers.SGD(1.0), task_layers=["head"], meta_batch_size=3
    )
    trainer.problem.sampler.use_distribution(distribution)
    return trainer.problem.sampler.resolve(trainer.problem.sampler.training_specs(0)[0])


def test_a_mixture_takes_one_batch_of_each_task_a_round():
    distribution = FiniteTasks([blobs(number) for number in range(5)])
    mixture = mixture_of(JointTraining(5), distribution)
    numbers = [int(task[0]) for (_, task, _), _ in mixture.train_batches(7).take(9)]
    rounds = [numbers[start : start + 3] for start in (0, 3, 6)]
    members = sorted(member.number for member in mixture.members)
    assert all(sorted(one) == members for one in rounds)
    assert len({tuple(one) for one in rounds}) > 1
    for ((inputs, task, classes), labels), _ in zip(mixture.train_batches(7), range(4)):
        assert inputs.shape == (5, 4)
        assert task.shape == classes.shape == labels.shape == (5,)


def test_a_member_with_few_batches_does_not_end_the_mixture():
    class Two:
        name = "two"

        def train_batches(self, seed):
            inputs = np.full((4, 4), 7.0, np.float32)
            return [(inputs, np.zeros(4, np.int64))] * 2

    batches = MixedTask([blobs(0), Two()]).train_batches(seed=1).take(20)
    assert sum(float(inputs[0, 0]) == 7.0 for inputs, _ in batches) == 10


def test_joint_training_without_task_layers_trains_one_model_on_the_mixture():
    """It equals plain SGD on the mixed batches, since the initialization becomes the end."""
    trainer = trainer_with(
        JointTraining(), meta=keras.optimizers.SGD(1.0), meta_batch_size=3, steps_per_task=2
    )
    distribution = FiniteTasks([blobs(number) for number in range(5)])
    sampler = trainer.problem.sampler
    sampler.use_distribution(distribution)
    [spec] = sampler.training_specs(0)
    mixture = sampler.resolve(spec)
    reference = small_model()
    reference.set_weights(trainer.model.get_weights())
    reference.compile(keras.optimizers.SGD(0.3), trainer.problem.loss)
    reference.fit(mixture.train_batches(spec.seed).take(6), verbose=0)
    trainer.fit(distribution, 1, verbose=False)
    for ours, plain in zip(trainer.model.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-6)


def test_joint_training_with_heads_needs_a_list_of_tasks():
    with pytest.raises(ValueError, match="no fixed list of tasks"):
        mixture_of(JointTraining(), Sinusoids())
    with pytest.raises(ValueError, match="6 tasks, and the learner can hold at most 2"):
        mixture_of(JointTraining(heads=2), TestJointTraining().tasks())
    with pytest.raises(ValueError, match="last layer"):
        multi_headed(small_model(), "body", 3)


@pytest.mark.parametrize("make", [MAML, FOMAML, ANIL, MetaSGD])
def test_query_batches_below_one_are_refused(make):
    with pytest.raises(ValueError, match="at least 1"):
        make(query_batches=0)


def test_all_learners_are_evaluated_by_the_same_loop():
    """From the same weights, learners that take the plain gradient have the same figures."""
    evaluations = []
    for learner in (Leap(), Reptile(), MAML(), NoMetaLearning()):
        keras.utils.set_random_seed(0)
        trainer = MetaTrainer(
            mlp(), MSE, keras.optimizers.SGD(0.02), keras.optimizers.SGD(0.1), learner=learner
        )
        tasks: TaskDistribution = Sinusoids()
        evaluations.append(trainer.evaluate(tasks.sample(2, np.random.default_rng(0)), steps=5))
    assert len({(e.error, e.area_under_error, e.mean("path_length")) for e in evaluations}) == 1


def test_second_order_refuses_models_whose_second_derivatives_are_wrong():
    """Keras's batch norm stops a gradient inside the variance, which first order allows."""

    def trainer(learner):
        keras_norm = [keras.layers.Dense(4), keras.layers.BatchNormalization()]
        return MetaTrainer(
            keras.Sequential([keras.layers.Input((4,)), *keras_norm, keras.layers.Dense(3)]),
            CROSS_ENTROPY,
            keras.optimizers.SGD(0.1),
            keras.optimizers.SGD(0.1),
            learner=learner,
            steps_per_task=2,
            meta_batch_size=1,
        )

    with pytest.raises(ValueError, match="wrong second derivatives"):
        trainer(MAML()).fit(FiniteTasks([blobs(0)]), 1, verbose=False)
    trainer(FOMAML()).fit(FiniteTasks([blobs(0)]), 1, verbose=False)


def trainer_with(learner, inner=None, meta=None, model=None, **options):
    keras.utils.set_random_seed(0)
    return MetaTrainer(
        model or small_model(),
        CROSS_ENTROPY,
        inner or keras.optimizers.SGD(0.3),
        meta or keras.optimizers.SGD(0.1),
        learner=learner,
        steps_per_task=options.pop("steps_per_task", 4),
        meta_batch_size=options.pop("meta_batch_size", 2),
        **options,
    )


@pytest.mark.parametrize(
    "inner",
    [
        lambda: keras.optimizers.SGD(0.3, weight_decay=0.1),
        lambda: keras.optimizers.AdamW(0.1, weight_decay=0.1),
    ],
    ids=["sgd with decay", "adamw"],
)
def test_anil_leaves_the_body_unchanged_on_evaluation_tasks(inner):
    """Weight decay of the optimizer must not move it either."""
    trainer = trainer_with(ANIL(adapted_layers=["head"]), inner=inner())
    evaluator = trainer.problem._evaluator
    task, seed = blobs(10), 3
    parameters = evaluator.model.parameters()
    adapted = evaluator.evaluation_loop.train(
        iter(task.train_batches(seed)), tf.constant(5), parameters, evaluator.model.state(seed)
    )
    moved = [not np.array_equal(a, b) for a, b in zip(parameters, adapted.parameters, strict=True)]
    assert moved == [False, False, True, True]


def test_one_anil_serves_trainers_of_different_models():
    shared = ANIL(adapted_layers=["head"])
    first = trainer_with(shared)
    deeper = keras.Sequential(
        [
            keras.layers.Input((4,)),
            keras.layers.Dense(4, name="head"),
            keras.layers.Dense(3, name="last"),
        ]
    )
    trainer_with(shared, model=deeper)
    assert [part is None for part in first.learner.direction([tf.ones(2)] * 4, [], 0)] == [
        True,
        True,
        False,
        False,
    ]


def test_query_batches_of_the_task_are_used():
    """The training stream of a few-shot task would repeat the examples that were trained on."""

    def meta_step(task):
        trainer = trainer_with(FOMAML(), steps_per_task=1)
        return trainer.fit(FiniteTasks([task]), 1, verbose=False).history["meta_gradient_norm"][0]

    plain, with_queries = blobs(0), blobs(0)
    seeds = []

    def query_batches(seed):
        seeds.append(seed)
        return tf.data.Dataset.from_tensors((50.0 * with_queries.test[0], with_queries.test[1]))

    with_queries.query_batches = query_batches
    assert meta_step(with_queries) != meta_step(plain)
    assert len(seeds) == 2
    assert len(set(seeds)) == 2  # the meta-batch has the task twice, with different seeds
    trainer_with(FOMAML()).evaluate([with_queries], steps=2)
    assert len(seeds) == 2  # evaluation has no query batches


def test_best_weights_are_not_restored_without_the_learners_variables():
    stopper = keras.callbacks.EarlyStopping("loss", restore_best_weights=True)
    with pytest.raises(ValueError, match="learner learned"):
        trainer_with(MetaSGD()).fit(FiniteTasks([blobs(0)]), 1, callbacks=[stopper], verbose=False)
    trainer_with(Leap()).fit(FiniteTasks([blobs(0)]), 1, callbacks=[stopper], verbose=False)


def test_a_checkpoint_of_another_learner_is_refused(tmp_path):
    tasks = FiniteTasks([blobs(0)])
    trainer_with(Leap()).fit(tasks, 1, checkpoint_dir=tmp_path, verbose=False)
    with pytest.raises(ValueError, match="learner.class: Leap then, Reptile now"):
        trainer_with(Reptile()).fit(tasks, 2, checkpoint_dir=tmp_path, verbose=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"meta": keras.optimizers.Adam(1.0)}, "must be keras.optimizers.SGD"),
        ({"meta": keras.optimizers.SGD(0.1)}, "must be keras.optimizers.SGD"),
        (
            {"meta": keras.optimizers.SGD(1.0), "stopping": StopAtError()},
            "Leave stopping out",
        ),
    ],
)
def test_joint_training_refuses_other_settings(options, message):
    with pytest.raises(ValueError, match=message):
        trainer_with(JointTraining(), task_layers=["head"], **options)


def test_heads_of_a_bank_differ_and_have_the_models_precision():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.layers.Input((4,), dtype="float64"),
            keras.layers.Dense(
                3,
                kernel_initializer=keras.initializers.GlorotUniform(seed=5),
                dtype="float64",
                name="head",
            ),
        ]
    )
    bank = multi_headed(model, "head", 3).get_layer("head_per_task")
    assert bank.kernel.dtype == "float64"
    assert not np.allclose(bank.kernel[0], bank.kernel[1])
    regularised = keras.Sequential(
        [keras.layers.Input((4,)), keras.layers.Dense(3, kernel_regularizer="l2", name="head")]
    )
    with pytest.raises(ValueError, match="regularizer"):
        multi_headed(regularised, "head", 3)
    head = keras.layers.Dense(3, bias_initializer="ones", name="head")
    with pytest.raises(ValueError, match="must have a bias that starts at zero"):
        multi_headed(keras.Sequential([keras.layers.Input((4,)), head]), "head", 3)


def test_path_lengths_with_reinitialized_and_meta_learned_heads_can_be_compared():
    """The same network, trained alike: the length includes the head in both cases."""
    shared = trainer_with(Leap())
    fresh_head = trainer_with(Leap(), task_layers=["head"])
    seed = fresh_head.evaluation_seed(0)
    fresh = TaskLayers(fresh_head.model, ["head"]).draw(seed)
    for variable in shared.model.get_layer("head").weights:
        twin = next(
            v for v in fresh_head.model.get_layer("head").weights if v.name == variable.name
        )
        variable.assign(fresh[id(twin)])
    lengths = [
        trainer.evaluate([blobs(10)], steps=8).tasks[0].path_length
        for trainer in (shared, fresh_head)
    ]
    assert lengths[0] == pytest.approx(lengths[1], rel=1e-6)
