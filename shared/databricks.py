"""Databricks job runs, as the product sees them: start one, look at it, cancel it. SDK errors are translated here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from shared.errors import AccessDenied, NotFound, TerminalError, TransientError

if TYPE_CHECKING:
    from databricks.sdk import WorkspaceClient
    from databricks.sdk.service.jobs import RunOutput

AZURE_DATABRICKS_SCOPE = "2ff814a6-3304-4ab8-85cb-cd0e6f879c1d/.default"
"""The resource id of Azure Databricks, the same in every tenant (Microsoft, "Get Microsoft Entra ID tokens")."""

OVER = frozenset({"TERMINATED", "SKIPPED", "INTERNAL_ERROR"})
"""Life-cycle states that end a run (Databricks Jobs API 2.2)."""
WAITING = frozenset({"QUEUED", "PENDING", "BLOCKED", "WAITING_FOR_RETRY"})
"""Life-cycle states of a run that has not begun to work: it waits for a slot, or for its cluster."""
NO_SLOT = frozenset(
    {
        "SKIPPED",
        "MAX_CONCURRENT_RUNS_EXCEEDED",
        "MAX_JOB_QUEUE_SIZE_EXCEEDED",
        "WORKSPACE_RUN_LIMIT_EXCEEDED",
        "MAX_SPARK_CONTEXTS_EXCEEDED",
    }
)
"""Termination codes, and the life-cycle state, of a run that never began because there was no room for it."""
OF_THE_PLATFORM = frozenset(
    {
        "INTERNAL_ERROR",
        "CLOUD_FAILURE",
        "CLUSTER_ERROR",
        "CLUSTER_REQUEST_LIMIT_EXCEEDED",
        "CLUSTER_TERMINATED_BY_USER",
        "DRIVER_ERROR",
        "LIBRARY_INSTALLATION_ERROR",
        "REPOSITORY_CHECKOUT_FAILED",
        "STORAGE_ACCESS_ERROR",
        "BREAKING_CHANGE",
    }
)
"""Termination codes and types of a run that failed for reasons that lie outside the job and may pass."""

Answer = TypeVar("Answer")
Status = Literal["waiting", "running", "succeeded", "failed", "skipped", "platform", "cancelled"]


@dataclass(frozen=True)
class RunState:
    """What a look at a run shows.

    `waiting` and `running` are not over. `failed` is the job's own failure; `skipped` (there was no slot) and
    `platform` (Databricks or the cloud failed) say nothing about the job; `cancelled` was cancelled by somebody.
    """

    status: Status
    message: str = ""
    page: str = ""
    """The run's page in the workspace."""
    worked_seconds: float | None = None
    """How long its tasks worked, waiting left out; None while it is not over."""

    @property
    def is_over(self) -> bool:
        """Whether the run has ended."""
        return self.status not in ("waiting", "running")


def idempotency_token(*parts: object) -> str:
    """A token that is the same for the same parts; Databricks allows 64 characters, and keeps a token for ever."""
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()


class JobRuns(Protocol):
    """What the product asks of the runs of jobs."""

    def start(self, job_id: int, parameters: Mapping[str, str], token: str) -> int:
        """Run the job now and return the run's id; the same `token` returns the run it started before."""

    def look(self, run_id: int) -> RunState:
        """The state of a run. Raises NotFound when nobody knows it any more."""

    def failure(self, run_id: int) -> str:
        """What the tasks of a failed run said."""

    def cancel(self, run_id: int) -> None:
        """Ask a run to stop."""

    def job_name(self, job_id: int) -> str:
        """The name of a job. Raises NotFound or AccessDenied."""


