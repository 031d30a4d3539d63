"""The judge behind a server, asked of a real one on this machine."""

import json
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

import steerlens as sl
from steerlens.judges.endpoints import endpoint
from steerlens.judges.judging import JudgeError, JudgeWarning, judge_texts


class Server(ThreadingHTTPServer):
    """Answers with what `answer(text, how often it was asked)` returns: (status, content)."""

    daemon_threads = True

    def __init__(self, answer):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.asked, self.seen, self.lock = answer, [], [], threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = body["messages"][0]["content"]
        text = content.split("<text>\n")[1].split("\n</text>")[0]
        with self.server.lock:
            self.server.asked.append(text)
            headers = {name.lower(): value for name, value in self.headers.items()}
            self.server.seen.append((self.path, headers, body))
            times = self.server.asked.count(text)
        status, answer = self.server.answer(text, times)
        if status == 200 and isinstance(answer, str):
            answer = {"choices": [{"message": {"role": "assistant", "content": answer}}]}
        payload = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(payload)))
        self.send_header("retry-after-ms", "5")  # otherwise the client waits half a second
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *args):
        pass


@pytest.fixture
def serve():
    servers = []

    def start(answer):
        server = Server(answer)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def ask(server, **options):
    options = {"timeout": 10.0} | options
    return endpoint(server.url, "tiny", "How long is it?", **options)


def by_length(text, times):
    return 200, str(len(text))


def test_each_text_gets_its_own_rating_and_is_asked_once(serve):
    server = serve(by_length)
    judge = ask(server, concurrency=3)
    texts = ["aaa", "b", "", "aaa", "ccccc", " "]
    np.testing.assert_array_equal(judge(texts), [3, 1, np.nan, 3, 5, np.nan])
    judge([*texts, "dd"])
    assert sorted(server.asked) == ["aaa", "b", "ccccc", "dd"]
    path, _, body = server.seen[0]
    assert path == "/v1/chat/completions"
    assert (body["model"], body["temperature"]) == ("tiny", 0)
    assert "from 0 to 10" in body["messages"][0]["content"]
    assert "tiny at http" in judge.version


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_recovers_is_asked_again(serve, status):
    server = serve(lambda text, times: (200, "7") if times == 3 else (status, {"error": "busy"}))
    assert ask(server)(["a", "b"]).tolist() == [7, 7]
    assert len(server.asked) == 6


def test_retries_are_bounded_and_what_was_judged_is_kept(serve):
    broken = {"b"}
    server = serve(lambda text, times: (500, "no") if text in broken else (200, "4"))
    judge = ask(server, retries=2, concurrency=1)
    with pytest.raises(JudgeError, match=r"500.*[12] of 3 texts are judged and kept") as error:
        judge(["a", "b", "c"])
    assert server.asked.count("b") == 3
    # the third may have been under way when the second failed
    np.testing.assert_array_equal(error.value.scores[:2], [4, np.nan])
    broken.clear()
    assert judge(["a", "b", "c"]).tolist() == [4, 4, 4]
    assert server.asked.count("a") == 1


def test_what_was_under_way_when_another_text_failed_is_kept(serve):
    failed = threading.Event()

    def answer(text, times):
        if text == "a":
            failed.wait(5)
            return 200, "4"
        failed.set()
        return 400, "no"

    server = serve(answer)
    judge = ask(server, concurrency=2)
    with pytest.raises(JudgeError, match="answered 400") as error:
        judge(["a", "b"])
    np.testing.assert_array_equal(error.value.scores, [4, np.nan])


def test_judging_several_texts_keeps_what_the_server_answered(serve):
    server = serve(lambda text, times: (200, "4") if text == "a" else (500, "no"))
    judge = ask(server, retries=0, concurrency=1)
    with pytest.warns(JudgeWarning, match="1 of 2 scores are missing.*answered 500"):
        judged = judge_texts([judge], ["a", "b"])
    assert judged.scores["endpoint"].isna().tolist() == [False, True]


def test_a_refused_request_is_not_repeated(serve):
    server = serve(lambda text, times: (401, {"error": "bad key sk-secret"}))
    judge = ask(server, api_key="sk-secret")
    with pytest.raises(JudgeError, match="answered 401") as error:
        judge(["a"])
    assert len(server.asked) == 1
    assert "sk-secret" not in str(error.value)


