"""The functions host with Azurite: every trigger, retries, poison, receipts, leases, keys, start and stop."""

import asyncio
import base64
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from azure.storage.blob import BlobServiceClient
from azure.storage.queue.aio import QueueClient

from localcloud import azurite
from localcloud.host import queues
from localcloud.host.config import QueueOptions
from localcloud.processes import PROJECT_ROOT, free_ports
from tests.integration.host_cloud import APP, Cloud, HostProcess
from tests.listeners.events import event
from tests.waiting import PATIENCE, eventually


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    folder = tmp_path_factory.mktemp("azurite")
    blob_port, queue_port = free_ports(2)
    process = azurite.start(folder, blob_port, queue_port, folder / "log")
    connection = azurite.connection_string(Blob=blob_port, Queue=queue_port)
    with BlobServiceClient.from_connection_string(connection) as blobs:
        yield Cloud(connection, blobs)
    process.stop()


@pytest.fixture(scope="module")
def host(cloud: Cloud, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    """A host that requires keys, shared by all tests that need no restart."""
    cloud.create_queue("work")
    for container in ("inbox", "streams", "events"):
        cloud.blobs.create_container(container)
    running = HostProcess(tmp_path_factory.mktemp("host"), cloud, auth=True, INBOX="inbox", WORK_QUEUE="work")
    yield running
    running.process.stop()


@pytest.fixture(scope="module")
def open_host(cloud: Cloud, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    """A host that requires no keys."""
    cloud.blobs.create_container("open")
    settings: dict[str, Any] = {"INBOX": "open", "WORK_QUEUE": "none-here", "AzureFunctionsWebHost__hostid": "open"}
    running = HostProcess(tmp_path_factory.mktemp("open-host"), cloud, **settings)
    yield running
    running.process.stop()


class TestQueues:
    def test_a_message_arrives_with_its_metadata_and_is_deleted(self, cloud: Cloud, host: HostProcess) -> None:
        before = datetime.now(UTC).replace(microsecond=0)
        cloud.send("work", "fine")
        (seen,) = host.wait_for("on_message", text="fine")
        assert seen["count"] == 1
        assert seen["id"]
        assert seen["receipt"]
        inserted, expires = datetime.fromisoformat(seen["inserted"]), datetime.fromisoformat(seen["expires"])
        assert before <= inserted <= datetime.now(UTC)
        assert expires - inserted == timedelta(days=7)
        assert datetime.fromisoformat(seen["next_visible"]) > inserted
        assert f"on_message {seen['invocation'][:8]}: working on fine" in host.log
        eventually(lambda: cloud.count("work") == 0, "the message to be deleted")

    def test_a_failing_message_is_retried_as_configured_and_then_goes_to_poison(
        self, cloud: Cloud, host: HostProcess
    ) -> None:
        cloud.send("work", "fail")
        encoded = base64.b64encode(b"fail").decode()
        seen = host.wait_for("on_message", 3, text="fail")
        assert eventually(lambda: cloud.peek("work-poison"), "the poison message") == [encoded]
        eventually(lambda: cloud.count("work") == 0, "the message to be deleted")
        assert [call["count"] for call in seen] == [1, 2, 3]
        assert "reached maxDequeueCount of 3. Moving message to queue 'work-poison'" in host.log
        assert len(host.seen("on_message", text="fail")) == 3
        cloud.delete_queue("work-poison")

    def test_a_message_in_a_wrong_encoding_goes_to_poison_with_a_log_line(
        self, cloud: Cloud, host: HostProcess
    ) -> None:
        cloud.send("work", '{"not": "base64"}', encoded=False)
        eventually(lambda: "is not base64" in host.log, "the log line")
        eventually(lambda: cloud.count("work") == 0, "the message to go")
        assert cloud.peek("work-poison") == ['{"not": "base64"}']
        assert host.seen("on_message", text='{"not": "base64"}') == []
        cloud.delete_queue("work-poison")

    def test_a_queue_may_be_created_later_and_a_function_may_be_async(self, cloud: Cloud, host: HostProcess) -> None:
        cloud.create_queue("async-work")
        cloud.send("async-work", "ünï")
        assert host.wait_for("on_message_async")[0]["text"] == "ünï"


class TestBlobs:
    def test_a_blob_is_delivered_once_and_again_after_a_change(self, cloud: Cloud, host: HostProcess) -> None:
        cloud.upload("inbox", "a/one.txt", "first")
        (seen,) = host.wait_for("on_blob", blob="a/one.txt")
        assert (seen["container"], seen["text"]) == ("inbox", "first")
        cloud.upload("inbox", "a/one.txt", "second")
        cloud.upload("inbox", "other.csv", "not of the pattern")
        host.wait_for("on_blob", text="second")
        time.sleep(1.2)
        assert [call["text"] for call in host.seen("on_blob", blob="a/one.txt")] == ["first", "second"]
        assert host.seen("on_blob", blob="other.csv") == []

    def test_a_failing_blob_is_tried_five_times_and_then_goes_to_poison(self, cloud: Cloud, host: HostProcess) -> None:
        cloud.upload("inbox", "bad.txt", "fail")
        etag = cloud.blobs.get_blob_client("inbox", "bad.txt").get_blob_properties().etag
        host.wait_for("on_blob", 5, blob="bad.txt")
        (message,) = eventually(lambda: cloud.peek("webjobs-blobtrigger-poison"), "the poison message")
        assert json.loads(base64.b64decode(message)) == {
            "Type": "BlobTrigger",
            "FunctionId": "Host.Functions.on_blob",
            "BlobType": "BlockBlob",
            "ContainerName": "inbox",
            "BlobName": "bad.txt",
            "ETag": etag,
        }
        assert len(host.seen("on_blob", blob="bad.txt")) == 5

    def test_a_blob_can_be_read_as_an_input_stream(self, cloud: Cloud, host: HostProcess) -> None:
        cloud.upload("streams", "s.bin", "stream")
        (seen,) = host.wait_for("on_stream")
        assert (seen["name"], seen["text"], seen["length"]) == ("streams/s.bin", "stream", 6)

    def test_blob_receipts_are_kept_over_a_restart_of_the_host(self, cloud: Cloud, tmp_path: Path) -> None:
        cloud.blobs.create_container("restarted")
        settings: dict[str, Any] = {
            "INBOX": "restarted",
            "WORK_QUEUE": "none-here",
            "AzureFunctionsWebHost__hostid": "restarted",
        }
        cloud.upload("restarted", "old.txt", "old")
        first = HostProcess(tmp_path, cloud, **settings)
        first.wait_for("on_blob", blob="old.txt")
        assert first.process.stop() == 0
        cloud.upload("restarted", "new.txt", "new")
        second = HostProcess(tmp_path, cloud, **settings)
        second.wait_for("on_blob", blob="new.txt")
        time.sleep(0.7)
        second.process.stop()
        assert len(second.seen("on_blob")) == 2


class TestEventGrid:
    @pytest.fixture
    def webhook(self, host: HostProcess) -> str:
        return f"/runtime/webhooks/blobs?functionName=Host.Functions.on_event&code={host.keys['blobs_extension']}"

    def test_the_webhook_answers_the_subscription_handshake(self, host: HostProcess, webhook: str) -> None:
        event = {"eventType": "Microsoft.EventGrid.SubscriptionValidationEvent", "data": {"validationCode": "abc"}}
        reply = host.request("POST", webhook, [event], aeg_event_type="SubscriptionValidation")
        assert (reply.status, json.loads(reply.body)) == (200, {"validationResponse": "abc"})

    def test_created_blobs_are_delivered_only_by_events(self, cloud: Cloud, host: HostProcess, webhook: str) -> None:
        cloud.upload("events", "in/a.txt", "a")
        cloud.upload("events", "in/b.txt", "b")
        time.sleep(1.2)
        assert host.seen("on_event") == []
        events = [event(cloud.blobs.get_blob_client("events", "in/a.txt"))]
        assert host.request("POST", webhook, events, aeg_event_type="Notification").status == 202
        host.wait_for("on_event", blob="in/a.txt")
        assert host.seen("on_event", blob="in/b.txt") == []
        # Delivered again: an event source has no receipts, so the function runs again.
        host.request("POST", webhook, events, aeg_event_type="Notification")
        host.wait_for("on_event", 2, blob="in/a.txt")

    def test_invalid_webhook_requests_are_refused(self, host: HostProcess, webhook: str) -> None:
        assert host.request("POST", webhook.partition("&")[0], []).status == 401
        assert host.request("POST", webhook, "no json").status == 500
        assert host.request("POST", webhook, [{"specversion": "1.0"}]).status == 500


class TestHttp:
    def test_a_function_gets_the_request_and_its_response_is_returned(self, host: HostProcess) -> None:
        reply = host.request("POST", "/api/echo/a%20b/7?q=1&q=2&code=x", '{"é": 1}', X_Given="yes")
        seen = json.loads(reply.body)
        assert reply.status == 201
        assert (reply.headers["Content-Type"], reply.headers["X-Sent"]) == ("application/json", "yes")
        assert seen == {
            "method": "POST",
            "url": f"{host.url}/api/echo/a%20b/7?q=1&q=2&code=x",
            "route": {"kind": "a b", "number": "7"},
            "query": {"q": "1,2", "code": "x"},
            "header": "yes",
            "body": '{"é": 1}',
        }

    def test_requests_are_matched_by_route_and_method(self, host: HostProcess) -> None:
        assert json.loads(host.request("GET", "/api/echo/a").body)["route"] == {"kind": "a"}
        for method, path in (("GET", "/api/echo/a/b"), ("PUT", "/api/echo/a"), ("HEAD", "/api/echo/a"), ("GET", "/no")):
            assert host.request(method, path).status == 404
        assert host.request("GET", "/").status == 200
        assert host.request("GET", "/api/breaks").status == 500
        assert "failed on request" in host.log

    def test_a_function_requires_a_key_of_its_access_level(self, host: HostProcess) -> None:
        keys = host.keys
        refused = host.request("GET", "/api/guarded")
        assert (refused.status, refused.body) == (401, "")
        assert host.request("GET", "/api/guarded?code=wrong").status == 401
        assert host.request("GET", f"/api/guarded?code={keys['functions']['guarded']}").body == "open"
        assert host.request("GET", "/api/guarded", x_functions_key=keys["default"]).body == "open"
        assert host.request("HEAD", "/api/guarded", x_functions_key=keys["default"]).body == ""
        assert host.request("GET", "/api/owner", x_functions_key=keys["default"]).status == 401
        assert host.request("GET", "/api/owner", x_functions_key=keys["master"]).status == 200

    def test_cors_allows_only_the_configured_origin(self, host: HostProcess) -> None:
        path, wanted = "/api/echo/a", {"Access_Control_Request_Method": "GET"}
        assert host.request("OPTIONS", path, Origin="http://page", **wanted).status == 204
        assert host.request("OPTIONS", path, Origin="http://other", **wanted).status == 404
        assert host.request("GET", path, Origin="http://page").headers["Access-Control-Allow-Origin"] == "http://page"
        assert "Access-Control-Allow-Origin" not in host.request("GET", path, Origin="http://other").headers


class TestAdmin:
    def test_the_admin_api_requires_the_master_key(self, host: HostProcess) -> None:
        for method, path in (
            ("GET", "/admin/host/status"),
            ("GET", "/admin/functions"),
            ("POST", "/admin/functions/tick"),
        ):
            assert host.request(method, path, x_functions_key=host.keys["default"]).status == 401
        assert host.request("GET", "/admin/host/ping").status == 200

    def test_the_admin_api_has_the_status_and_the_functions(self, host: HostProcess) -> None:
        key = host.keys["master"]
        assert json.loads(host.request("GET", "/admin/host/status", x_functions_key=key).body)["state"] == "Running"
        functions = json.loads(host.request("GET", "/admin/functions", x_functions_key=key).body)
        blob = next(item for item in functions if item["name"] == "on_blob")
        assert blob["config"]["bindings"][0]["path"] == "%INBOX%/{name}.txt"
        assert len(functions) == 11

    def invoke(self, host: HostProcess, name: str, text: str, query: str = "?wait=true") -> Any:
        key = host.keys["master"]
        return host.request("POST", f"/admin/functions/{name}{query}", {"input": text}, x_functions_key=key)

    def test_every_kind_of_function_can_be_started_by_hand(self, cloud: Cloud, host: HostProcess) -> None:
        cloud.upload("events", "in/fired.txt", "x")
        for name, text in (("tick", ""), ("on_message", "fired"), ("on_event", "events/in/fired.txt")):
            outcome = json.loads(self.invoke(host, name, text).body)
            assert outcome["succeeded"], outcome
            assert outcome["function"] == name
        assert len(host.seen("tick")) == 1
        assert host.seen("tick")[0]["status"]["Next"].endswith("03:00:00+00:00")
        assert host.seen("on_message", text="fired")[0]["count"] == 1
        assert len(host.seen("on_event", blob="in/fired.txt")) == 1

    def test_without_wait_the_call_is_accepted_and_the_function_runs(self, host: HostProcess) -> None:
        assert self.invoke(host, "on_message", "later", "").status == 202
        host.wait_for("on_message", text="later")

    def test_a_failure_is_reported_to_the_caller(self, host: HostProcess) -> None:
        outcome = json.loads(self.invoke(host, "on_message", "fail").body)
        assert (outcome["succeeded"], outcome["error"]) == (False, "RuntimeError: failed on request")
        assert self.invoke(host, "nobody", "").status == 404
        assert self.invoke(host, "echo", "").status == 400
        assert "does not exist" in self.invoke(host, "on_blob", "inbox/absent.txt").body
        assert "its path is" in self.invoke(host, "on_blob", "inbox/absent.csv").body


class TestOpenHost:
    """Without --auth, as with `func start`, no request needs a key."""

    def test_functions_of_every_access_level_need_no_key(self, open_host: HostProcess) -> None:
        assert open_host.request("GET", "/api/guarded").body == "open"
        assert open_host.request("GET", "/api/owner").body == "the owner"
        assert open_host.request("GET", "/api/guarded", x_functions_key="any").status == 200

    def test_the_admin_api_needs_no_key(self, open_host: HostProcess) -> None:
        assert json.loads(open_host.request("GET", "/admin/host/status").body)["state"] == "Running"
        assert len(json.loads(open_host.request("GET", "/admin/functions").body)) == 11
        outcome = json.loads(open_host.request("POST", "/admin/functions/tick?wait=true", {}).body)
        assert (outcome["function"], outcome["succeeded"]) == ("tick", True)

    def test_the_webhook_of_blob_events_needs_no_key(self, cloud: Cloud, open_host: HostProcess) -> None:
        events = cloud.blobs.get_container_client("events")
        if not events.exists():
            events.create_container()
        cloud.upload("events", "in/open.txt", "x")
        webhook = "/runtime/webhooks/blobs?functionName=Host.Functions.on_event"
        announced = [event(events.get_blob_client("in/open.txt"))]
        reply = open_host.request("POST", webhook, announced, aeg_event_type="Notification")
        assert reply.status == 202
        open_host.wait_for("on_event", blob="in/open.txt")

    def test_an_open_host_creates_no_keys_and_listens_only_on_this_machine(self, open_host: HostProcess) -> None:
        assert not (open_host.folder / "host-keys.json").exists()
        with socket.socket() as probe:  # connects as another machine would, to another address of this machine
            assert probe.connect_ex(("127.0.0.2", int(open_host.url.rpartition(":")[2]))) != 0


class TestTimers:
    def test_run_on_startup_calls_the_function_with_its_context(self, host: HostProcess) -> None:
        (seen,) = host.wait_for("at_startup")
        assert (seen["past_due"], seen["name"]) == (False, "at_startup")
        assert seen["id"] in host.log

    def test_a_missed_scheduled_time_fires_once_at_the_start(
        self, cloud: Cloud, host: HostProcess, tmp_path: Path
    ) -> None:
        status = cloud.blobs.get_blob_client("azure-webjobs-hosts", "timers/late/Host.Functions.tick/status")
        missed = {"Last": "2020-01-01T03:00:00+00:00", "Next": "2020-01-02T03:00:00+00:00"}
        status.upload_blob(json.dumps(missed | {"LastUpdated": missed["Last"]}))
        settings: dict[str, Any] = {
            "INBOX": "none-here",
            "WORK_QUEUE": "none-here",
            "AzureFunctionsWebHost__hostid": "late",
        }
        late = HostProcess(tmp_path, cloud, **settings)
        (seen,) = late.wait_for("tick")
        assert seen["past_due"] is True
        assert seen["status"]["Last"] == missed["Last"]
        eventually(lambda: b"2020-" not in status.download_blob().readall(), "the new status")
        late.process.stop()
        assert len(late.seen("tick")) == 1
        assert json.loads(status.download_blob().readall())["Next"].endswith("03:00:00+00:00")


class TestStartAndStop:
    def test_a_running_function_finishes_before_the_host_stops(self, cloud: Cloud, tmp_path: Path) -> None:
        cloud.create_queue("stopping")
        host = HostProcess(tmp_path, cloud, INBOX="none-here", WORK_QUEUE="stopping")
        cloud.send("stopping", "sleep 2")
        host.wait_for("on_message", text="sleep 2")
        assert host.process.stop() == 0
        assert "Executed 'Functions.on_message' (Succeeded" in host.log
        assert cloud.count("stopping") == 0

    def command(
        self, folder: Path, app: Path, values: dict[str, str], port: int = 0
    ) -> subprocess.CompletedProcess[str]:
        settings = folder / "local.settings.json"
        settings.write_text(json.dumps({"Values": values}))
        options = ["--settings", str(settings), "--app", str(app), "--port", str(port), "--state", str(folder)]
        return subprocess.run(
            [sys.executable, "-m", "localcloud.host", *options],
            cwd=PROJECT_ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def test_an_app_that_cannot_be_imported_stops_the_host(self, tmp_path: Path) -> None:
        (tmp_path / "host.json").write_text('{"version": "2.0"}')
        (tmp_path / "function_app.py").write_text("import no_such_module\n")
        ended = self.command(tmp_path, tmp_path / "function_app.py", {})
        assert ended.returncode == 1
        assert "No job functions found" in ended.stderr
        assert "ModuleNotFoundError: No module named 'no_such_module'" in ended.stderr

    def test_missing_settings_stop_the_host(self, tmp_path: Path) -> None:
        ended = self.command(tmp_path, APP, {"INBOX": "x", "WORK_QUEUE": "y"})
        assert ended.returncode == 1
        assert "TICK_SCHEDULE: function tick, binding timer, schedule = '%TICK_SCHEDULE%'" in ended.stderr

    def test_a_port_in_use_stops_the_host(self, cloud: Cloud, host: HostProcess, tmp_path: Path) -> None:
        values = {"INBOX": "x", "WORK_QUEUE": "y", "TICK_SCHEDULE": "0 0 3 * * *", "OBSERVATIONS": str(tmp_path / "o")}
        storage = {"AzureWebJobsStorage": cloud.connection, "DATA": cloud.connection}
        ended = self.command(tmp_path, APP, values | storage, int(host.url.rpartition(":")[2]))
        assert ended.returncode == 1
        assert "cannot be used" in ended.stderr


class TestQueueListener:
    """Behaviour that would take too long, or too exact a clock, to test with a whole host."""

    def listen(
        self, cloud: Cloud, name: str, options: QueueOptions, handle: queues.Handler, until: Callable[[], bool]
    ) -> None:
        """Listen until `until` returns true and the running calls have ended."""

        async def listen() -> None:
            async with (
                QueueClient.from_connection_string(cloud.connection, name) as queue,
                QueueClient.from_connection_string(cloud.connection, f"{name}-poison") as poison,
            ):
                listener = queues.QueueListener(queue, poison, options, handle)
                task = asyncio.create_task(listener.run())
                while not until():
                    await asyncio.sleep(0.02)
                listener.stop()
                await task

        asyncio.run(listen())

    def test_a_long_run_keeps_its_message_hidden(self, cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(queues, "LEASE_SECONDS", 2)
        cloud.create_queue("long")
        cloud.send("long", "x")
        counts: list[int] = []
        ended: list[int] = []

        async def handle(delivery: queues.Delivery) -> bool:
            counts.append(int(delivery.message.dequeue_count or 0))
            await asyncio.sleep(4)
            ended.append(len(counts))
            return True

        self.listen(cloud, "long", QueueOptions(), handle, lambda: bool(ended))
        assert counts == [1]
        assert cloud.count("long") == 0

    def test_a_failed_message_waits_for_the_visibility_timeout(self, cloud: Cloud) -> None:
        cloud.create_queue("waits")
        cloud.send("waits", "x")
        times: list[float] = []

        async def handle(delivery: queues.Delivery) -> bool:
            times.append(time.monotonic())
            return len(times) == 2

        self.listen(
            cloud, "waits", QueueOptions(visibility_timeout=timedelta(seconds=2)), handle, lambda: len(times) == 2
        )
        assert times[1] - times[0] > 1

    def test_batch_size_and_threshold_limit_concurrent_messages(self, cloud: Cloud) -> None:
        cloud.create_queue("many")
        for number in range(12):
            cloud.send("many", str(number))
        running, most, done = 0, 0, set()

        async def handle(delivery: queues.Delivery) -> bool:
            """The first message waits until the next batch arrives."""
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.05)
            while delivery.body == b"0" and most < 5:
                await asyncio.sleep(0.05)
            running -= 1
            done.add(delivery.body)
            return True

        options = QueueOptions(batch_size=4, new_batch_threshold=1)
        self.listen(cloud, "many", options, handle, lambda: len(done) == 12)
        assert most == 5

    def test_a_message_that_killed_its_hosts_goes_to_poison_without_a_try(self, cloud: Cloud) -> None:
        cloud.create_queue("deadly")
        cloud.send("deadly", "x")
        tried: list[queues.Delivery] = []

        async def take_without_end() -> None:
            async with QueueClient.from_connection_string(cloud.connection, "deadly") as queue:
                for _ in range(2):
                    message = await queue.receive_message()
                    assert message
                    await queue.update_message(message, visibility_timeout=0)

        async def handle(delivery: queues.Delivery) -> bool:
            tried.append(delivery)
            return True

        asyncio.run(take_without_end())
        self.listen(cloud, "deadly", QueueOptions(max_dequeue_count=2), handle, lambda: cloud.count("deadly") == 0)
        assert tried == []
        assert cloud.peek("deadly-poison") == [base64.b64encode(b"x").decode()]
        assert cloud.count("deadly") == 0
