"""A headless Chromium, spoken to by its DevTools protocol: what a page looks like, not what its text says."""

import asyncio
import base64
import contextlib
import shutil
import subprocess
import time
from pathlib import Path

import aiohttp

BINARY = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)


class Page:
    """One page in the browser; ``requests`` holds the addresses that it asked for."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.requests: list[str] = []
        self._socket, self._number = socket, 0
        self._loaded = False

    async def _take(self, seconds: float) -> dict:
        message = await asyncio.wait_for(self._socket.receive_json(), seconds)
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(message["params"]["request"]["url"])
        self._loaded = self._loaded or message.get("method") == "Page.loadEventFired"
        return message

    async def send(self, method: str, **parameters: object) -> dict:
        """The result of a method of the protocol."""
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            message = await self._take(60)
            if message.get("id") == self._number:
                assert "error" not in message, message["error"]
                return message["result"]

    async def open(self, path: Path) -> None:
        """Load a file, and wait until it is there."""
        await self.send("Page.enable")
        await self.send("Network.enable")
        self._loaded = False
        await self.send("Page.navigate", url=path.as_uri())
        while not self._loaded:
            await self._take(60)

    async def shape(self, width: int, height: int, *, dark: bool = False, phone: bool = False) -> None:
        """The size of the window in CSS pixels, and whether the user likes it dark."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
        await self.send("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.send("Emulation.setEmulatedMedia", features=[scheme])

    async def ask(self, expression: str) -> object:
        """What a JavaScript expression is."""
        result = await self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    async def screenshot(self) -> bytes:
        """The whole page as PNG."""
        return base64.b64decode((await self.send("Page.captureScreenshot", captureBeyondViewport=True))["data"])

    async def pdf(self) -> bytes:
        """The page as it is printed on A4."""
        paper = {"paperWidth": 8.27, "paperHeight": 11.69, "preferCSSPageSize": True, "printBackground": True}
        return base64.b64decode((await self.send("Page.printToPDF", **paper))["data"])


@contextlib.asynccontextmanager
async def browser(profile: Path):
    """A page in a browser of its own, which is gone afterwards; ``profile`` is a folder that it may use."""
    command = [BINARY, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port = await _port(process, profile / "DevToolsActivePort")
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                targets = await answer.json(content_type=None)
            url = next(target["webSocketDebuggerUrl"] for target in targets if target["type"] == "page")
            async with session.ws_connect(url, max_msg_size=0) as socket:
                yield Page(socket)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def _port(process: subprocess.Popen, note: Path) -> str:
    deadline = time.monotonic() + 60
    while not note.exists() or not note.read_text().strip():
        assert process.poll() is None and time.monotonic() < deadline, "the browser does not start"
        await asyncio.sleep(0.05)
    return note.read_text().split()[0]
