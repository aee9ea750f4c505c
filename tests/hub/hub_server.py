"""A stand-in for the Hub: the part of its HTTP API that huggingface_hub's client uses for model repositories, over sockets.

It stores complete commits with their parents, like git; files that `.gitattributes` names come by Git LFS and stay when no
commit names them, as on the Hub. Connections can be cut in the middle of a transfer.
"""

import base64
import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

GITATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n*.bin filter=lfs diff=lfs merge=lfs -text\n"
LFS_ENDINGS = (".safetensors", ".bin")
LARGEST_REGULAR = 10 * 1024 * 1024
WRITER, READER = "hf_writer", "hf_reader"


@dataclass(frozen=True)
class Blob:
    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def git_hash(self) -> str:
        content = self.content
        if self.lfs:
            content = (
                f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(content)}\n".encode()
            )
        return hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()


@dataclass(frozen=True)
class Commit:
    id: str
    parent: str | None
    title: str
    files: dict[str, Blob]
    date: str


@dataclass
class Repo:
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)

    def add(self, branch: str, title: str, files: dict[str, Blob]) -> Commit:
        parent = self.branches.get(branch)
        listing = json.dumps([parent, title, {name: blob.git_hash for name, blob in files.items()}])
        commit_id = hashlib.sha1(listing.encode()).hexdigest()
        commit = Commit(commit_id, parent, title, files, datetime.now(UTC).isoformat().replace("+00:00", "Z"))
        self.commits[commit_id] = commit
        self.branches[branch] = commit_id
        return commit

    def find(self, revision: str) -> Commit | None:
        return self.commits.get(self.branches.get(revision, revision))

    def history(self, revision: str) -> list[Commit]:
        found, commit = [], self.find(revision)
        while commit is not None:
            found.append(commit)
            commit = self.commits.get(commit.parent or "")
        return found


