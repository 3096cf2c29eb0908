"""A headless Chromium without a network, spoken to through a pipe (Chrome DevTools Protocol)."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CHROMIUM = shutil.which("chromium")
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe"),
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
_SECONDS = 120  # a browser that hangs is killed, and what waits for it fails


class Browser:
    """One tab; `events` is what happened in it since a page was opened."""

    def __init__(self, profile: Path) -> None:
        command = [str(CHROMIUM), *_FLAGS, f"--user-data-dir={profile}"]
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", 'exec "$@" 3<&0 4>&1 </dev/null >/dev/null', "sh", *command],  # it reads 3 and writes 4
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.events: list[dict[str, Any]] = []
        self.unread = b""
        self.count = 0
        self.session: str | None = None
        self.watchdog = threading.Timer(_SECONDS, self.process.kill)
        self.watchdog.start()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        self.process.stdin.write(json.dumps(message).encode() + b"\0")
        self.process.stdin.flush()
        while (answer := self.read()).get("id") != self.count:
            self.events.append(answer)
        assert "error" not in answer, answer
        return dict(answer["result"])

    def read(self) -> dict[str, Any]:
        """The next message, which ends in a zero byte."""
        assert isinstance(self.process.stdout, io.BufferedReader)
        while b"\0" not in self.unread:
            data = self.process.stdout.read1(2**20)
            assert data, "the browser is gone"
            self.unread += data
        message, _, self.unread = self.unread.partition(b"\0")
        return dict(json.loads(message))

    def open(self, path: Path, width: int, height: int = 900, scheme: str = "light") -> None:
        """Show a page, all of it loaded."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self.read())

    def evaluate(self, script: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def picture(self, selector: str) -> np.ndarray[Any, Any]:
        """What is seen of an element, (height, width, 3)."""
        box = f"(e => (({{x, y, width, height}}) => ({{x, y, width, height}}))(e.getBoundingClientRect()))({selector})"
        self.evaluate(f"{selector}.scrollIntoView()")
        clip = self.evaluate(box) | {"scale": 1}
        clip["y"] += self.evaluate("window.scrollY")
        data = self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)["data"]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)

    def complaints(self) -> list[dict[str, Any]]:
        """Errors, messages and dialogs since the page was opened."""
        kinds = (
            "Log.entryAdded",
            "Runtime.consoleAPICalled",
            "Runtime.exceptionThrown",
            "Page.javascriptDialogOpening",
        )
        return [event for event in self.events if event["method"] in kinds]

    def requests(self) -> list[str]:
        sent = (event for event in self.events if event["method"] == "Network.requestWillBeSent")
        return [event["params"]["request"]["url"] for event in sent]

    def close(self) -> None:
        self.session = None
        self.call("Browser.close")
        self.process.wait()
        self.watchdog.cancel()
