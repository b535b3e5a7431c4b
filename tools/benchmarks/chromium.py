"""Drives a Chromium by its DevTools protocol, over pipes: no package needed.

For benchmarks and tests of the labeling page.
"""

import base64
import contextlib
import fcntl
import itertools
import json
import os
import pathlib
import select
import shutil
import signal
import subprocess
import time
from typing import Any, Self

PROGRAM = next(
    filter(
        None,
        map(shutil.which, ("chromium", "chromium-browser", "google-chrome")),
    ),
    None,
)
_WAIT_SECONDS = 120.0
# Keys that are no characters: name → Windows' virtual key code.
_CODES = {"Backspace": 8, "Tab": 9, "Enter": 13, "Escape": 27, " ": 32}


def _high(descriptor: int) -> int:
    """Moves a descriptor out of the way of those that Chromium uses."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(descriptor)
    return moved


class Browser:
    """A process of Chromium with a profile of its own.

    Attributes:
        process: The process.
    """

    def __init__(self, profile: str | os.PathLike) -> None:
        """Starts one.

        Args:
            profile: Folder for its files; it need not exist.
        """
        # Chromium reads from descriptor 3 and writes to 4.
        to_browser, self._out = map(_high, os.pipe())
        self._in, from_browser = map(_high, os.pipe())
        command = (
            f'exec "$@" 3<&{to_browser} 4>&{from_browser} '
            f"{to_browser}<&- {from_browser}>&-"
        )
        words = [PROGRAM, "--headless", "--no-sandbox", "--disable-gpu"]
        words += ["--remote-debugging-pipe", f"--user-data-dir={profile}"]
        words += ["--no-first-run", "--disable-background-networking"]
        words += ["--no-proxy-server", "about:blank"]
        self.process = subprocess.Popen(
            ["bash", "-c", command, "bash", *words],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._numbers = itertools.count(1)
        self._rest = b""
        self.events = []

    def send(
        self, method: str, session: str | None = None, **parameters: Any
    ) -> dict[str, Any]:
        """Sends a command; returns its result.

        Raises:
            AssertionError: The browser reports an error, or has ended.
        """
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + _WAIT_SECONDS
        while True:
            answer = self._read(until)
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            if "method" in answer:
                self.events.append(answer)

    def _read(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            wait = max(0, until - time.monotonic())
            assert select.select([self._in], [], [], wait)[0], "no answer"
            content = os.read(self._in, 2**16)
            assert content, "the browser has ended"
            self._rest += content
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def kill(self) -> None:
        """Kills it, with its own processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for file in (self._in, self._out):
            with contextlib.suppress(OSError):
                os.close(file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()


class Page:
    """A tab."""

    def __init__(
        self,
        browser: Browser,
        address: str,
        *,
        width: int = 1280,
        height: int = 800,
    ) -> None:
        """Opens an address in a new tab.

        Args:
            browser: The browser.
            address: The address.
            width: Of the tab, in pixels.
            height: Of the tab, in pixels.
        """
        self._browser = browser
        target = browser.send("Target.createTarget", url="about:blank")
        self._target = target["targetId"]
        attached = browser.send(
            "Target.attachToTarget", targetId=self._target, flatten=True
        )
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")
        self.resize(width, height)
        self.send("Page.navigate", url=address)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends a command; see `Browser.send`."""
        return self._browser.send(method, self._session, **parameters)

    def resize(self, width: int, height: int) -> None:
        """Changes the size of the tab, in pixels."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def dark(self, dark: bool = True) -> None:
        """Sets whether the user prefers dark colours."""
        value = "dark" if dark else "light"
        features = [{"name": "prefers-color-scheme", "value": value}]
        self.send("Emulation.setEmulatedMedia", features=features)

    def value(self, expression: str) -> Any:
        """Returns the value of an expression, or of its promise.

        Raises:
            AssertionError: It throws an exception.
        """
        result = self.send(
            "Runtime.evaluate",
            expression=expression,
            returnByValue=True,
            awaitPromise=True,
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, expression: str) -> None:
        """Waits until an expression is true.

        Raises:
            AssertionError: It is not within half a minute.
        """
        until = time.monotonic() + _WAIT_SECONDS
        while time.monotonic() < until:
            with contextlib.suppress(AssertionError):  # still loading
                if self.value(expression):
                    return
            time.sleep(0.02)
        raise AssertionError(f"not true: {expression}")

    def text(self, selector: str) -> str:
        """Returns the text that an element shows."""
        return self.value(f"document.querySelector({selector!r}).innerText")

    def key(self, key: str, *, ctrl: bool = False) -> None:
        """Presses and releases a key."""
        code = _CODES.get(key) or ord(key.upper())
        parameters = {
            "key": key,
            "windowsVirtualKeyCode": code,
            "modifiers": 2 if ctrl else 0,
        }
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        if text and not ctrl:
            parameters["text"] = text
        kind = "keyDown" if "text" in parameters else "rawKeyDown"
        self.send("Input.dispatchKeyEvent", type=kind, **parameters)
        parameters.pop("text", None)
        self.send("Input.dispatchKeyEvent", type="keyUp", **parameters)

    def type(self, text: str) -> None:
        """Enters a text where the focus is."""
        self.send("Input.insertText", text=text)

    def click(self, selector: str, place: int = 0) -> None:
        """Clicks the middle of an element with the mouse."""
        element = f"document.querySelectorAll({selector!r})[{place}]"
        self.wait(f"Boolean({element})")
        x, y = self.value(
            f"(() => {{ const e = {element}; "
            "e.scrollIntoView({block: 'nearest'}); "
            "const r = e.getBoundingClientRect(); "
            "return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send(
                "Input.dispatchMouseEvent",
                type=kind,
                x=x,
                y=y,
                button="left",
                clickCount=1,
            )

    def picture(self, path: pathlib.Path) -> None:
        """Saves what is seen as PNG."""
        shot = self.send("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))
