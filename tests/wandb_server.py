"""A W&B server on this machine that answers as the real one does, until it is told to fall silent or to go away."""

import gzip
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = {"id": "e", "name": "me"}
VIEWER = {
    "id": "u", "entity": "me", "username": "me", "name": "me", "email": "", "admin": False, "flags": "{}",
    "teams": {"edges": []}, "apiKeys": {"edges": []}, "userEntity": ENTITY, "defaultEntity": {"name": "me"},
}  # fmt: skip


class WandbServer:
    """`silent` keeps every request waiting, `refusing` answers none; `rows` are the history that was received."""

    def __init__(self) -> None:
        self.silent = threading.Event()
        self.over = threading.Event()
        self.rows: list[dict[str, Any]] = []
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.handle_error = lambda *_: None  # type: ignore[method-assign]  # of clients that gave up
        self._http.daemon_threads = True
        self._http.block_on_close = False
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def go_away(self) -> None:
        """From now on connections are refused, and those that are open are left."""
        self.silent.set()
        self._http.shutdown()
        self._http.server_close()

    def close(self) -> None:
        self.over.set()
        self._http.shutdown()
        self._http.server_close()


def _handler(server: WandbServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None: ...

        def _answer(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if server.silent.is_set():
                server.over.wait(60)
                self.close_connection = True
                return
            if self.headers.get("Content-Encoding") == "gzip":
                content = gzip.decompress(content)
            if "graphql" in self.path:
                asked = json.loads(content)
                name = asked.get("operationName") or re.search(r"(query|mutation)\s+(\w+)", asked["query"])[2]
                self._reply({"data": _graphql(name, asked.get("variables") or {}, server.url)})
                return
            if "file_stream" in self.path:
                history = json.loads(content).get("files", {}).get("wandb-history.jsonl", {"content": []})
                server.rows += map(json.loads, history["content"])
            self._reply({"exitcode": None, "limits": {}})

        do_GET = do_POST = do_PUT = _answer  # noqa: N815

        def _reply(self, value: Any) -> None:
            content = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    return Handler


def _graphql(name: str, given: dict[str, Any], url: str) -> dict[str, Any]:
    bucket = {
        "id": "b", "name": given.get("name"), "displayName": given.get("displayName"), "description": "",
        "config": "{}", "sweepName": None, "historyLineCount": 0,
        "project": {"id": "p", "name": "kd", "entity": ENTITY},
    }  # fmt: skip
    files = [{"name": one, "uploadUrl": f"{url}/up/{one}"} for one in given.get("files") or []]
    artifact = {"id": "a", "state": "COMMITTED", "artifactSequence": {"id": "s", "latestArtifact": None}}
    return {
        "Viewer": {"viewer": VIEWER},
        "UpsertBucket": {"upsertBucket": {"bucket": bucket, "inserted": True}},
        "RunResumeStatus": {"model": {"id": "p", "name": "kd", "entity": ENTITY, "bucket": None}},
        "CreateRunFiles": {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}},
        "ServerInfo": {"serverInfo": {"cliVersionInfo": {}, "latestLocalVersionInfo": None}},
        "CreateArtifact": {"createArtifact": {"artifact": artifact}},
    }.get(name, {})
