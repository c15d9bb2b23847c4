"""A server on this machine that speaks as much of the Hub's protocol as pushing and loading a model
takes.

Repositories live in memory; every file is a regular one (no LFS), every commit has a number as its
hash.
"""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class HubServer(ThreadingHTTPServer):
    """`with HubServer() as hub: ...`; `hub.repos[id][path]` are bytes, `hub.requests` what was
    asked, with tokens.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.commits: dict[str, list[str]] = {}
        self.private: dict[str, bool] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()

    def sha(self, repo: str) -> str:
        return f"{len(self.commits[repo]):040x}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status: int, body: bytes | dict | list = b"", **headers: str) -> None:
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def note(self) -> list[str]:
        token = self.headers.get("Authorization")
        self.server.requests.append(
            (self.command, self.path, token and token.removeprefix("Bearer "))
        )
        return self.path.partition("?")[0].strip("/").split("/")

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = self.note()
        if self.headers.get("Authorization") is None:
            self.answer(401, {"error": "no token"})
        elif parts == ["api", "repos", "create"]:
            wanted = json.loads(body)
            repo = "tester/" + wanted["name"]
            status = 409 if repo in self.server.repos else 200
            self.server.repos.setdefault(repo, {})
            self.server.commits.setdefault(repo, [])
            self.server.private.setdefault(repo, wanted.get("visibility") == "private")
            self.answer(status, {"url": f"{self.server.url}/{repo}", "id": repo})
        elif parts == ["api", "validate-yaml"]:
            self.answer(200, {"errors": [], "warnings": []})
        elif parts[4:5] == ["preupload"]:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.answer(200, {"files": files})
        elif parts[4:5] == ["commit"]:
            repo = "/".join(parts[2:4])
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "header":
                    self.server.commits[repo].append(value["summary"])
                elif line["key"] == "file":
                    self.server.repos[repo][value["path"]] = base64.b64decode(value["content"])
            sha = self.server.sha(repo)
            url = f"{self.server.url}/{repo}/commit/{sha}"
            self.answer(200, {"success": True, "commitOid": sha, "commitUrl": url})
        else:
            self.answer(404, X_Error_Code="RepoNotFound")

    def do_GET(self):
        parts = self.note()
        api = parts[:2] == ["api", "models"]
        repo = "/".join(parts[2:4] if api else parts[:2])
        files = self.server.repos.get(repo)
        if parts == ["api", "whoami-v2"]:
            self.answer(200, {"name": "tester", "type": "user", "orgs": [], "auth": {}})
        elif files is None:
            self.answer(404, X_Error_Code="RepoNotFound")
        elif api and parts[4:5] == ["tree"]:
            self.answer(
                200,
                [
                    {
                        "type": "file",
                        "path": path,
                        "size": len(data),
                        "oid": hashlib.sha1(data).hexdigest(),
                    }
                    for path, data in files.items()
                ],
            )
        elif api:
            self.answer(
                200,
                {
                    "id": repo,
                    "sha": self.server.sha(repo),
                    "private": False,
                    "tags": [],
                    "downloads": 0,
                    "siblings": [{"rfilename": path} for path in files],
                },
            )
        elif (path := "/".join(parts[4:])) in files:
            self.answer(
                200,
                files[path],
                X_Repo_Commit=self.server.sha(repo),
                ETag=f'"{hashlib.sha1(files[path]).hexdigest()}"',
                Accept_Ranges="bytes",
            )
        else:
            self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=self.server.sha(repo))

    do_HEAD = do_GET
