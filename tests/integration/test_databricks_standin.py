"""The Databricks stand-in, tested with the real databricks-sdk."""

import json
import logging
import os
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from databricks.sdk.errors import PermissionDenied, ResourceDoesNotExist
from databricks.sdk.errors.platform import InvalidParameterValue
from databricks.sdk.service.jobs import RunLifeCycleState, RunLifecycleStateV2State, RunResultState

from localcloud import workers
from shared.errors import AccessDenied
from shared.secrets import Secrets
from shared.services import Services
from tests.integration.standin import SAMPLE, SETTINGS, StandIn, no_other_databricks
from tests.localcloud_fixtures import is_alive, wait_for_the_end
from tests.waiting import PATIENCE, eventually
from tests.world import settings


def has_lines(log: Path, lines: int) -> bool:
    return log.exists() and len(log.read_text().splitlines()) == lines


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., StandIn]]:
    """A function that starts stand-ins on one state folder; its arguments change fields of `SETTINGS`."""
    no_other_databricks(tmp_path, monkeypatch)
    started: list[StandIn] = []

    def start(**changes: Any) -> StandIn:
        started.append(StandIn(tmp_path, replace(SETTINGS, **changes)))
        return started[-1]

    yield start
    for stand_in in started:
        stand_in.stop()


@pytest.fixture
def stand_in(make: Callable[..., StandIn]) -> StandIn:
    return make()


def test_a_successful_run_has_its_output_and_times(stand_in: StandIn) -> None:
    run = stand_in.wait(stand_in.start(say="naïve 'quotes' --and $dollars"))
    assert run.state.result_state == RunResultState.SUCCESS
    assert run.status.state == RunLifecycleStateV2State.TERMINATED
    assert run.status.termination_details.code.value == "SUCCESS"
    assert 0 < run.execution_duration <= run.end_time - run.start_time
    output = stand_in.jobs.get_run_output(run.tasks[0].run_id)
    assert output.logs == "said: naïve 'quotes' --and $dollars\nlake: lake"
    assert output.error is None


def test_a_failed_run_has_its_error(stand_in: StandIn) -> None:
    run = stand_in.wait(stand_in.start(exit_code="3"))
    assert run.state.result_state == RunResultState.FAILED
    assert run.status.termination_details.code.value == "RUN_EXECUTION_ERROR"
    output = stand_in.jobs.get_run_output(run.tasks[0].run_id)
    assert output.error == "ValueError: on request"
    assert "said: " in output.error_trace


def test_the_output_belongs_to_the_task_and_not_to_the_run(stand_in: StandIn) -> None:
    run_id = stand_in.start()
    with pytest.raises(InvalidParameterValue, match="multiple tasks"):
        stand_in.jobs.get_run_output(run_id)


def test_one_token_returns_one_run_also_after_its_end_and_after_a_restart(make: Callable[..., StandIn]) -> None:
    first = make()
    ids = [first.jobs.run_now(SAMPLE, idempotency_token="a").run_id for _ in range(2)]
    other = first.jobs.run_now(SAMPLE, idempotency_token="b").run_id
    first.wait(other)
    second = make()
    ids.append(second.jobs.run_now(SAMPLE, idempotency_token="a").run_id)
    assert len(set(ids)) == 1
    assert other != ids[0]
    assert second.start() not in (ids[0], other)


def test_a_token_of_65_characters_is_refused(stand_in: StandIn) -> None:
    with pytest.raises(InvalidParameterValue, match="64"):
        stand_in.jobs.run_now(SAMPLE, idempotency_token="x" * 65)


def test_cancelling_ends_the_run_and_its_processes(stand_in: StandIn, tmp_path: Path) -> None:
    pid_file = tmp_path / "child"
    run_id = stand_in.start(sleep_seconds="600", child_pid_file=str(pid_file))
    stand_in.wait_for(run_id, lambda _: pid_file.exists() and bool(pid_file.read_text()))
    child = int(pid_file.read_text())
    assert is_alive(child)
    stand_in.jobs.cancel_run(run_id)
    run = stand_in.wait(run_id)
    assert run.state.result_state == RunResultState.CANCELED
    assert run.status.termination_details.code.value == "USER_CANCELED"
    wait_for_the_end(child)


