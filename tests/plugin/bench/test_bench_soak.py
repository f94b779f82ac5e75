"""The soak on small models in the real server: ours stands it, and one that leaks is found out."""

import numpy as np
import pytest
from support.small import small_inputs

import recpress
from recpress.artifact.manifest import read_manifest
from recpress.bench import soak
from recpress.bench.closed_loop import encode
from recpress.bench.resources import SERVER, Process, Sample, slope, trends
from recpress.serving.config import read_config, write_config

LEAKY = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.kept = []

    def execute(self, requests):
        self.kept += [(np.ones(25_000), open("/proc/self/stat")) for _ in requests]
        rows = [pb_utils.get_input_tensor_by_name(r, "dense").as_numpy().shape[0] for r in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("logit", np.zeros((n, 1), np.float32))]) for n in rows]
"""


def requests_to(name):
    dense, sparse = (t.numpy() for t in small_inputs(4))
    return encode(name, {"dense": dense, "sparse": sparse}), encode(name, {"dense": dense, "sparse": sparse + 1000})


@pytest.fixture(scope="module")
def repository(artifact, tmp_path_factory):
    folder = tmp_path_factory.mktemp("soak") / "repository"
    recpress.package(artifact, folder, name="small")
    leaky = folder / "leaky"
    (leaky / "1").mkdir(parents=True)
    (leaky / "1" / "model.py").write_text(LEAKY)
    config = read_config(folder / "small")
    config.name, config.backend = "leaky", "python"
    write_config(leaky, str(config))
    return folder


@pytest.mark.server
def test_a_model_that_leaks_is_found_and_ours_is_not(artifact, repository, capsys):
    assert read_manifest(artifact).inputs[1].bounds, "what is beyond its table is known"
    good, bad = requests_to("small")
    leak, _ = requests_to("leaky")
    found, problems = soak.watch(repository, [good, leak], bad, seconds=4.0, rate=100.0)
    memory = next(text for text in problems if text.startswith("leaky, version 1"))
    assert "its memory grows by" in memory and not [text for text in problems if text.startswith("small")], problems
    rows = {row["process"].partition(",")[0]: row for row in found}
    assert set(rows) == {SERVER, "small", "leaky"}
    assert rows["leaky"]["slope"] == pytest.approx(50 * 200_000, rel=0.5)
    assert rows["leaky"]["files"][1] > rows["leaky"]["files"][0] and rows["small"]["own"][1] > 50e6
    said = capsys.readouterr().out
    assert "392 requests answered, 8 bad ones refused, 0 failed" in said
    assert "0 after the end; temporary files" in said and said.rstrip().endswith("0 after the end")


def sample(seconds, own, files=9, *, name=SERVER):
    return Sample(seconds, {name: Process(own, own, files)}, 1, 8)


def test_a_slope_is_told_from_jumps():
    seconds = np.arange(20.0)
    assert slope(seconds, 3 * seconds + 5) == 3
    jumps = np.where(np.arange(20) % 7 == 3, 1e9, 5.0)
    assert slope(seconds, jumps) == 0


def test_what_grows_is_named():
    flat = [sample(t, 10**8 + (t % 3) * 4096) for t in range(30)]
    assert [t.problem for t in trends(flat, 5.0)] == [None]
    begins = [sample(t, 10**8 + 10**7 * min(t, 5)) for t in range(30)]
    assert [t.problem for t in trends(begins, 5.0)] == [None], "what grows before it is judged is no leak"
    grows = [sample(t, 10**8 + t * 100_000) for t in range(30)]
    assert "its memory grows by 2.3 MiB in 24 s" in trends(grows, 5.0)[0].problem
    files = [sample(t, 10**8, files=9 + t) for t in range(30)]
    assert "its open files go from" in trends(files, 5.0)[0].problem
    killed = [*flat[:20], *(sample(t, 10**8, name="another") for t in range(20, 30))]
    assert [t.problem for t in trends(killed, 5.0)] == ["it was not there all the time"] * 2
