"""The command `label` as a process of its own."""

import json
import re
import signal
import subprocess
import sys
import urllib.request

from simmatch_tf.labeling import server


class Process:
    """A running command.

    Attributes:
        address: The address that it printed, with the token.
        port: Its port.
    """

    def __init__(self, images, *words, cwd=None):
        ordered = any(word.startswith(("--list", "--order")) for word in words)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "simmatch_tf.label", f"--images={images}"]
            + [*words, *([] if ordered else ["--order=random"])],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
        )
        self.printed = []
        for line in self.process.stdout:
            self.printed.append(line)
            if match := re.match(
                r"Open (http://(\S+?):(\d+)/#token=(\S+))", line
            ):
                self.address, self.port = match[1], int(match[3])
                self._token = match[4]
                break
        else:
            raise AssertionError(self.process.stderr.read())

    def get(self, path, content=None):
        """Sends a request with the token; returns the content of the answer."""
        headers = {server.TOKEN_HEADER: self._token}
        if content is not None:
            headers["Content-Type"] = "application/json"
        address = f"http://127.0.0.1:{self.port}{path}"
        request = urllib.request.Request(address, content, headers)
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.read()

    def post(self, path, **body):
        return json.loads(self.get(f"/api/{path}", json.dumps(body).encode()))

    def kill(self):
        self.process.kill()
        self.process.communicate()

    def end(self, number=signal.SIGINT):
        """Ends it; returns the exit status and what it printed."""
        self.process.send_signal(number)
        out, errors = self.process.communicate(timeout=60)
        return self.process.returncode, "".join(self.printed) + out, errors

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.process.poll() is None:
            self.kill()