def test_a_queued_run_waits_its_turn_and_can_be_cancelled(stand_in: StandIn) -> None:
    running, queued = stand_in.start(sleep_seconds="600"), stand_in.start(say="never")
    stand_in.wait_for(running, lambda run: run.state.life_cycle_state == RunLifeCycleState.RUNNING)
    assert stand_in.jobs.get_run(queued).status.state == RunLifecycleStateV2State.QUEUED
    stand_in.jobs.cancel_run(queued)
    stand_in.jobs.cancel_run(running)
    assert stand_in.wait(queued).state.result_state == RunResultState.CANCELED
    assert stand_in.jobs.get_run(queued).execution_duration == 0


def test_two_runs_at_once_can_be_configured(make: Callable[..., StandIn]) -> None:
    stand_in = make(runs_at_once=2)
    for run_id in (stand_in.start(sleep_seconds="600"), stand_in.start(sleep_seconds="600")):
        run = stand_in.wait_for(run_id, lambda run: run.state.life_cycle_state == RunLifeCycleState.RUNNING)
        assert run.end_time == 0


def test_a_run_that_takes_too_long_is_ended(make: Callable[..., StandIn]) -> None:
    stand_in = make(time_limit=0.3)
    run = stand_in.wait(stand_in.start(sleep_seconds="600"))
    assert run.state.result_state == RunResultState.TIMEDOUT


def test_a_run_that_a_restart_interrupts_has_failed(make: Callable[..., StandIn]) -> None:
    first = make()
    run_id = first.start(sleep_seconds="600")
    first.wait_for(run_id, lambda run: run.state.life_cycle_state == RunLifeCycleState.RUNNING)
    run = make().wait(run_id)
    assert run.state.life_cycle_state == RunLifeCycleState.INTERNAL_ERROR
    assert run.state.result_state == RunResultState.FAILED


def test_jobs_are_listed_and_described(stand_in: StandIn) -> None:
    assert [job.job_id for job in stand_in.jobs.list()] == [SAMPLE]
    assert list(stand_in.jobs.list(name="other")) == []
    assert stand_in.jobs.get(SAMPLE).settings.name == "tests.integration.sample_job"


def test_unknown_jobs_and_runs_are_refused(stand_in: StandIn) -> None:
    with pytest.raises(ResourceDoesNotExist):
        stand_in.jobs.get(99)
    with pytest.raises(ResourceDoesNotExist):
        stand_in.jobs.get_run(99)
    with pytest.raises(InvalidParameterValue, match="Job 99 does not exist"):
        stand_in.jobs.run_now(99)


def test_a_wrong_and_a_missing_token_are_refused(stand_in: StandIn) -> None:
    with pytest.raises(PermissionDenied, match="Invalid access token"):
        stand_in.connect("wrong").jobs.get(SAMPLE)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{stand_in.url}/api/2.2/jobs/list", timeout=PATIENCE)
    with refused.value as answer:
        assert (answer.code, json.load(answer)["error_code"]) == (401, "UNAUTHENTICATED")