class HubServer:
    """`with HubServer() as hub:` serves at `hub.endpoint`.

    Attributes:
        requests: Method and path of all requests.
        uploads: Digests of the files that were completely uploaded by LFS, in order.
        cut_uploads: Numbers, from 1, of the uploads that are cut in the middle.
        cut_commits: `request`: cut in the middle of the request; `answer`: cut after the commit, before the answer.
        cut_downloads: If true, downloads are cut in the middle.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[tuple[str, str]] = []
        self.lock = threading.RLock()
        self.heal()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def heal(self) -> None:
        """Stops cutting connections, and restarts the count of uploads."""
        self.uploads: list[str] = []
        self.uploads_begun = 0
        self.cut_uploads: Callable[[int], bool] = lambda number: False
        self.cut_commits: str | None = None
        self.cut_downloads = False

    def __enter__(self) -> "HubServer":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        commit = self.repos[repo_id].find(revision)
        assert commit is not None
        return {name: blob.content for name, blob in commit.files.items() if name != ".gitattributes"}

    def titles(self, repo_id: str, revision: str = "main") -> list[str]:
        return [commit.title for commit in self.repos[repo_id].history(revision)]


class _Answer(Exception):
    def __init__(self, status: int, content: Any = None, **headers: str) -> None:
        self.status, self.content = status, content
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def _not_found(code: str) -> _Answer:
    return _Answer(404, {"error": code}, X_Error_Code=code, X_Error_Message=code)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET

    def _serve(self) -> None:
        url = urlsplit(self.path)
        path, self.query = unquote(url.path), parse_qs(url.query)
        self.hub.requests.append((self.command, path))
        try:
            if self.command == "PUT":
                self._upload(path)
            body = self._body(path)
            with self.hub.lock:
                self._route(self.command, path, url.path, body)
            raise _not_found("EntryNotFound")
        except _Answer as answer:
            self._send(answer)
        except ConnectionError:
            self.close_connection = True

    def _body(self, path: str) -> bytes:
        length = int(self.headers.get("Content-Length") or 0)
        if "/commit/" in path and self.hub.cut_commits == "request":
            self.rfile.read(length // 2)
            self._cut()
        return self.rfile.read(length)

    def _send(self, answer: _Answer) -> None:
        content = answer.content if isinstance(answer.content, bytes) else json.dumps(answer.content).encode()
        self.send_response(answer.status)
        kind = "application/octet-stream" if isinstance(answer.content, bytes) else "application/json"
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.hub.cut_downloads and "ETag" in answer.headers and len(content) > 1000:
            # The client immediately requests the rest, and gets nothing.
            self.wfile.write(b"" if "Content-Range" in answer.headers else content[: len(content) // 2])
            self._cut()
        self.wfile.write(content)

    def _cut(self) -> None:
        """Drops the connection without closing it properly, like a broken network."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.shutdown(socket.SHUT_RD)
        self.connection.close()
        raise ConnectionError

    def _user(self, *, write: bool = False) -> str | None:
        scheme, _, token = (self.headers.get("Authorization") or "").partition(" ")
        if not scheme:
            if write:
                raise _Answer(401, {"error": "Invalid username or password."})
            return None
        if token not in (WRITER, READER):
            said = "Invalid credentials in Authorization header"
            raise _Answer(401, {"error": said}, X_Error_Message=said)
        if write and token == READER:
            said = "You don't have the rights to write to this repository"
            raise _Answer(403, {"error": said}, X_Error_Message=said)
        return "me"

    def _repo(self, repo_id: str, *, write: bool = False) -> Repo:
        user = self._user(write=write)
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo.private and user is None):
            said = {"error": "Repository not found"}
            raise _Answer(
                404 if user else 401, said, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found"
            )
        return repo

    def _commit(self, repo: Repo, revision: str) -> Commit:
        commit = repo.find(revision)
        if commit is None:
            raise _not_found("RevisionNotFound")
        return commit

    def _upload(self, path: str) -> None:
        repo_id, _, oid = path.removeprefix("/lfs/").rpartition("/")
        length = int(self.headers["Content-Length"])
        with self.hub.lock:
            self.hub.uploads_begun += 1
            cut = self.hub.cut_uploads(self.hub.uploads_begun)
        if cut:
            self.rfile.read(length // 2)
            self._cut()
        content = self.rfile.read(length)
        if hashlib.sha256(content).hexdigest() != oid:
            raise _Answer(400, {"error": "The content has another digest."})
        with self.hub.lock:
            self.hub.repos[repo_id].objects[oid] = content
            self.hub.uploads.append(oid)
        raise _Answer(200, {})

    def _route(self, method: str, path: str, raw: str, body: bytes) -> None:
        content = json.loads(body) if body and "/commit/" not in path else {}
        if path == "/api/whoami-v2":
            raise _Answer(
                200, {"name": self._user(write=self.headers.get("Authorization") is None), "type": "user", "orgs": []}
            )
        if path == "/api/validate-yaml":
            self._validate(content["content"])
        if path == "/api/repos/create":
            self._create(content)
        if match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._batch(match[1], content)
        if match := re.fullmatch(r"/lfs/([^/]+/[^/]+)/verify", path):
            stored = self._repo(match[1], write=True).objects.get(content["oid"])
            raise _Answer(200 if stored is not None and len(stored) == content["size"] else 404, {})
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", raw):
            self._resolve(match[1], unquote(match[2]), unquote(match[3]))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/([a-z]+)(?:/([^/]+)(?:/(.+))?)?)?", raw):
            repo_id, action, revision, rest = match[1], match[2], unquote(match[3] or "main"), unquote(match[4] or "")
            if method == "POST":
                {"preupload": self._preupload, "commit": self._make_commit, "branch": self._make_branch}[action](
                    self._repo(repo_id, write=True), repo_id, revision, body if action == "commit" else content
                )
            repo = self._repo(repo_id)
            if action in (None, "revision"):
                self._info(repo, repo_id, revision)
            if action == "tree":
                self._tree(self._commit(repo, revision), rest)
            if action == "commits":
                self._commit(repo, revision)
                authors = [{"user": "me"}]
                raise _Answer(200, [
                    {"id": commit.id, "title": commit.title, "message": "", "authors": authors, "date": commit.date}
                    for commit in repo.history(revision)
                ])  # fmt: skip
            if action == "refs":
                branches = [
                    {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit}
                    for name, commit in repo.branches.items()
                ]
                raise _Answer(200, {"branches": branches, "tags": [], "converts": []})

    def _validate(self, content: str) -> None:
        parts = re.match(r"\s*---\r?\n(.*?)\r?\n---", content, re.DOTALL)
        if parts is None:
            raise _Answer(
                200, {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]}
            )
        data = yaml.safe_load(parts[1])
        wrong = [{"message": '"license" must be one of the known'}] if data.get("license") == "my-own" else []
        raise _Answer(400 if wrong else 200, {"errors": wrong, "warnings": []})

    def _create(self, content: dict[str, Any]) -> None:
        user = self._user(write=True)
        repo_id = f"{content.get('organization') or user}/{content['name']}"
        url = f"{self.hub.endpoint}/{repo_id}"
        if repo_id in self.hub.repos:
            raise _Answer(409, {"error": "You already created this model repo", "url": url})
        private = content.get("visibility") == "private" or content.get("private") is True
        repo = self.hub.repos[repo_id] = Repo(private)
        repo.add("main", "initial commit", {".gitattributes": Blob(GITATTRIBUTES, False)})
        raise _Answer(200, {"url": url, "name": repo_id})

    def _preupload(self, repo: Repo, repo_id: str, revision: str, content: dict[str, Any]) -> None:
        there = self._commit(repo, revision).files
        files = []
        for file in content["files"]:
            name = file["path"]
            lfs = name.endswith(LFS_ENDINGS) or file["size"] > LARGEST_REGULAR
            found = {"path": name, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
            if name in there:
                found["oid"] = there[name].sha256 if there[name].lfs else there[name].git_hash
            files.append(found)
        raise _Answer(200, {"files": files})

    def _batch(self, repo_id: str, content: dict[str, Any]) -> None:
        repo = self._repo(repo_id, write=True)
        objects = []
        for wanted in content["objects"]:
            found = dict(wanted)
            if wanted["oid"] not in repo.objects:
                base = f"{self.hub.endpoint}/lfs/{repo_id}"
                found["actions"] = {
                    "upload": {"href": f"{base}/{wanted['oid']}"},
                    "verify": {"href": f"{base}/verify"},
                }
            objects.append(found)
        raise _Answer(200, {"transfer": "basic", "objects": objects})

    def _make_commit(self, repo: Repo, repo_id: str, branch: str, body: bytes) -> None:
        if branch not in repo.branches:
            raise _not_found("RevisionNotFound")
        head = self._commit(repo, branch)
        files, title = dict(head.files), ""
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                title = value["summary"]
                if value.get("parentCommit") not in (None, head.id):
                    raise _Answer(412, {"error": "A commit has happened since. Please refresh and try again."})
            elif item["key"] == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            elif item["key"] == "lfsFile":
                if value["oid"] not in repo.objects:
                    raise _Answer(400, {"error": f"LFS pointer points to a file that does not exist: {value['path']}"})
                files[value["path"]] = Blob(repo.objects[value["oid"]], True)
            elif item["key"] == "deletedFile":
                del files[value["path"]]
            else:
                raise _Answer(400, {"error": f"unknown operation {item['key']}"})
        commit = repo.add(branch, title, files)
        if self.hub.cut_commits == "answer":
            self._cut()
        url = f"{self.hub.endpoint}/{repo_id}/commit/{commit.id}"
        raise _Answer(200, {"success": True, "commitOid": commit.id, "commitUrl": url, "hookOutput": ""})

    def _make_branch(self, repo: Repo, repo_id: str, branch: str, content: dict[str, Any]) -> None:
        if branch in repo.branches:
            raise _Answer(409, {"error": "Reference already exists"})
        repo.branches[branch] = self._commit(repo, content.get("startingPoint") or "main").id
        raise _Answer(200, {})

    def _info(self, repo: Repo, repo_id: str, revision: str) -> None:
        commit = self._commit(repo, revision)
        raise _Answer(200, {
            "id": repo_id, "modelId": repo_id, "author": repo_id.partition("/")[0], "sha": commit.id, "lastModified": commit.date,
            "private": repo.private, "gated": False, "disabled": False, "tags": [], "downloads": 0, "likes": 0,
            "siblings": [{"rfilename": name} for name in commit.files],
        })  # fmt: skip

    def _tree(self, commit: Commit, folder: str) -> None:
        start = f"{folder.rstrip('/')}/" if folder else ""
        names = [name for name in commit.files if name.startswith(start)]
        if folder and not names:
            raise _not_found("EntryNotFound")
        recursive = self.query.get("recursive", ["false"])[0].lower() == "true"
        entries: dict[str, dict[str, Any]] = {}
        for name in names:
            inside = name.removeprefix(start).split("/")
            for depth in range(1, len(inside) if recursive else min(2, len(inside))):
                above = start + "/".join(inside[:depth])
                entries[above] = {"type": "directory", "oid": "0" * 40, "size": 0, "path": above}
            if len(inside) == 1 or recursive:
                blob = commit.files[name]
                entry = {"type": "file", "oid": blob.git_hash, "size": len(blob.content), "path": name}
                if blob.lfs:
                    entry["lfs"] = {"oid": blob.sha256, "size": len(blob.content), "pointerSize": 130}
                entries[name] = entry
        raise _Answer(200, list(entries.values()))

    def _resolve(self, repo_id: str, revision: str, name: str) -> None:
        commit = self._commit(self._repo(repo_id), revision)
        blob = commit.files.get(name)
        if blob is None:
            error = _not_found("EntryNotFound")
            error.headers["X-Repo-Commit"] = commit.id
            raise error
        headers = {"X-Repo-Commit": commit.id, "ETag": f'"{blob.sha256 if blob.lfs else blob.git_hash}"'}
        content, status = blob.content, 200
        if wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            begin = int(wanted[1])
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
            content, status = content[begin:], 206
        answer = _Answer(status, content)
        answer.headers = headers
        raise answer
