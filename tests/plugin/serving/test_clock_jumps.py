"""Exporter and load test while their clock is set hours ahead, and back: no duration shows it.

The clock of the day is replaced in these processes, and their monotonic one left. Not in the server, whose waits on
stubs are bounded by the day's time of the kernel; its backend keeps to the monotonic clock but for deadlines.
"""

import json
import os
import shutil
import struct
import subprocess
import sys
import time

import pytest
from support.processes import free_port, wait_for

from recpress.serving.metrics import fetch_text, read_values

COMPILER = shutil.which("cc") or shutil.which("gcc")
pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(COMPILER is None or sys.platform != "linux", reason="no C compiler; apt-get install gcc"),
]
CLOCK = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile long *offset;

__attribute__((constructor)) static void map_offset(void) {
    offset = mmap(0, sizeof(long), PROT_READ, MAP_SHARED, open(getenv("CLOCK_OFFSET"), O_RDONLY), 0);
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && offset && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += *offset;
    return failed;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    *now = (struct timeval){exact.tv_sec, exact.tv_nsec / 1000};
    return 0;
}
time_t time(time_t *out) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    return out ? (*out = exact.tv_sec) : exact.tv_sec;
}
"""


class Processes:
    """Commands of recpress by the clock that :meth:`set` sets."""

    def __init__(self, folder):
        self.folder, self.running, self._offset = folder, {}, folder / "offset"
        (folder / "clock.c").write_text(CLOCK)
        library = folder / "clock.so"
        subprocess.run([COMPILER, "-O1", "-shared", "-fPIC", "-o", library, folder / "clock.c"], check=True, timeout=60)
        self._offset.write_bytes(bytes(8))
        self.environment = os.environ | {"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(self._offset)}

    def set(self, seconds):
        with self._offset.open("r+b") as file:
            file.write(struct.pack("=q", seconds))

    def start(self, verb, *options):
        log = self.folder / f"{verb}.log"
        with log.open("wb") as output:
            command = [sys.executable, "-m", "recpress.cli", verb, *map(str, options)]
            self.running[verb] = subprocess.Popen(command, stdout=output, stderr=output, env=self.environment)
        return self.running[verb], log

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in reversed(self.running.values()):
            process.terminate()
            process.wait(60)


def total(text, name):
    return sum(value for _, value in read_values(text, name, {}))


def test_no_duration_shows_a_jump(server, artifact, repository, tmp_path):
    exported, load = free_port(), tmp_path / "result.json"
    address = ["--server", server.url("grpc")]
    with Processes(tmp_path) as processes:
        options = [*address, "--port", exported, "--interval", "0.3"]
        wait_for(*processes.start("exporter", repository, *options), "metrics at")
        options = [*address, "--name", "small", "--rate", "50", "--seconds", "4", "--json", load]
        tested, log = processes.start("loadtest", artifact, *options)
        wait_for(tested, log, "50/s, 5 s ...")
        begin, days = time.monotonic(), []
        for offset in (3600, 0, 7200, 0):
            time.sleep(0.8)
            processes.set(offset)
            days.append(clock_of(processes) - time.time())
        assert [round(day / 600) for day in days] == [6, 0, 12, 0], "the control: the clock is set"
        assert tested.wait(60) == 0, log.read_text()
        took = time.monotonic() - begin
        text = fetch_text(f"127.0.0.1:{exported}")
    for name in ("client_seconds_sum", "probe_duration_seconds", "exporter_round_age_seconds"):
        assert 0 < total(text, f"recpress_{name}") < took + 10, name
    assert total(text, "recpress_exporter_rounds_total") > 3 and total(text, "recpress_probe_failures_total") == 0
    (step,) = json.loads(load.read_text())["steps"]
    assert step["outcomes"] == {"ok": step["requests"]} and 25 < step["throughput"] < 100
    assert 0 < step["percentiles"]["50"] <= step["percentiles"]["100"] < 10 and step["sent_late_p99_s"] < 10


def clock_of(processes):
    """Unix time by the clock that is set."""
    told = subprocess.run(
        [sys.executable, "-c", "import time; print(time.time())"],
        env=processes.environment, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return float(told.stdout)
