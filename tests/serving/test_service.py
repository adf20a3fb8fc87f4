"""The HTTP service in this process: every status, in the words of one JSON, and what it measures of itself."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from stand_in import LABELS, Letters
from starlette.testclient import TestClient

from lmrecipes.serving.app import make_app
from lmrecipes.serving.options import ServeOptions


@contextmanager
def served(letters: Letters, **options: Any) -> Iterator[TestClient]:
    with TestClient(make_app(letters, ServeOptions(**options), "runs/mine")) as client:
        for _ in range(200):
            if client.get("/ready").status_code == 200:
                break
        letters.batches.clear()
        try:
            yield client
        finally:
            letters.go.set()


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with served(Letters()) as made:
        yield made


def ask(client: TestClient, **question: Any) -> httpx.Response:
    return client.post("/predict", json=question)


def refusal(answer: httpx.Response, status: int) -> dict[str, str]:
    """The error of a refusal, which must say where, what and how to put it right."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(error) == {"where", "what", "fix"} and all(error.values())
    return error


def metric(client: TestClient, name: str, **labels: str) -> float:
    families = text_string_to_metric_families(client.get("/metrics").text)
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


TEXTS = ("length", "size", "tags")


def test_answers_by_task_in_the_rows_order(client: TestClient) -> None:
    found = ask(client, rows=[{"text": "abc"}, {"text": "wwwwwww"}], tasks=list(TEXTS)).json()["predictions"]
    assert list(found) == list(TEXTS)
    assert found["length"] == [{"value": 3.0}, {"value": 7.0}]
    assert [answer["label"] for answer in found["size"]] == ["short", "middle"]
    assert found["size"][0]["probability"] == pytest.approx(0.9647, abs=1e-3)
    assert found["tags"][0]["labels"] == ["a", "b"] and found["tags"][1]["labels"] == []


def test_one_row_and_the_probabilities_of_all_labels(client: TestClient) -> None:
    found = ask(client, row={"text": "abc"}, tasks=["size"], probabilities=True).json()["predictions"]
    ((answer,),) = found.values()
    assert list(answer["probabilities"]) == list(LABELS)
    assert sum(answer["probabilities"].values()) == pytest.approx(1)


def test_a_file_is_base64(client: TestClient) -> None:
    photo = base64.b64encode(b"PNG...").decode()
    assert ask(client, row={"photo": photo}, tasks=["picture"]).json()["predictions"] == {"picture": [{"value": 6.0}]}


def test_no_path_of_the_server_is_ever_read(client: TestClient) -> None:
    error = refusal(ask(client, row={"photo": "/etc/passwd!"}, tasks=["picture"]), 422)
    assert error["where"] == "row 0" and "base64" in error["what"]