class WorkspaceRuns:
    """The runs of one Databricks workspace.

    `credential` names what the workspace is asked with, for messages. Where it is refused, `renew` is called and the
    call made once more: a token that was rotated is found without a restart.
    """

    def __init__(
        self,
        workspace: WorkspaceClient,
        credential: str = "the identity",
        renew: Callable[[], None] = lambda: None,
    ) -> None:
        self._workspace, self._credential, self._renew = workspace, credential, renew

    def _asked(self, what: str, call: Callable[[], Answer]) -> Answer:
        try:
            with databricks_errors(what, self._credential):
                return call()
        except AccessDenied:
            self._renew()
        with databricks_errors(what, self._credential):
            return call()

    def start(self, job_id: int, parameters: Mapping[str, str], token: str) -> int:
        """Run the job now and return the run's id; the same `token` returns the run it started before."""

        def start() -> int:
            waiter = self._workspace.jobs.run_now(job_id, job_parameters=dict(parameters), idempotency_token=token)
            return int(waiter.run_id)

        return self._asked(f"Databricks job {job_id}", start)

    def look(self, run_id: int) -> RunState:
        """The state of a run. Raises NotFound when Databricks no longer knows it (runs vanish after 60 days)."""
        run = self._asked(f"Databricks run {run_id}", lambda: self._workspace.jobs.get_run(run_id))
        state = run.state
        life = state.life_cycle_state.value if state and state.life_cycle_state else "PENDING"
        page = run.run_page_url or ""
        if life not in OVER:
            return RunState("waiting" if life in WAITING else "running", life, page)
        worked = sum((task.setup_duration or 0) + (task.execution_duration or 0) for task in run.tasks or []) / 1000
        result = state.result_state.value if state and state.result_state else life
        ended = run.status.termination_details if run.status else None
        codes = {named.value for named in (ended.code, ended.type) if named} if ended else set()
        message = f"{result}: {state.state_message}" if state and state.state_message else result
        return RunState(_status(life, result, codes), message, page, worked_seconds=worked)

    def failure(self, run_id: int) -> str:
        """What the tasks of a failed run said, for the record; empty when they said nothing."""

        def outputs_of() -> list[RunOutput]:
            tasks = self._workspace.jobs.get_run(run_id).tasks or []
            return [self._workspace.jobs.get_run_output(task.run_id) for task in tasks if task.run_id]

        outputs = self._asked(f"Databricks run {run_id}", outputs_of)
        said = [text for output in outputs for text in (output.error, output.error_trace) if text]
        return "\n".join(said)

    def cancel(self, run_id: int) -> None:
        """Ask a run to stop."""
        self._asked(f"Databricks run {run_id}", lambda: self._workspace.jobs.cancel_run(run_id))

    def job_name(self, job_id: int) -> str:
        """The name of a job. Raises NotFound or AccessDenied."""
        settings = self._asked(f"Databricks job {job_id}", lambda: self._workspace.jobs.get(job_id).settings)
        return (settings.name if settings else None) or str(job_id)


def _status(life: str, result: str, codes: set[str]) -> Status:
    """The status of a run that is over, by its life-cycle state, its result and its termination code and type."""
    if result == "SUCCESS":
        return "succeeded"
    if life == "SKIPPED" or codes & NO_SLOT:
        return "skipped"
    if life == "INTERNAL_ERROR" or codes & OF_THE_PLATFORM:
        return "platform"
    return "cancelled" if result == "CANCELED" else "failed"


@contextmanager
def databricks_errors(what: str, credential: str) -> Iterator[None]:
    """Translate databricks-sdk's errors about `what`, asked with `credential`, into the tree of `shared.errors`."""
    from databricks.sdk import errors as sdk
    from databricks.sdk.errors.base import DatabricksError
    from requests import exceptions as http

    try:
        yield
    except (sdk.Unauthenticated, sdk.PermissionDenied) as error:
        is_unknown = isinstance(error, sdk.Unauthenticated) or "token" in str(error).lower()
        mend = f"renew {credential}" if is_unknown else f"give {credential} Can Manage Run on the job"
        raise AccessDenied(f"{what}: {error}; {mend}") from error
    except (sdk.NotFound, sdk.ResourceDoesNotExist) as error:
        raise NotFound(f"{what} does not exist: {error}") from error
    except (sdk.TooManyRequests, sdk.TemporarilyUnavailable, sdk.InternalError, sdk.DeadlineExceeded) as error:
        raise TransientError(f"{what}: Databricks is busy: {error}") from error
    except DatabricksError as error:
        if "does not exist" in str(error):
            raise NotFound(f"{what} does not exist: {error}") from error
        raise TerminalError(f"{what}: {error}") from error
    except (http.RequestException, TimeoutError, OSError) as error:
        raise TransientError(f"{what}: Databricks did not answer: {error}") from error


def bearer(name: str, token: Callable[[], str]) -> Any:
    """The SDK's credentials strategy called `name`, which asks for the token at every call.

    The SDK's own strategies read no managed identity, and keep a token for the life of a client.
    """
    from databricks.sdk.credentials_provider import CredentialsStrategy

    class Bearer(CredentialsStrategy):
        def auth_type(self) -> str:
            return name

        def __call__(self, _: Any) -> Callable[[], dict[str, str]]:
            return lambda: {"Authorization": f"Bearer {token()}"}

    return Bearer()
