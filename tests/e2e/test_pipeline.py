"""From a file in the container to the topics of the day, through the running local cloud."""

import base64
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from azure.storage.queue import QueueClient

from cli.follow import upload
from localcloud.cloud import LocalCloud, invoke
from localcloud.processes import LocalCloudError
from serve.topics import topics_of_day
from shared.catalog import day_pointer, published_days
from shared.ledger import FileState
from shared.messages import PostsLanded
from shared.services import Services
from tests.e2e.conftest import Process, wait_until_ended
from tests.places import PROJECT
from tests.real_posts import RealPosts
from tests.waiting import PATIENCE, eventually
from tests.world import parquet, posts

PYTHON, JAVA = {"Tags": "<python><list>"}, {"Tags": "|java|"}
ANSWER = {"PostTypeId": 2, "Title": None, "Tags": None}


def on(day: date, *rows: Mapping[str, object]) -> bytes:
    return parquet(posts(*({"CreationDate": datetime(day.year, day.month, day.day, 12), **row} for row in rows)))


def counts(services: Services, day: date) -> dict[str, int]:
    return {topic.topic: topic.posts for topic in topics_of_day(services.lake, day, 1000).topics}


def test_two_files_of_one_day_add_up_and_a_file_of_the_same_name_replaces(process: Process, services: Services) -> None:
    day = date(2024, 3, 1)
    assert process("march-a.parquet", on(day, PYTHON, JAVA)).state is FileState.PUBLISHED
    assert process("march-b.parquet", on(day, PYTHON, {**ANSWER, "ParentId": 1})).state is FileState.PUBLISHED
    assert counts(services, day) == {"python": 3, "java": 1}
    corrected = process("march-a.parquet", on(day, JAVA, JAVA, JAVA))
    assert counts(services, day) == {"python": 2, "java": 3}
    kept = [info for info in services.lake.list("archive") if f"/{corrected.source_id}/" in info.path]
    assert len(kept) == 2
    assert not list(services.lake.list("landing"))


def test_an_answer_takes_the_topic_of_a_question_of_an_earlier_file(process: Process, services: Services) -> None:
    day = date(2024, 4, 1)
    process("april-questions.parquet", on(day, {**JAVA, "Id": 700_001}))
    process("april-answers.parquet", on(day, {**ANSWER, "Id": 700_002, "ParentId": 700_001, "Body": "<p>No idea.</p>"}))
    assert counts(services, day) == {"java": 2}


def test_three_deliveries_of_one_event_count_once(cloud: LocalCloud, services: Services) -> None:
    day = date(2024, 5, 1)
    version = upload(services, "may.parquet", on(day, PYTHON, JAVA))

    def deliver(_: int) -> str | None:
        """The reason of a failure, or None."""
        try:
            error = invoke(cloud.state_dir, "land_posts", "posts/may.parquet")["error"]
        except LocalCloudError as refused:
            if "posts/may.parquet' does not exist" not in str(refused):  # otherwise the event itself was faster
                raise
            return None
        return None if error is None else str(error)

    with ThreadPoolExecutor(3) as pool:
        failures = [why for why in pool.map(deliver, range(3)) if why]
    assert all(why.startswith("TransientError: ") for why in failures), failures
    record = wait_until_ended(services, version)
    landed = PostsLanded(source_id=record.source_id, version=record.version)
    for _ in range(3):
        services.posts_landed.send(landed)
    time.sleep(1)
    assert wait_until_ended(services, version).state is FileState.PUBLISHED
    assert counts(services, day) == {"python": 1, "java": 1}
    assert len({run.run_id for run in wait_until_ended(services, version).runs}) == 1


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("no-parquet.parquet", b"Ideas, Title\n" * 100, "not a Parquet file"),
        ("no-body.parquet", parquet(posts(PYTHON).drop_columns(["Body"])), "column Body is missing"),
        ("bool-id.parquet", parquet(posts(PYTHON).set_column(0, "Id", [[True]])), "Id is boolean"),
    ],
)
def test_a_file_that_breaks_its_contract_is_quarantined_without_a_retry(
    cloud: LocalCloud, process: Process, services: Services, name: str, data: bytes, said: str
) -> None:
    record = process(name, data)
    assert record.state is FileState.QUARANTINED
    assert said in (record.reason or "")
    assert services.lake.read(str(record.quarantine)) == data
    shown = manage(cloud, "status")
    assert shown.returncode == 1
    assert name in shown.stdout
    assert said in shown.stdout
    assert services.queue("webjobs-blobtrigger-poison").length() == 0


def test_a_failed_run_is_started_again(cloud: LocalCloud, process: Process, services: Services) -> None:
    cloud.inject_fault("fail")
    record = process("again.parquet", on(date(2024, 6, 1), PYTHON))
    assert (record.state, record.attempt) == (FileState.PUBLISHED, 2)
    assert record.runs[0].error is not None