class TestWorkers:
    """Runs that share an interpreter."""

    @staticmethod
    def output(stand_in: StandIn, expected: str = "SUCCESS", **parameters: str) -> list[str]:
        """The lines that a run writes, without the two lines of every run; checks that the run ends as expected."""
        run = stand_in.wait(stand_in.start(**parameters))
        output = stand_in.jobs.get_run_output(run.tasks[0].run_id)
        assert run.state.result_state.value == expected, output.logs
        lines: list[str] = output.logs.splitlines()
        assert lines[:2] == ["said: ", "lake: lake"]
        return lines[2:]

    def test_one_interpreter_executes_several_runs(self, stand_in: StandIn) -> None:
        pids = {self.output(stand_in, describe="pid")[0] for _ in range(3)}
        assert len(pids) == 1
        failing = self.output(stand_in, "FAILED", describe="pid", exit_code="3")
        assert failing == [*pids, "ValueError: on request"]
        assert self.output(stand_in, describe="pid") == [*pids]

    def test_a_run_finds_no_traces_of_the_run_before(self, stand_in: StandIn) -> None:
        (before,) = self.output(stand_in, describe="world")
        (pid,) = self.output(stand_in, describe="pid", leave="another world")
        assert self.output(stand_in, describe="world") == [before]
        assert self.output(stand_in, describe="pid") == [pid]
        found = json.loads(before)
        assert (found["name"], found["module"], found["handlers"]) == ("__main__", False, 0)

    @pytest.mark.parametrize(
        ("left", "last_words"), [("thread", "the thread's last words"), ("exit handler", "the handler's last words")]
    )
    def test_threads_and_exit_handlers_of_a_run_end_with_its_interpreter(
        self, stand_in: StandIn, left: str, last_words: str
    ) -> None:
        pid, *rest = self.output(stand_in, describe="pid", leave=left)
        assert rest == [last_words]
        wait_for_the_end(int(pid))
        assert self.output(stand_in, "FAILED", leave=left, exit_code="3") == ["ValueError: on request", last_words]
        assert self.output(stand_in, describe="pid") != [pid]

    def test_a_process_that_a_run_leaves_is_ended(self, stand_in: StandIn, tmp_path: Path) -> None:
        pid_file = tmp_path / "child"
        self.output(stand_in, child_pid_file=str(pid_file))
        assert not is_alive(int(pid_file.read_text()))

    @pytest.mark.parametrize(("death", "code"), [("exit", 5), ("kill", -9)])
    def test_a_crash_of_a_run_ends_its_interpreter_but_no_other_run(
        self, stand_in: StandIn, death: str, code: int
    ) -> None:
        (pid,) = self.output(stand_in, "FAILED", describe="pid", die=death)
        failed = stand_in.wait(stand_in.start(die=death))
        assert failed.state.state_message == f"The job ended with code {code}."
        assert self.output(stand_in, describe="pid") != [pid]

    def test_cancelling_a_run_ends_its_interpreter(self, stand_in: StandIn) -> None:
        running = stand_in.start(describe="pid", sleep_seconds="600")
        stand_in.wait_for(running, lambda run: run.state.life_cycle_state == RunLifeCycleState.RUNNING)
        following = stand_in.start(describe="pid")
        stand_in.jobs.cancel_run(running)
        task = stand_in.wait(running).tasks[0].run_id
        stopped = stand_in.jobs.get_run_output(task).logs.splitlines()
        done = stand_in.wait(following)
        assert done.state.result_state == RunResultState.SUCCESS
        assert stand_in.jobs.get_run_output(done.tasks[0].run_id).logs.splitlines()[-1] not in stopped

    def test_an_interpreter_is_replaced_after_a_number_of_runs(
        self, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("localcloud.workers.RUNS_EACH", 2)
        first, second, third = (self.output(stand_in, describe="pid") for _ in range(3))
        assert first == second != third
        wait_for_the_end(int(first[0]))

    def test_the_next_run_uses_an_edited_source(
        self, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (first,) = self.output(stand_in, describe="pid")
        package = tmp_path / "package"
        (package / "room").mkdir(parents=True)
        source = package / "room" / "module.py"
        source.write_text("")
        edited = workers.source_files([package])
        monkeypatch.setattr(workers, "source_files", lambda _: edited)
        (second,) = self.output(stand_in, describe="pid")
        assert self.output(stand_in, describe="pid") == [second] != [first]
        os.utime(source, (1, 1))
        monkeypatch.undo()
        assert workers.source_files([package]) != edited
        assert workers.source_files([package, tmp_path / "no-package"]) == {(source, 1_000_000_000)}

    def test_two_concurrent_runs_have_separate_interpreters(self, make: Callable[..., StandIn], tmp_path: Path) -> None:
        stand_in = make(runs_at_once=2)
        pids = set()
        for run_id in [stand_in.start(describe="pid", sleep_seconds="600") for _ in range(2)]:
            log = tmp_path / "logs" / f"job-{run_id}.log"
            eventually(partial(has_lines, log, 3), f"three lines of run {run_id}")
            pids.add(log.read_text().splitlines()[2])
        assert len(pids) == 2

    def test_a_failed_import_is_the_error_of_the_run(self, make: Callable[..., StandIn]) -> None:
        stand_in = make(preload=("no_such_module",))
        run = stand_in.wait(stand_in.start())
        assert run.state.result_state == RunResultState.FAILED
        output = stand_in.jobs.get_run_output(run.tasks[0].run_id)
        assert output.error == "ModuleNotFoundError: No module named 'no_such_module'"

    def test_all_interpreters_end_with_the_stand_in(self, make: Callable[..., StandIn], tmp_path: Path) -> None:
        stand_in = make(runs_at_once=2)
        (idle,) = self.output(stand_in, describe="pid")
        running = stand_in.start(describe="pid", sleep_seconds="600")
        log = tmp_path / "logs" / f"job-{running}.log"
        stand_in.wait_for(running, lambda _: log.exists() and len(log.read_text().splitlines()) == 3)
        stand_in.stop()
        wait_for_the_end(int(idle))
        assert len(list((tmp_path / "logs").glob("worker-*.log"))) == 1


class TestFaults:
    def test_the_fault_fail_applies_to_one_run(self, stand_in: StandIn) -> None:
        stand_in.fault("fail")
        failed, fine = stand_in.wait(stand_in.start()), stand_in.wait(stand_in.start())
        assert (failed.state.result_state, fine.state.result_state) == (RunResultState.FAILED, RunResultState.SUCCESS)

    def test_the_fault_hang_lasts_until_the_run_is_cancelled(self, stand_in: StandIn) -> None:
        stand_in.fault("hang")
        run_id = stand_in.start()
        stand_in.wait_for(run_id, lambda run: run.state.life_cycle_state == RunLifeCycleState.RUNNING)
        stand_in.jobs.cancel_run(run_id)
        assert stand_in.wait(run_id).state.result_state == RunResultState.CANCELED

    def test_the_fault_drop_answer_starts_the_run_without_a_response(self, stand_in: StandIn) -> None:
        stand_in.fault("drop_answer")
        body = json.dumps({"job_id": SAMPLE, "idempotency_token": "t"}).encode()
        request = urllib.request.Request(
            f"{stand_in.url}/api/2.2/jobs/run-now", body, {"Authorization": f"Bearer {SETTINGS.token}"}
        )
        with pytest.raises(OSError, match=r"[Rr]emote|reset"):
            urllib.request.urlopen(request, timeout=PATIENCE)
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            assert json.load(answer)["number_in_job"] == 1

    @pytest.mark.parametrize(("kind", "status"), [("too_many_requests", 429), ("unavailable", 503)])
    def test_the_sdk_retries_when_the_service_is_busy(
        self, stand_in: StandIn, kind: str, status: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        stand_in.fault(kind)
        with caplog.at_level(logging.DEBUG, logger="databricks.sdk"):
            assert stand_in.jobs.get(SAMPLE).job_id == SAMPLE
        assert f"< {status}" in caplog.text

    def test_an_unknown_fault_is_refused(self, stand_in: StandIn) -> None:
        with pytest.raises(urllib.error.HTTPError) as refused:
            stand_in.fault("earthquake")
        with refused.value as answer:
            assert answer.code == 400


def test_a_token_that_is_rotated_is_picked_up_without_a_restart(make: Callable[..., StandIn]) -> None:
    stand_in = make(token="first")
    environment = {"DATABRICKS_TOKEN": "first"}
    services = Services().replace(
        settings=settings(databricks_host=stand_in.url, databricks_job_id=SAMPLE), secrets=Secrets(environment)
    )
    run_id = services.job_runs.start(SAMPLE, {}, "a")
    stand_in.change_token("second")
    with pytest.raises(AccessDenied, match=r"renew the token in the secret databricks-token$"):
        services.job_runs.look(run_id)
    environment["DATABRICKS_TOKEN"] = "second"
    assert services.job_runs.start(SAMPLE, {}, "a") == run_id
    stand_in.wait(run_id)