@pytest.mark.parametrize(
    ("answer", "rating"),
    [
        ("7", 7),
        (" 7.5\n", 7.5),
        ("**8**/10", 8),
        ("Score: 9 out of 10.", 9),
        ("0", 0),
        ("It is a number between 0 and 10.", None),
        ("On a scale of 0 to 10, 7", None),
        ("11", None),
        ("7/100", None),
        ("7 - 8", None),
        ("-1", None),
        ("", None),
        ("nan", None),
    ],
)
def test_only_one_number_on_the_scale_is_a_rating(serve, answer, rating):
    judge = ask(serve(lambda text, times: (200, answer)))
    if rating is not None:
        assert judge(["a"]).tolist() == [rating]
        return
    with pytest.warns(JudgeWarning, match="1 of 1 answers of tiny are not one number from 0 to 10"):
        assert np.isnan(judge(["a"])).all()


def test_a_scale_may_be_negative(serve):
    assert ask(serve(lambda text, times: (200, "-2")), scale=(-3, 3))(["a"]).tolist() == [-2]


@pytest.mark.parametrize("body", [b"<html>hello</html>", {"choices": []}, [1], {"choices": None}])
def test_what_is_no_chat_completion_is_named(serve, body):
    judge = ask(serve(lambda text, times: (200, body)))
    with pytest.raises(JudgeError, match="is no chat completion"):
        judge(["a"])


def test_an_unreachable_server_is_named_with_what_to_check():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    judge = endpoint(url, "tiny", "Good?", retries=1)
    with pytest.raises(JudgeError, match=r"cannot be reached.*check that the server runs") as error:
        judge(["a", "b"])
    assert url in str(error.value)
    assert np.isnan(error.value.scores).all()


def test_a_server_that_hangs_is_given_up_on(serve):
    release = threading.Event()
    server = serve(lambda text, times: (release.wait(10), (200, "1"))[1])
    judge = ask(server, timeout=0.2, retries=0)
    with pytest.raises(JudgeError, match=r"cannot be reached \(ReadTimeout"):
        judge(["a"])
    release.set()


def test_the_key_is_sent_and_never_shown(serve, monkeypatch, caplog):
    server = serve(by_length)
    with caplog.at_level("DEBUG"):
        judge = ask(server, api_key="sk-argument")
        judge(["a"])
    monkeypatch.setenv("STEERLENS_API_KEY", "sk-environment\n")
    ask(server)(["b"])
    monkeypatch.delenv("STEERLENS_API_KEY")
    ask(server)(["c"])
    keys = [headers.get("authorization") for _, headers, _ in server.seen]
    assert keys == ["Bearer sk-argument", "Bearer sk-environment", None]
    assert "sk-argument" not in caplog.text + repr(judge) + str(judge.version)


def test_nothing_of_another_service_is_sent(serve, monkeypatch):
    """The client would take these from the environment by itself."""
    others = ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY")
    for name in others:
        monkeypatch.setenv(name, f"of-{name}")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    server = serve(by_length)
    assert ask(server)(["a"]).tolist() == [1]
    assert ask(server, api_key="sk-own")(["a"]).tolist() == [1]
    for _, headers, _ in server.seen:
        assert not [value for value in headers.values() if "of-OPENAI" in value]


def test_without_the_client_the_install_command_is_told_before_anything_is_asked(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(sl.SteerlensError, match=r"pip install 'steerlens\[judges\]'"):
        endpoint("http://x/v1", "tiny", "Good?")


def test_a_key_that_cannot_be_sent_is_refused_unshown():
    with pytest.raises(sl.SteerlensError, match="API key holds characters") as error:
        endpoint("http://x/v1", "tiny", "Good?", api_key="sk-broken\nin-two")
    assert "sk-broken" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("localhost:8000", {}, "'http://localhost:8000/v1'"),
        ("http://x:port/v1", {}, "'http://localhost:8000/v1'"),
        ("http://", {}, "'http://localhost:8000/v1'"),
        ("http://[::1", {}, "'http://localhost:8000/v1'"),
        ("http://x/v1", {"scale": (5, 5)}, "increasing scale"),
        ("http://x/v1", {"concurrency": 0}, "concurrency ≥ 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(url, options, message):
    with pytest.raises(sl.SteerlensError, match=message):
        endpoint(url, "tiny", "Good?", **options)