@pytest.mark.parametrize("fault", ["drop_answer", "too_many_requests", "unavailable"])
def test_errors_of_databricks_lead_to_only_one_run(
    cloud: LocalCloud, process: Process, services: Services, fault: str
) -> None:
    cloud.inject_fault(fault)
    record = process(f"stumble-{fault}.parquet", on(date(2024, 6, 2), PYTHON))
    assert (record.state, record.attempt, len(record.runs)) == (FileState.PUBLISHED, 1, 1)


def test_a_message_of_unknown_shape_ends_in_the_poison_queue(services: Services) -> None:
    settings = services.settings
    raw = QueueClient(
        settings.queues_storage.endpoint("queue"), settings.posts_landed_queue, settings.queues_storage.account_key()
    )
    with raw:
        raw.send_message(base64.b64encode(b'{"format": 7}').decode())
    poison = services.queue(f"{settings.posts_landed_queue}-poison")
    assert eventually(poison.length, "the poison message") == 1


def test_topics_are_served_over_http(cloud: LocalCloud, process: Process, services: Services) -> None:
    day = date(2024, 7, 1)
    process("july.parquet", on(day, PYTHON, PYTHON, JAVA))
    keys = json.loads((cloud.state_dir / "host-keys.json").read_text())
    key = {"x-functions-key": keys["master"]}
    found = json.loads(get(f"{cloud.functions_url}/api/topics?day={day}&top=1", key))
    assert (found["posts"], [topic["topic"] for topic in found["topics"]]) == (3, ["python"])
    assert found["topics"][0]["share"] == pytest.approx(2 / 3)
    lines = get(f"{cloud.functions_url}/api/topics?day={day}&format=csv", key).splitlines()
    assert lines[0] == "day,rank,topic,posts,questions,answers,share,estimated_share,low,high"
    assert lines[1].startswith("2024-07-01,1,python,2,2,0,0.66")
    assert json.loads(get(f"{cloud.functions_url}/api/health", {}))["healthy"] is True
    for query, headers, status in (
        (f"day={day}", {}, 401),
        ("day=yesterday", key, 400),
        ("top=none", key, 400),
        ("format=xml", key, 400),
        ("day=1999-01-01", key, 404),
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            get(f"{cloud.functions_url}/api/topics?{query}", headers)
        with refused.value:
            assert refused.value.code == status


@pytest.mark.timeout(600)
def test_a_file_of_several_years_is_published_by_day_and_a_second_upload_changes_nothing(
    process: Process, services: Services, real_posts: RealPosts
) -> None:
    table = pq.read_table(real_posts("posts-devops.parquet"))
    table = table.filter(pc.less(pc.year(table["CreationDate"]), 2021))  # no other test uses these years
    question = pc.coalesce(table["ParentId"], table["Id"])
    table = table.filter(pc.equal(pc.bit_wise_and(question, 7), 0))  # every eighth question, with its answers
    data = parquet(table)
    table = table.filter(pc.is_in(table["PostTypeId"], value_set=pc.cast([1, 2], table["PostTypeId"].type)))
    expected = Counter(moment.date() for moment in table["CreationDate"].to_pylist())
    assert len({day.year for day in expected}) > 1
    for _ in range(2):
        record = process("posts-devops.parquet", data)
        assert record.state is FileState.PUBLISHED
        assert record.counted == table.num_rows == sum(expected.values())
        days = [day for day in published_days(services.lake) if day.year <= 2020]
        pointers = {day: day_pointer(services.lake, day)[0] for day in days}
        assert {day: pointer.posts for day, pointer in pointers.items() if pointer} == dict(expected)


def test_the_commands_show_topics_and_settings_without_secrets(cloud: LocalCloud, process: Process) -> None:
    process("august.parquet", on(date(2024, 8, 1), JAVA))
    assert json.loads(manage(cloud, "topics", "--day", "2024-08-01", "--json").stdout)["topics"][0]["topic"] == "java"
    assert "2024-08-01,1,java,1,1,0,1.0" in manage(cloud, "topics", "--day", "2024-08-01", "--csv").stdout
    settings = manage(cloud, "settings")
    assert settings.returncode == 0
    assert "AccountKey" not in settings.stdout
    missing = manage(cloud, "topics", "--day", "1999-01-01")
    assert (missing.returncode, missing.stderr) == (1, "manage.py: no topics are published for 1999-01-01\n")


def get(url: str, headers: dict[str, str]) -> str:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=PATIENCE) as answer:
        return str(answer.read().decode())


def manage(cloud: LocalCloud, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "manage.py", *arguments, "--settings", str(cloud.settings_file)]
    return subprocess.run(
        command,
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env={**os.environ, "COLUMNS": "250"},
    )
