"""Databricks job runs, as the product sees them: start one, look at it, cancel it. SDK errors are translated here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from shared.errors import AccessDenied, NotFound, TerminalError, TransientError

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential
    from databricks.sdk import WorkspaceClient

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
    """The runs of one Databricks workspace."""

    def __init__(self, workspace: WorkspaceClient) -> None:
        self._workspace = workspace

    def start(self, job_id: int, parameters: Mapping[str, str], token: str) -> int:
        """Run the job now and return the run's id; the same `token` returns the run it started before."""
        with databricks_errors(f"Databricks job {job_id}"):
            waiter = self._workspace.jobs.run_now(job_id, job_parameters=dict(parameters), idempotency_token=token)
            return int(waiter.run_id)

    def look(self, run_id: int) -> RunState:
        """The state of a run. Raises NotFound when Databricks no longer knows it (runs vanish after 60 days)."""
        with databricks_errors(f"Databricks run {run_id}"):
            run = self._workspace.jobs.get_run(run_id)
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
        with databricks_errors(f"Databricks run {run_id}"):
            tasks = self._workspace.jobs.get_run(run_id).tasks or []
            outputs = [self._workspace.jobs.get_run_output(task.run_id) for task in tasks if task.run_id]
        said = [text for output in outputs for text in (output.error, output.error_trace) if text]
        return "\n".join(said)

    def cancel(self, run_id: int) -> None:
        """Ask a run to stop."""
        with databricks_errors(f"Databricks run {run_id}"):
            self._workspace.jobs.cancel_run(run_id)

    def job_name(self, job_id: int) -> str:
        """The name of a job. Raises NotFound or AccessDenied."""
        with databricks_errors(f"Databricks job {job_id}"):
            settings = self._workspace.jobs.get(job_id).settings
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
def databricks_errors(what: str) -> Iterator[None]:
    """Translate databricks-sdk's errors about `what` into the tree of `shared.errors`."""
    from databricks.sdk import errors as sdk
    from databricks.sdk.errors.base import DatabricksError
    from requests import exceptions as http

    try:
        yield
    except (sdk.Unauthenticated, sdk.PermissionDenied) as error:
        raise AccessDenied(f"{what}: {error}; grant the identity Can Manage Run on the job") from error
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


def managed_identity(credential: TokenCredential) -> Any:
    """The SDK's credentials strategy over an azure-identity credential: the SDK itself reads no managed identity."""
    from databricks.sdk.credentials_provider import CredentialsStrategy

    class ManagedIdentity(CredentialsStrategy):
        def auth_type(self) -> str:
            return "azure-managed-identity"

        def __call__(self, _: Any) -> Callable[[], dict[str, str]]:
            return lambda: {"Authorization": f"Bearer {credential.get_token(AZURE_DATABRICKS_SCOPE).token}"}

    return ManagedIdentity()
