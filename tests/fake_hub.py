"""The endpoints of the Hugging Face Hub that a push and a download need, on this machine, with faults to order.

https://huggingface.co/docs/hub/api and https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md
"""

import base64
import hashlib
import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_" + "x" * 30
POLL_SECONDS = 0.02  # how long a server takes to notice that it is to end; of itself half a second


class FakeHub(ThreadingHTTPServer):
    """Repositories in memory. `faults` maps a part of a path to what the next requests there get: a status, or `drop`
    to hang up in the middle."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos, self.blobs, self.faults = {}, {}, {}
        self.requests, self.uploaded, self.seen = Counter(), Counter(), []
        threading.Thread(target=self.serve_forever, args=(POLL_SECONDS,), daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add_repo(self, name, *, private=True):
        self.repos[name] = {"private": private, "files": {}, "commits": []}

    def handle_error(self, request, client_address):
        pass


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        self.route()

    do_POST = do_PUT = do_HEAD = do_GET

    def route(self):
        hub, path = self.server, self.path.split("?")[0]
        hub.requests[f"{self.command} {path}"] += 1
        fault = next((queue.pop(0) for part, queue in hub.faults.items() if part in path and queue), None)
        if fault == "drop":
            self.rfile.read(min(10, int(self.headers.get("Content-Length", 0))))  # more would never come
            self.close_connection = True
            self.connection.close()
            return
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if fault:
            self.reply(fault, {"error": "as ordered"})
        elif path.startswith("/upload/"):
            self.put_blob(path.removeprefix("/upload/"), data)
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.reply(401, {"error": "Invalid credentials in Authorization header"})
        else:
            hub.seen.append((path, data))
            self.api(path, data)

    def api(self, path, data):
        parts = path.strip("/").split("/")
        if path == "/api/whoami-v2":
            self.reply(200, {"type": "user", "name": "me", "orgs": []})
        elif path == "/api/validate-yaml":
            self.reply(200, {"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self.create(json.loads(data))
        elif path.endswith("/info/lfs/objects/batch"):
            self.batch(json.loads(data))
        elif "resolve" in parts:
            parts = parts[parts[0] == "datasets" :]
            self.download("/".join(parts[:2]), "/".join(parts[4:]))
        elif parts[1] in ("models", "datasets") and "/".join(parts[2:4]) not in self.server.repos:
            self.reply(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif "tree" in parts:
            self.tree(self.server.repos["/".join(parts[2:4])]["files"])
        elif "preupload" in parts:
            self.preupload("/".join(parts[2:4]), json.loads(data))
        elif "commit" in parts:
            self.commit("/".join(parts[2:4]), data)
        else:
            self.show("/".join(parts[2:4]))

    def create(self, body):
        name = f"{body.get('organization') or 'me'}/{body['name']}"
        private = body.get("private", body.get("visibility") == "private")
        if name in self.server.repos:
            return self.reply(409, {"error": "You already created this model repo"})
        self.server.add_repo(name, private=private)
        return self.reply(200, {"url": f"{self.server.url}/{name}", "name": name})

    def show(self, name):
        repo = self.server.repos[name]
        sha = repo["commits"][-1] if repo["commits"] else "0" * 40
        self.reply(200, {"id": name, "modelId": name, "private": repo["private"], "sha": sha, "siblings": [
            {"rfilename": file} for file in repo["files"]
        ]})  # fmt: skip

    def tree(self, files):
        self.reply(200, [
            {"type": "file", "path": name, "size": len(data), "oid": oid("", data)}
            | ({"lfs": {"oid": oid(name, data), "size": len(data), "pointerSize": 130}} if is_large(name) else {})
            for name, data in files.items()
        ])  # fmt: skip

    def download(self, name, file):
        repo = self.server.repos[name]
        data = repo["files"].get(file)
        if data is None:
            return self.reply(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        return self.reply(200, data, {"ETag": oid(file, data), "X-Repo-Commit": repo["commits"][-1]})

    def preupload(self, name, body):
        files = self.server.repos[name]["files"]
        self.reply(200, {"files": [
            {
                "path": file["path"], "uploadMode": "lfs" if is_large(file["path"]) else "regular",
                "shouldIgnore": False, "oid": oid(file["path"], files.get(file["path"])),
            }
            for file in body["files"]
        ]})  # fmt: skip

    def batch(self, body):
        objects = []
        for wanted in body["objects"]:
            actions = {"upload": {"href": f"{self.server.url}/upload/{wanted['oid']}"}}
            have = wanted["oid"] in self.server.blobs
            objects.append(wanted if have else {**wanted, "actions": actions})
        self.reply(200, {"transfer": "basic", "objects": objects})

    def put_blob(self, name, data):
        assert hashlib.sha256(data).hexdigest() == name
        self.server.blobs[name] = data
        self.server.uploaded[name] += 1
        self.reply(200, {})

    def commit(self, name, data):
        repo = self.server.repos[name]
        for line in data.decode().splitlines():
            item = json.loads(line)
            if item["key"] == "file":
                repo["files"][item["value"]["path"]] = base64.b64decode(item["value"]["content"])
            elif item["key"] == "lfsFile":
                repo["files"][item["value"]["path"]] = self.server.blobs[item["value"]["oid"]]
        repo["commits"].append(hashlib.sha1(data).hexdigest())
        url = f"{self.server.url}/{name}/commit/{repo['commits'][-1]}"
        self.reply(200, {"commitUrl": url, "commitOid": repo["commits"][-1], "pullRequestUrl": None})

    def reply(self, status, value, headers=None):
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        told = {"Content-Type": "application/json", "Content-Length": len(data)} | (headers or {})
        for name, text in told.items():
            self.send_header(name, str(text))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *arguments):
        pass


def is_large(path):
    return path.endswith(".safetensors")


def oid(path, content):
    """As the Hub names content: sha256 of large files, git's sha1 of others."""
    if content is None:
        return None
    if is_large(path):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
