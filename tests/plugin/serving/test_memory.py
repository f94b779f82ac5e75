"""Instances of one model share its tables, and loading takes no more memory than the artifact."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import recpress
from recpress.serving.client import Client
from recpress.serving.probe import prove
from recpress.serving.server import Server

pytestmark = pytest.mark.server

MB = 1e6
ROWS, TABLES, DIM = 560_000, 2, 64


class Tables(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.tables = torch.nn.ModuleList(torch.nn.Embedding(ROWS, DIM) for _ in range(TABLES))
        self.top = torch.nn.Sequential(torch.nn.Linear(TABLES * DIM, 256), torch.nn.ReLU(), torch.nn.Linear(256, 1))

    def forward(self, ids):
        return self.top(torch.cat([table(ids[:, i]) for i, table in enumerate(self.tables)], 1))


def memory(text):
    """Bytes by name of ``smaps_rollup`` or ``status``."""
    lines = (line.split() for line in text.splitlines() if line.endswith(" kB"))
    return {name.rstrip(":"): int(size) * 1024 for name, size, _ in lines}


def stubs(server):
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if path.read_text().rpartition(")")[2].split()[1] == str(server.process.pid):
                found.append(path.parent)
        except OSError:
            continue
    return found


def test_a_second_instance_shares_the_tables(tmp_path):
    torch.manual_seed(0)
    ids = torch.randint(0, ROWS, (4, TABLES))
    compressed = recpress.compress(Tables(), "int8")
    recpress.export(compressed, tmp_path / "a", example_inputs=(ids,), input_names=("ids",))
    artifact = sum(path.stat().st_size for path in (tmp_path / "a").iterdir())
    assert artifact > 75 * MB
    program = "import torch; print(open('/proc/self/smaps_rollup').read())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    torch_alone = memory(done.stdout)
    recpress.package(tmp_path / "a", tmp_path / "repo", name="tables", instances=2)
    with Server(tmp_path / "repo") as server, Client(server.url("grpc")) as client:
        assert prove(client, tmp_path / "repo" / "tables" / "1").ok
        for stub in stubs(server):
            now, peak = memory((stub / "smaps_rollup").read_text()), memory((stub / "status").read_text())["VmHWM"]
            assert now["Pss_Anon"] - torch_alone["Pss_Anon"] < 60 * MB, "of its own; the tables are mapped"
            assert now["Pss_File"] < 0.75 * artifact, "what is mapped is shared with the other instance"
            assert peak - torch_alone["Rss"] < 1.2 * artifact
        assert len(stubs(server)) == 2
