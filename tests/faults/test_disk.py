"""Tests of full and read-only disks: one line that says what to do, and then the same bits."""

import os
import resource

import pytest

from leap_tf.experiments.report.page import write_report
from tests.faults import disk
from tests.faults.record import Fault
from tests.result_folders import outcome, task, write_sweep


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return disk.run_undisturbed(tmp_path_factory.mktemp("undisturbed") / "run")


@pytest.fixture
def small_disk(tmp_path):
    try:
        with disk.small_disk(tmp_path / "disk") as mounted:
            yield mounted
    except disk.NoMountError as error:
        pytest.skip(f"no disk can be mounted here: {error}")


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        ("configuration", 1),
        ("checkpoint", 2),
        ("metrics line", 1),
        ("TensorBoard events", 1),
        ("final model", 1),
        ("picture of adaptation", 1),
        ("initialization.json, evaluation.json", 2),
    ],
)
def test_a_full_disk_is_named_and_loses_nothing(small_disk, undisturbed, kind, number):
    fault = Fault("full")
    run = small_disk.path / "run"
    disk.fill_before(small_disk, run, undisturbed, kind=kind, number=number, leave=0, fault=fault)
    assert not fault.failures


def test_a_read_only_folder_is_named_and_loses_nothing(small_disk, undisturbed):
    fault = Fault("read-only")
    run = small_disk.path / "run"
    disk.lock_before(small_disk, run, undisturbed, kind="checkpoint", number=2, fault=fault)
    assert not fault.failures


def test_a_report_that_does_not_fit_leaves_the_one_before(small_disk, tmp_path):
    write_sweep(tmp_path / "first", [({"method": "leap", "seed": "0"}, outcome(task(0.5)))])
    (page,) = write_report(small_disk.path / "report", runs=[tmp_path])
    before = {path: path.read_bytes() for path in (small_disk.path / "report").rglob("*.*")}
    assert page in before
    write_sweep(tmp_path / "second", [({"method": "leap", "seed": "0"}, outcome(task(0.1)))])
    small_disk.fill()
    with pytest.raises(OSError, match="No space left"):
        write_report(small_disk.path / "report", runs=[tmp_path])
    after = {path: path.read_bytes() for path in before}
    assert after == before


@pytest.mark.skipif(os.geteuid() == 0, reason="permission bits do not stop root")
def test_a_folder_without_permission_is_named(tmp_path):
    tmp_path.chmod(0o500)
    assert "Make the folder writable" in disk.train(tmp_path / "run")


def test_a_limit_on_the_size_of_files_is_named_and_loses_nothing(tmp_path, undisturbed):
    """A fault that needs no permission to mount a disk."""
    fault = Fault("limit")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, hard))

    def lift():
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    try:
        with disk.before_call(disk.WRITERS["final model"], 1, limit):
            message = disk.train(tmp_path / "run")
    finally:
        lift()
    disk.after(
        lift,
        tmp_path / "run",
        undisturbed,
        message=message,
        words="File too large",
        kind="final model",
        fault=fault,
    )
    assert not fault.failures
