"""Who may do what: endpoints behind the key, loopback, TLS, and a forged archive inside the server."""

import http.client
import os
import pickle
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from support.raw_requests import send_grpc
from tritonclient import grpc as triton_grpc
from tritonclient.utils import InferenceServerException

import recpress
from recpress.artifact.manifest import GRAPH, read_manifest, sha256, write_manifest
from recpress.errors import ServerError
from recpress.serving.client import Client
from recpress.serving.control import GRPC_KEY_HEADER, KEY_HEADER, find_server, read_key
from recpress.serving.probe import prove
from recpress.serving.server import ANY_PORTS, Server, Tls

pytestmark = pytest.mark.server

RESTRICTED = [
    ("POST", "/v2/repository/index"),
    ("POST", "/v2/repository/models/small/load"),
    ("POST", "/v2/repository/models/small/unload"),
    ("GET", "/v2/systemsharedmemory/status"),
    ("POST", "/v2/systemsharedmemory/region/x/register"),
    ("GET", "/v2/cudasharedmemory/status"),
    ("GET", "/v2/trace/setting"),
    ("POST", "/v2/trace/setting"),
    ("POST", "/v2/models/small/trace/setting"),
    ("POST", "/v2/logging"),
]


def status(address, method, path, headers):
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request(method, path, b"{}" if method == "POST" else None, headers)
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.parametrize("method, path", RESTRICTED)
def test_http_endpoints_behind_the_key(server, method, path):
    for headers in ({}, {KEY_HEADER: "x" * 32}, {KEY_HEADER: ""}):
        assert status(server.url("http"), method, path, headers) == 403
    if method == "GET" or path.endswith("index"):
        assert status(server.url("http"), method, path, {KEY_HEADER: server.key}) in (200, 400)


@pytest.mark.parametrize(
    "call",
    [
        lambda c, h: c.get_model_repository_index(headers=h),
        lambda c, h: c.load_model("small", headers=h),
        lambda c, h: c.unload_model("small", headers=h),
        lambda c, h: c.get_system_shared_memory_status(headers=h),
        lambda c, h: c.register_system_shared_memory("x", "/x", 8, headers=h),
        lambda c, h: c.get_trace_settings(headers=h),
        lambda c, h: c.update_log_settings({"log_verbose_level": 1}, headers=h),
    ],
)
def test_grpc_endpoints_behind_the_key(server, call):
    with triton_grpc.InferenceServerClient(server.url("grpc")) as client:
        for headers in ({}, {GRPC_KEY_HEADER: "x" * 32}):
            with pytest.raises(InferenceServerException, match="restricted"):
                call(client, headers)
        client.get_model_repository_index(headers={GRPC_KEY_HEADER: server.key})


def test_it_listens_on_loopback_alone(server):
    ports = vars(server.ports).values()
    listening = {}
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in table.read_text().splitlines()[1:] if table.exists() else ():
            _, local, _, state, *_ = line.split()
            address, port = local.split(":")
            if state == "0A" and int(port, 16) in ports:
                listening[int(port, 16)] = address
    mapped = "0000000000000000FFFF00000100007F"  # ::ffff:127.0.0.1
    assert set(listening) == set(ports) and set(listening.values()) <= {"0100007F", mapped}


def test_the_key_is_in_a_file_for_its_user_alone(server, repository):
    record = server._folder / "server.json"
    assert record.stat().st_mode & 0o077 == 0 and server._folder.stat().st_mode & 0o077 == 0
    assert find_server(repository) == server.control and find_server(repository / "small") is None


@pytest.mark.parametrize(
    "text", ["short", "a key with spaces in it", "x" * 300, "line one is long enough\nline two", ""]
)
def test_what_is_no_key(tmp_path, text):
    (tmp_path / "key").write_text(text)
    with pytest.raises(ServerError, match="holds no key"):
        read_key(tmp_path / "key")
    with pytest.raises(ServerError, match="cannot be read"):
        read_key(tmp_path / "absent")


class Forged:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_forged_archive_runs_nothing_inside_the_server(server, repository, artifact, tmp_path):
    """Sample inputs that run code when torch loads them, under hashes that agree."""
    model = repository / "forged"
    shutil.copytree(repository / "small", model)
    try:
        (model / "config.pbtxt").write_text((model / "config.pbtxt").read_text().replace('"small"', '"forged"'))
        graph = model / "1" / GRAPH
        with zipfile.ZipFile(artifact / GRAPH) as whole, zipfile.ZipFile(graph, "w") as forged:
            for info in whole.infolist():
                evil = info.filename.endswith("sample_inputs/model.pt")
                forged.writestr(info, pickle.dumps(Forged(tmp_path / "ran")) if evil else whole.read(info))
        manifest = read_manifest(model / "1")
        hashes = manifest.sha256 | {GRAPH: sha256(graph)}
        write_manifest(model / "1", manifest.model_copy(update={"sha256": hashes}))
        with pytest.raises(ServerError, match="holds pickled sample inputs; it was not written by recpress"):
            server.control.load("forged")
        assert not (tmp_path / "ran").exists()
        # The control: whoever unpickles it runs it.
        with zipfile.ZipFile(graph) as archive:
            name = next(n for n in archive.namelist() if n.endswith("sample_inputs/model.pt"))
            pickle.loads(archive.read(name))
        assert (tmp_path / "ran").is_dir()
    finally:
        shutil.rmtree(model)


@pytest.mark.parametrize("name", ["..%2Fsmall", "..", "%2e%2e%2f%2e%2e%2fetc", "small%00", "..%2Frepo%2Fsmall"])
def test_a_model_name_from_the_wire_leads_nowhere(server, name):
    """Even for whoever has the key."""
    path = f"/v2/repository/models/{name}/load"
    assert status(server.url("http"), "POST", path, {KEY_HEADER: server.key}) in (400, 404, 500)
    assert {v.model for v in server.control.versions() if v.state == "READY"} == {"small"}


@pytest.fixture
def certificate(tmp_path):
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate")
    pair = tmp_path / "server.crt", tmp_path / "server.key"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(pair[0]), "-keyout", str(pair[1])]
    subprocess.run([*command, *names], check=True, capture_output=True, timeout=60)
    return pair


def test_grpc_over_tls(artifact, tmp_path, certificate):
    version = recpress.package(artifact, tmp_path / "repo", name="small")
    with Server(tmp_path / "repo", host="0.0.0.0", ports=ANY_PORTS, tls=Tls(*certificate)) as server:
        assert server.url("http").startswith("127.0.0.1:") and server.http_host == "127.0.0.1"
        with Client(server.url("grpc"), tls_ca=certificate[0]) as client:
            assert prove(client, version).ok
        code, _ = send_grpc(server.url("grpc"), [])
        assert code.name == "UNAVAILABLE", "plain text is not understood"


def test_files_for_tls_that_are_not_there(artifact, tmp_path):
    recpress.package(artifact, tmp_path / "repo", name="small")
    with pytest.raises(ServerError, match=r"no file .*absent\.key for TLS"):
        Server(tmp_path / "repo", tls=Tls(artifact / GRAPH, tmp_path / "absent.key")).start()
