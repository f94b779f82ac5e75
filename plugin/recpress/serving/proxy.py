"""nginx before NVIDIA Triton Inference Server: as many requests as it can answer in time, and a refusal for the rest.

``limit_conn`` counts requests, not connections: over HTTP/1.1 a connection counts while a request on it is under way,
and over HTTP/2, which gRPC speaks, each stream does. Both protocols share one count, whatever nginx' workers.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from string import Template

from recpress.errors import MissingDependencyError, ServerError
from recpress.serving.server import die_with_parent
from recpress.serving.wire import OVERLOADED

_READY_TIMEOUT_S = 20.0
_STOP_TIMEOUT_S = 10.0
_CONFIG = "nginx.conf"
_TEMPLATE = Template("""\
# nginx before NVIDIA Triton Inference Server: at most $limit requests under way, an immediate refusal for the rest.
# Written by: recpress proxy. $sized
# Run it with: nginx -p FOLDER -c THIS-FILE, where FOLDER is one that nginx may write to.
pid nginx.pid;
error_log stderr $level;
worker_processes 1;
events { worker_connections 8192; }

http {
$access_log
    server_tokens off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;

    # One count for all requests, of both protocols.
    limit_conn_zone recpress zone=recpress:1m;
    limit_conn_status 503;
    limit_conn_log_level info;

    client_max_body_size 64m;
    # The count begins before the body, so that slow senders must not take all places.
    client_body_timeout 5s;
    client_body_buffer_size 1m;
    keepalive_requests 1000000;

    upstream recpress_http {
        server $server_http;
        keepalive $limit;
        keepalive_requests 1000000;
    }
    upstream recpress_grpc {
        server $server_grpc;
        keepalive $limit;
        keepalive_requests 1000000;
    }

    server {
        listen $http backlog=4096;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_set_header Host $$host;
        proxy_read_timeout ${read_timeout}s;
        # A client that hangs up does not stop its request in the server, which goes on counting.
        proxy_ignore_client_abort on;
        # Sent once: the server may have begun with it.
        proxy_next_upstream off;
        error_page 502 504 @unreachable;
        error_page 503 @overloaded;

        location ~ ^/v2/models/.+/infer$$ {
            limit_conn recpress $limit;
            proxy_pass http://recpress_http;
        }
        location ~ ^/v2(/health/.+|/models/.+)?$$ {
            limit_except GET { deny all; }
            proxy_pass http://recpress_http;
        }
        # Model control and the like are not for clients.
        location / {
            return 404 '{"error":"no such path here; inference, health and metadata are"}';
        }
        location @overloaded {
            internal;
            default_type application/json;
            return 503 '{"error":"$overloaded"}';
        }
        location @unreachable {
            internal;
            default_type application/json;
            return 503 '{"error":"$unreachable"}';
        }
    }

    server {
        listen $grpc http2 backlog=4096;
        # More requests at once than the limit on one connection, or clients would queue what should be refused.
        http2_max_concurrent_streams 4096;
        grpc_read_timeout ${read_timeout}s;
        grpc_next_upstream off;
        error_page 502 504 = @unreachable;
        error_page 503 = @overloaded;

        location = /inference.GRPCInferenceService/ModelInfer {
            limit_conn recpress $limit;
            grpc_pass grpc://recpress_grpc;
        }
        location ~ ^/inference.GRPCInferenceService/((Server|Model)(Live|Ready|Metadata)|ModelConfig)$$ {
            grpc_pass grpc://recpress_grpc;
        }
        location ~ ^/grpc.health.v1.Health/ {
            grpc_pass grpc://recpress_grpc;
        }
        # gRPC's own status, in a header as there is no message that it could come behind. 12 is UNIMPLEMENTED.
        location / {
            default_type application/grpc;
            add_header grpc-status 12;
            add_header grpc-message "not here; inference, health and metadata are";
            return 200;
        }
        # 14 is UNAVAILABLE.
        location @overloaded {
            internal;
            default_type application/grpc;
            add_header grpc-status 14;
            add_header grpc-message "$overloaded";
            return 200;
        }
        location @unreachable {
            internal;
            default_type application/grpc;
            add_header grpc-status 14;
            add_header grpc-message "$unreachable";
            return 200;
        }
    }
}
""")

_LOG = Template("""\
    error_log stderr error;

    # The time of each request for inference, as a datagram to: recpress exporter --proxy-log $log
    map $$uri $$recpress_protocol {
        default "";
        ~^/v2/models/.+/infer$$ http;
        /inference.GRPCInferenceService/ModelInfer grpc;
    }
    # Over gRPC it is in the message, which nginx does not read.
    map $$uri $$recpress_model {
        default -;
        ~^/v2/models/(?<recpress_name>[^/]+)/(versions/[^/]+/)?infer$$ $$recpress_name;
    }
    # HTTP's status of the answer and of the server, and gRPC's, which is in a header or behind the answer.
    log_format recpress '$$recpress_protocol $$status $$upstream_status '
                        '$$sent_http_grpc_status$$sent_trailer_grpc_status '
                        '$$request_time $$upstream_response_time $$recpress_model';
    access_log syslog:server=$log,nohostname,tag=recpress recpress if=$$recpress_protocol;""")
_NO_LOG = """\
    # recpress proxy --log HOST:PORT has the time of each request sent to recpress exporter --proxy-log HOST:PORT.
    access_log off;"""


@dataclass(frozen=True)
class Route:
    """From where clients come to where the server listens, ``host:port`` each."""

    listen: str
    server: str


HTTP = Route("127.0.0.1:9000", "127.0.0.1:8000")
GRPC = Route("127.0.0.1:9001", "127.0.0.1:8001")


def nginx_config(
    *, limit: int, deadline_s: float, http: Route = HTTP, grpc: Route = GRPC, sized: str = "", log: str | None = None
) -> str:
    """The whole of an ``nginx.conf``.

    Args:
        limit: requests under way; see :func:`recpress.serving.limiter.fitting_limit`.
        deadline_s: of the clients; an answer is waited for ten times as long, and 10 s at least.
        http, grpc: addresses.
        sized: how the limit was found, for a comment.
        log: where each request's time is sent, for :class:`recpress.serving.proxy_log.ProxyLog`; nowhere by default.

    Raises:
        ServerError: the limit is not positive, or an address is not ``host:port``.
    """
    if limit < 1 or not deadline_s > 0:
        raise ServerError(f"a proxy with limit={limit} and deadline_s={deadline_s} cannot work; both must be positive")
    for address in (http.listen, http.server, grpc.listen, grpc.server, *([] if log is None else [log])):
        check_address(address)
    return _TEMPLATE.substitute(
        # While nobody takes the log, each line of it would be an error of the process and a warning of its request.
        level="warn" if log is None else "crit",
        access_log=_NO_LOG if log is None else _LOG.substitute(log=log),
        limit=limit,
        sized=sized,
        http=http.listen,
        grpc=grpc.listen,
        server_http=http.server,
        server_grpc=grpc.server,
        read_timeout=max(10, round(10 * deadline_s)),
        overloaded=f"{OVERLOADED} the proxy lets {limit} requests through at a time; send it elsewhere, or later",
        unreachable="the proxy cannot reach the server behind it",
    )


def check_address(address: str) -> None:
    """Raises ServerError unless ``address`` is ``host:port``."""
    host, _, port = address.rpartition(":")
    # Nothing that would end a directive of the configuration.
    if not re.fullmatch(r"[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]|\*", host) or not port.isdecimal() or int(port) > 65535:
        raise ServerError(f"address {address!r} is not HOST:PORT; give one such as 127.0.0.1:8001")


def find_nginx() -> str:
    """The path of nginx, which Debian keeps from users' PATH.

    Raises:
        MissingDependencyError: it is not installed.
    """
    binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if binary is None:
        raise MissingDependencyError("no nginx on PATH; install it with: apt-get install nginx-light")
    return binary


class Proxy:
    """nginx in a folder of its own, from :meth:`start` to :meth:`stop`, or as a context manager.

    >>> with Proxy(nginx_config(limit=24, deadline_s=0.1)):
    ...     pass  # clients

    Args:
        config: the text of its configuration.
    """

    def __init__(self, config: str) -> None:
        self.config = config
        self.process: subprocess.Popen | None = None
        self._folder: Path | None = None

    def __enter__(self) -> "Proxy":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start nginx and return when it listens.

        Raises:
            MissingDependencyError: nginx is not installed.
            ServerError: it does not take the configuration, or a port is busy. Nothing is left running.
        """
        binary = find_nginx()
        listening = [_reachable(a) for a in re.findall(r"^\s*listen (\S+):(\d+) ", self.config, re.MULTILINE)]
        for address in listening:
            _check_free(address)
        self._folder = Path(tempfile.mkdtemp(prefix=f"recpress-proxy-{os.getpid()}-"))
        # Started by root, nginx works as another user.
        self._folder.chmod(0o755)
        path, log = self._folder / _CONFIG, self._folder / "nginx.log"
        path.write_text(self.config, encoding="utf-8")
        try:
            with log.open("wb") as output:
                self.process = subprocess.Popen(
                    [binary, "-p", str(self._folder), "-c", str(path), "-g", "daemon off;"],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=die_with_parent,
                )
            self._wait_until_it_listens(listening, log)
        except BaseException:
            self.stop()
            raise

    def _wait_until_it_listens(self, waiting: list[tuple[str, int]], log: Path) -> None:
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while waiting:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise ServerError(f"nginx does not start: {log.read_text(errors='replace').strip()[-1000:]}")
            with contextlib.suppress(OSError), socket.create_connection(waiting[-1], timeout=1):
                waiting.pop()
                continue
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop nginx and remove its folder. Safe to repeat."""
        process, self.process = self.process, None
        try:
            if process is not None:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_STOP_TIMEOUT_S)
        finally:
            if process is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)


def _reachable(address: tuple[str, str]) -> tuple[str, int]:
    host, port = address
    return "127.0.0.1" if host in ("*", "0.0.0.0") else host.strip("[]"), int(port)


def _check_free(address: tuple[str, int]) -> None:
    # nginx tries for some seconds, in which whoever listens there would be taken for it.
    try:
        socket.create_server(address).close()
    except OSError as error:
        raise ServerError(
            f"nginx cannot listen on {address[0]}:{address[1]} ({error.strerror}); stop what listens there, or take "
            "another port"
        ) from None
