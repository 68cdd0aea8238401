"""A Hugging Face Hub of one dataset repository: the few endpoints that its fsspec file system uses, over real HTTP."""

import base64
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

REPOSITORY = "somebody/tiny"


class Hub(ThreadingHTTPServer):
    """files: path -> content. commits: the paths of each, in order."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.commits: list[list[str]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return "http://{}:{}".format(*self.server_address)

    def tree(self, folder: str, recursive: bool) -> list[dict]:
        """What is directly in a folder, or all that is below it."""
        start = f"{folder}/" if folder else ""
        if recursive:
            inner = {path.rpartition("/")[0] for path in self.files if path.startswith(start)}
            return [entry for each in sorted({folder, *inner}) for entry in self.tree(each, False)]
        rests = [path.removeprefix(start) for path in self.files if path.startswith(start)]
        folders = sorted({rest.partition("/")[0] for rest in rests if "/" in rest})
        return [{"type": "directory", "path": start + name, "oid": name} for name in folders] + [
            {"type": "file", "path": start + name, "oid": name, "size": len(self.files[start + name])}
            for name in rests
            if "/" not in name
        ]

    def commit(self, lines: list[dict]) -> None:
        changed = [line["value"]["path"] for line in lines if line["key"] in ("file", "deletedFile")]
        for line in lines:
            if line["key"] == "file":
                self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "deletedFile":
                self.files.pop(line["value"]["path"])
        self.commits.append(changed)


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path, api = unquote(urlsplit(self.path).path), f"/api/datasets/{REPOSITORY}"
        recursive = "recursive=true" in urlsplit(self.path).query.lower()
        _, found, folder = path.partition(f"{api}/tree/main")
        _, _, file = path.partition(f"/datasets/{REPOSITORY}/resolve/main/")
        if found and (tree := self.server.tree(folder.strip("/"), recursive)):
            self.answer(tree)
        elif file in self.server.files:
            self.answer_part(self.server.files[file])
        elif found or file:
            self.answer({"error": "no such entry"}, 404, "EntryNotFound")
        elif path in (api, f"{api}/revision/main"):
            self.answer({"id": REPOSITORY, "sha": "0" * 40, "siblings": [], "tags": []})
        else:
            self.answer({"error": "no such repository"}, 404, "RepoNotFound")

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/preupload/main"):
            paths = [file["path"] for file in json.loads(sent)["files"]]
            modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
            self.answer({"files": modes})
        elif self.path.endswith("/commit/main"):
            self.server.commit([json.loads(line) for line in sent.splitlines()])
            self.answer(
                {"commitUrl": f"{self.server.address}/datasets/{REPOSITORY}/commit/{'0' * 40}", "commitOid": "0" * 40}
            )
        else:  # /api/validate-yaml, which looks at a card
            self.answer({"errors": [], "warnings": []})

    def answer_part(self, content: bytes) -> None:
        """The bytes of the header `Range: bytes=first-last`, or all."""
        if match := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            self.answer(content[int(match[1]) : int(match[2]) + 1], 206)
        else:
            self.answer(content)

    def answer(self, content: object, status: int = 200, error: str | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *values: object) -> None:
        pass
