"""Headless Chromium, driven through its DevTools protocol: what a browser makes of a page."""

import itertools
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SECONDS = 60  # to wait for an answer, on a busy machine


@dataclass
class Browser:
    """One running Chromium. ``open`` gives a page of its own."""

    socket: ClientConnection
    events: list[dict[str, Any]] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Send a command and return its result; what happens meanwhile is kept in ``events``."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        self.socket.send(json.dumps(message | ({"sessionId": session} if session else {})))
        while (answer := self._receive()).get("id") != number:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return dict(answer["result"])

    def wait(self, session: str, event: str) -> None:
        while not any(found["method"] == event for found in self.of(session)):
            self._receive()

    def of(self, session: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event.get("sessionId") == session]

    def open(self, path: Path, width: int = 1200, height: int = 900) -> "Page":
        """The page of a file, loaded without a network."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Network", "Page"):
            self.call(f"{domain}.enable", session)
        offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        self.call("Network.emulateNetworkConditions", session, **offline)
        page = Page(self, session)
        page.resize(width, height)
        self.call("Page.navigate", session, url=path.absolute().as_uri())
        self.wait(session, "Page.loadEventFired")
        return page

    def _receive(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self.socket.recv(timeout=SECONDS))
        if "method" in message:
            self.events.append(message)
        return message


@dataclass
class Page:
    browser: Browser
    session: str

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, awaited."""
        answer = self.browser.call("Runtime.evaluate", self.session, expression=script, returnByValue=True,
                                   awaitPromise=True)  # fmt: skip
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def type(self, text: str) -> None:
        """Into what has the focus."""
        self.browser.call("Input.insertText", self.session, text=text)

    def press(self, key: str, code: int, text: str = "") -> None:
        for kind in ("keyDown", "keyUp"):
            self.browser.call("Input.dispatchKeyEvent", self.session, type=kind, key=key, code=key, text=text,
                              windowsVirtualKeyCode=code)  # fmt: skip

    def resize(self, width: int, height: int) -> None:
        self.browser.call("Page.bringToFront", self.session)  # pages behind another do not draw
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.browser.call("Emulation.setDeviceMetricsOverride", self.session, **size)

    def becomes(self, condition: str) -> bool:
        """Whether a JavaScript condition holds, now or as soon as what was asked for has been drawn."""
        pause = "await new Promise((done) => setTimeout(done, 50))"
        self.run(f"(async () => {{ for (let k = 0; k < 200 && !({condition}); k++) {pause} }})()")
        return bool(self.run(condition))

    def settle(self) -> None:
        """Let what has been asked for be drawn."""
        self.run("new Promise((done) => setTimeout(() => requestAnimationFrame(done), 300))")

    def emulate(self, medium: str, **features: str) -> None:
        """``features`` of the medium, such as ``prefers_color_scheme``."""
        listed = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.browser.call("Emulation.setEmulatedMedia", self.session, media=medium, features=listed)

    @property
    def problems(self) -> list[str]:
        """Errors in the console, exceptions, dialogs, and requests for anything but the file itself."""
        found = []
        for event in self.browser.of(self.session):
            params = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                found.append(str(params["exceptionDetails"]))
            elif event["method"] == "Log.entryAdded" and params["entry"]["level"] in {"error", "warning"}:
                found.append(params["entry"]["text"])
            elif event["method"] == "Runtime.consoleAPICalled" and params["type"] in {"error", "warning"}:
                found.append(str(params["args"]))
            elif event["method"] == "Page.javascriptDialogOpening":
                found.append(f"dialog: {params['message']}")
            elif event["method"] == "Network.requestWillBeSent":
                url = params["request"]["url"]
                if not url.startswith(("file:", "data:", "blob:")):
                    found.append(f"request: {url}")
        return found


@contextmanager
def chromium() -> Iterator[Browser]:
    assert CHROMIUM
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0",
                   f"--user-data-dir={profile}", "about:blank"]  # fmt: skip
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr
            try:
                address = next(found[1] for line in process.stderr if (found := re.search(r"(ws://\S+)", line)))
                with connect(address, max_size=None) as socket:
                    browser = Browser(socket)
                    yield browser
                    browser.call("Browser.close")
            finally:
                process.terminate()