ROW = {"text": "abc"}
MISTAKES: dict[str, tuple[Any, str, str]] = {
    "unknown task": ({"row": ROW, "tasks": ["sise"]}, "tasks", "Did you mean `size`"),
    "no task": ({"row": ROW, "tasks": []}, "tasks", "one name or more"),
    "tasks of another type": ({"row": ROW, "tasks": "size"}, "tasks", "list"),
    "unknown column": ({"row": {"txt": "abc"}, "tasks": ["size"]}, "row 0", "Did you mean `text`"),
    "unknown field": ({"row": ROW, "task": ["size"]}, "body", "Did you mean `tasks`"),
    "nothing to predict": ({"tasks": ["size"]}, "body", "no rows"),
    "rows twice": ({"row": ROW, "rows": [ROW]}, "body", "both"),
    "rows of another type": ({"rows": ROW}, "rows", "an object"),
    "empty": ({"rows": []}, "rows", "is empty"),
    "a row that is a text": ({"rows": [ROW, "abc"], "tasks": ["size"]}, "row 1", "a string"),
    "a row that the model refuses": ({"rows": [ROW, {"text": ""}], "tasks": ["size"]}, "row 1", "is empty"),
    "a missing column": ({"rows": [{}], "tasks": ["size"]}, "row 0", "is empty"),
    "too many rows": ({"rows": [ROW] * 257, "tasks": ["size"]}, "rows", "at most 256 rows"),
    "no truth value": ({"row": ROW, "probabilities": 1}, "probabilities", "a number"),
    "no base64": ({"row": {"photo": 5}, "tasks": ["picture"]}, "row 0", "a number"),
    "a list": ([ROW], "body", "a list"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_422_says_what_to_change(client: TestClient, name: str) -> None:
    question, where, what = MISTAKES[name]
    error = refusal(client.post("/predict", json=question), 422)
    assert error["where"] == where
    assert what in error["what"]


def test_several_mistakes_are_named_at_once(client: TestClient) -> None:
    answer = ask(client, rows=[{"text": ""}, ROW, {"text": ""}], tasks=["size"])
    assert refusal(answer, 422)["where"] == "row 0"
    assert [error["where"] for error in answer.json()["more"]] == ["row 2"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"rows": NaN}', b"\xff\xfe", b"[" * 100_000, b'{"rows": ' + b"9" * 5000 + b"}"]
)
def test_400_what_is_no_json(client: TestClient, body: bytes) -> None:
    error = refusal(client.post("/predict", content=body, headers={"content-type": "application/json"}), 400)
    assert error["where"] == "body"


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_415_another_content_type(client: TestClient, kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind}
    assert refusal(client.post("/predict", content=b"{}", headers=headers), 415)["where"] == "Content-Type"


def test_a_charset_beside_the_content_type_is_fine(client: TestClient) -> None:
    body = json.dumps({"row": ROW, "tasks": ["length"]}).encode()
    answer = client.post("/predict", content=body, headers={"content-type": "application/json; charset=utf-8"})
    assert answer.status_code == 200


def test_404_and_405_in_the_same_words(client: TestClient) -> None:
    assert "Did you mean `/predict`" in refusal(client.post("/predct", json={}), 404)["what"]
    answer = client.get("/predict")
    assert "POST" in refusal(answer, 405)["fix"] and answer.headers["allow"] == "POST"


def chunks(count: int, size: int, sent: list[int]) -> Iterator[bytes]:
    for _ in range(count):
        sent.append(size)
        yield b" " * size


def test_413_whether_the_length_is_said_or_not() -> None:
    headers = {"content-type": "application/json"}
    with served(Letters(), max_body_mb=0.001) as client:
        said = client.post("/predict", content=b" " * 1001, headers=headers)
        assert "1,000 bytes, found 1,001" in refusal(said, 413)["what"]
        for lie in ({}, {"content-length": "10"}):
            answer = client.post("/predict", content=chunks(50, 100, []), headers={**headers, **lie})
            assert "it has more" in refusal(answer, 413)["what"]
        assert ask(client, row=ROW, tasks=["length"]).status_code == 200
        assert metric(client, "lmrecipes_requests_total", path="/predict", status="413") == 3


def test_500_is_json_too_and_the_service_lives(client: TestClient) -> None:
    refusal(ask(client, row={"text": "crash"}, tasks=["size"]), 500)
    assert ask(client, row=ROW, tasks=["length"]).status_code == 200


@contextmanager
def waiting(client: TestClient, letters: Letters, count: int) -> Iterator[list[Any]]:
    """Within: the model is busy with one request and `count` more wait, one row each."""
    letters.go.clear()
    letters.busy.clear()
    with ThreadPoolExecutor(count + 1) as pool:
        first = pool.submit(ask, client, row={"text": "first"}, tasks=["length"])
        assert letters.busy.wait(10)
        others = [pool.submit(ask, client, row={"text": "x" * (n + 1)}, tasks=["length"]) for n in range(count)]
        until(lambda: metric(client, "lmrecipes_queue_rows") >= min(count, letters_room(client)))
        try:
            yield [first, *others]
        finally:
            letters.go.set()


def letters_room(client: TestClient) -> int:
    return int(client.get("/").json()["limits"]["max_queue"])


def until(holds: Callable[[], bool]) -> None:
    for _ in range(2000):
        if holds():
            return
    raise AssertionError("it never came to that")


def test_requests_of_several_clients_share_a_batch() -> None:
    letters = Letters()
    with served(letters) as client:
        before = metric(client, "lmrecipes_batch_rows_count"), metric(client, "lmrecipes_batch_rows_sum")
        with waiting(client, letters, 6) as asked:
            letters.go.set()
            found = [one.result(10).json()["predictions"]["length"][0]["value"] for one in asked]
        assert found == [5, 1, 2, 3, 4, 5, 6]
        after = metric(client, "lmrecipes_batch_rows_count"), metric(client, "lmrecipes_batch_rows_sum")
        assert (after[0] - before[0], after[1] - before[1]) == (2, 7)
        assert metric(client, "lmrecipes_rows_total") == after[1]


def test_a_bad_row_of_one_client_is_no_matter_to_others() -> None:
    letters = Letters()
    with served(letters) as client, ThreadPoolExecutor(1) as pool, waiting(client, letters, 3) as asked:
        bad = pool.submit(ask, client, rows=[ROW, {"text": ""}], tasks=["length"])
        until(lambda: metric(client, "lmrecipes_queue_rows") == 5)
        letters.go.set()
        assert refusal(bad.result(10), 422)["where"] == "row 1"
        assert [one.result(10).status_code for one in asked] == [200] * 4


def test_503_where_too_many_rows_wait() -> None:
    letters = Letters()
    with served(letters, max_queue=4, max_rows=4) as client, waiting(client, letters, 4) as asked:
        answer = ask(client, row=ROW, tasks=["length"])
        assert "4 rows wait" in refusal(answer, 503)["what"] and int(answer.headers["retry-after"]) >= 1
        assert metric(client, "lmrecipes_rejected_total", reason="queue") == 1
        letters.go.set()
        assert [one.result(10).status_code for one in asked] == [200] * 5


def test_429_where_too_many_requests_are_under_way() -> None:
    letters = Letters()
    with served(letters, max_requests=3) as client, waiting(client, letters, 2) as asked:
        answer = ask(client, row=ROW, tasks=["length"])
        assert refusal(answer, 429) and int(answer.headers["retry-after"]) >= 1
        assert metric(client, "lmrecipes_requests_open") == 3
        letters.go.set()
        assert [one.result(10).status_code for one in asked] == [200] * 3
        assert ask(client, row=ROW, tasks=["length"]).status_code == 200


def test_504_where_there_is_no_answer_in_time_and_the_row_is_not_computed() -> None:
    letters = Letters()
    with served(letters, timeout_seconds=0.2) as client, waiting(client, letters, 0):
        refusal(ask(client, row={"text": "late"}, tasks=["length"]), 504)
        letters.go.set()
        assert ask(client, row=ROW, tasks=["length"]).status_code == 200
        assert [{"text": "late"}] not in letters.batches


def test_the_service_says_what_it_is(client: TestClient) -> None:
    about = client.get("/").json()
    assert about["run"] == "runs/mine" and about["model"] == "letters"
    assert about["tasks"]["size"] == {"kind": "classification", "columns": {"text": "text"}, "labels": list(LABELS)}
    assert about["limits"]["max_rows"] == ServeOptions().max_rows
    assert client.get("/health").json() == {"status": "alive"}
    described = client.get("/openapi.json").json()["paths"]["/predict"]["post"]
    assert {"200", "400", "413", "415", "422", "429", "503", "504"} <= set(described["responses"])
    assert "rows" in described["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert client.get("/docs").status_code == 200
    assert metric(client, "lmrecipes_info", run="runs/mine", kind="letters") == 1
    assert metric(client, "lmrecipes_request_seconds_count", path="/docs") == 1


def test_not_ready_before_the_model_has_answered_once() -> None:
    letters = Letters(("length",))
    letters.go.clear()
    with TestClient(make_app(letters, ServeOptions(), "mine")) as client:
        assert client.get("/health").status_code == 200
        assert "retry-after" in client.get("/ready").headers
        refusal(client.get("/ready"), 503)
        letters.go.set()
        until(lambda: client.get("/ready").status_code == 200)
