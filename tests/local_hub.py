"""A Hugging Face Hub on this machine: enough of its protocol to list and read repositories.

with serve(folder) as url:      # folder/datasets/owner/name/..., folder/models/owner/name/...
    subprocess.run(..., env=environment(url, cache))
"""

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789" * 4


def environment(url: str, cache: Path) -> dict[str, str]:
    """The variables that point Hugging Face's libraries to this hub and to a cache of their own."""
    quiet = {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return os.environ | quiet | {"HF_ENDPOINT": url, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0"}


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, folder))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, folder: Path, *args):
        self.folder = folder
        super().__init__(*args)

    def do_GET(self):
        path = self.path.split("?")[0].strip("/")
        api = re.fullmatch(r"api/(datasets|models)/([^/]+/[^/]+)(?:/tree/\w+)?(.*)", path)
        file = re.fullmatch(r"(datasets/|)([^/]+/[^/]+)/resolve/\w+/(.+)", path)
        if api and "/tree/" in path:
            self._send_tree(self.folder / api[1] / api[2], api[3].strip("/"))
        elif api and (self.folder / api[1] / api[2]).is_dir():
            self._send(json.dumps({"id": api[2], "sha": COMMIT, "siblings": []}).encode())
        elif file:
            self._send_file(self.folder / (file[1] or "models") / file[2], file[3])
        else:
            self._send(b"{}", 404, {"x-error-code": "RepoNotFound"})

    do_HEAD = do_GET

    def _send_tree(self, repo: Path, inside: str):
        if not (repo / inside).is_dir():
            self._send(b"{}", 404, {"x-error-code": "EntryNotFound"})
            return
        entries = [
            {
                "type": "directory" if path.is_dir() else "file",
                "oid": hashlib.sha1(path.name.encode()).hexdigest(),
                "size": path.stat().st_size,
                "path": str(path.relative_to(repo)),
            }
            for path in sorted((repo / inside).iterdir())
        ]
        self._send(json.dumps(entries).encode())

    def _send_file(self, repo: Path, name: str):
        if not (repo / name).is_file():
            code = "EntryNotFound" if repo.is_dir() else "RepoNotFound"
            self._send(b"", 404, {"x-error-code": code})
            return
        data = (repo / name).read_bytes()
        headers = {"etag": f'"{hashlib.sha1(data).hexdigest()}"', "x-repo-commit": COMMIT}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", "")):
            first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
            headers["content-range"] = f"bytes {first}-{last}/{len(data)}"
            self._send(data[first : last + 1], 206, headers)
        else:
            self._send(data, 200, headers)

    def _send(self, data: bytes, status: int = 200, headers: dict[str, str] | None = None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, format: str, *args):
        pass
