"""The labeling page over HTTP, for browsers on this machine.

The page itself (page/) is public and holds nothing. All else needs the token,
which the command prints as the fragment of the address: a browser sends it to
no server, writes it into no log, and the page's script puts it into a header.
Images are named by their index alone.
"""

import functools
import hmac
import importlib.resources
import io
import ipaddress
import json
import re
import secrets
import socket
from collections.abc import Callable
from typing import Any, Self

import PIL.Image
import werkzeug
import werkzeug.exceptions
import werkzeug.routing
import werkzeug.serving

from simmatch_tf.data import viewing
from simmatch_tf.flags.errors import InputError
from simmatch_tf.labeling import lookalikes as lookalikes_lib
from simmatch_tf.labeling import session as session_lib

TOKEN_HEADER = "X-Label-Token"
# Longest side of the large image and of a thumbnail, in pixels.
_LARGE, _SMALL = 1600, 192
# Up to this side an image is sent without loss.
_LOSSLESS = 256
_LIKE = 24  # images in the grid of look-alikes
_MOST_BYTES = 2**16  # of a request
_BROWSER = re.compile(r"[a-z0-9]{8,32}")
_REQUEST = re.compile(r"[a-z0-9]{8,32}-[a-z0-9]{1,32}")
_PAGE = {
    "": ("label.html", "text/html; charset=utf-8"),
    "label.css": ("label.css", "text/css; charset=utf-8"),
    "label.js": ("label.js", "text/javascript; charset=utf-8"),
}
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src "
        "blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_Response = werkzeug.Response


class App:
    """The WSGI application.

    Attributes:
        token: The secret in the address.
    """

    def __init__(
        self,
        session: session_lib.Session,
        lookalikes: lookalikes_lib.LookAlikes,
        *,
        host: str,
        about: dict[str, Any],
        token: str | None = None,
    ) -> None:
        """Prepares the application.

        Args:
            session: What the requests act on.
            lookalikes: For the grid.
            host: The host it listens on, as in --host.
            about: What the page is to know and never changes.
            token: The secret; default: a new one.
        """
        self.token = token or secrets.token_urlsafe(24)
        self._session, self._lookalikes = session, lookalikes
        self._host, self._about = host, about
        rule = werkzeug.routing.Rule
        self._urls = werkzeug.routing.Map(
            [
                rule("/", endpoint=self._page, methods=["GET"]),
                rule("/<name>", endpoint=self._page, methods=["GET"]),
                rule(
                    "/image/<int:index>",
                    endpoint=functools.partial(self._image, _LARGE),
                    methods=["GET"],
                ),
                rule(
                    "/thumbnail/<int:index>",
                    endpoint=functools.partial(self._image, _SMALL),
                    methods=["GET"],
                ),
                rule("/api/view", endpoint=self._view, methods=["POST"]),
                rule("/api/alive", endpoint=self._alive, methods=["POST"]),
                rule("/api/leave", endpoint=self._leave, methods=["POST"]),
                rule("/api/answer", endpoint=self._answer, methods=["POST"]),
                rule("/api/undo", endpoint=self._undo, methods=["POST"]),
                rule("/api/class", endpoint=self._class, methods=["POST"]),
                rule("/api/open", endpoint=self._open, methods=["POST"]),
                rule("/api/like", endpoint=self._like, methods=["POST"]),
            ],
            redirect_defaults=False,
            strict_slashes=True,
            merge_slashes=False,
        )

    def __call__(self, environ: dict, start_response: Callable) -> Any:
        """Answers a request; see PEP 3333."""
        request = werkzeug.Request(environ)
        request.max_content_length = _MOST_BYTES
        try:
            response = self._respond(request)
        except werkzeug.exceptions.HTTPException as error:
            response = _failure(error.code or 500, error.description or "")
            if isinstance(error, werkzeug.exceptions.MethodNotAllowed):
                response.headers["Allow"] = ", ".join(error.valid_methods or ())
        for name, value in _HEADERS.items():
            response.headers[name] = value
        return response(environ, start_response)

    def _respond(self, request: werkzeug.Request) -> _Response:
        self._check_origin(request)
        matched = self._urls.bind("localhost").match(
            request.path, method=request.method
        )
        endpoint, values = matched
        if endpoint != self._page:
            given = request.headers.get(TOKEN_HEADER, "")
            if not hmac.compare_digest(given.encode(), self.token.encode()):
                raise werkzeug.exceptions.Forbidden(
                    "This address is out of date: open the one that the "
                    "command printed last."
                )
        if request.method == "POST":
            return endpoint(_body(request))
        return endpoint(**values)

    def _check_origin(self, request: werkzeug.Request) -> None:
        """Refuses requests that another site makes a browser send.

        Such a site may have a name that it leads to this machine (DNS
        rebinding); then the browser names it as Host.
        """
        host = request.headers.get("Host", "")
        if not _is_own_name(_without_port(host), self._host):
            raise werkzeug.exceptions.Forbidden(
                "the host in the address is not one of this server"
            )
        origin = request.headers.get("Origin")
        if origin is not None and origin != f"http://{host}":
            raise werkzeug.exceptions.Forbidden(
                "the request is of another site"
            )

    # ----------------------------------------------------------- the answers --

    def _page(self, name: str = "") -> _Response:
        if name not in _PAGE:
            raise werkzeug.exceptions.NotFound()
        file, kind = _PAGE[name]
        return _Response(_files()[file], content_type=kind)

    def _image(self, side: int, index: int) -> _Response:
        self._check_index(index)
        try:
            image = viewing.picture(self._session.work.paths[index], side)
        except ValueError as error:
            self._session.pass_over(index, str(error))
            name = self._session.work.names[index]
            return _failure(422, f"{name}: {error}")
        content, kind = _encode(image)
        return _Response(content, content_type=kind)

    def _view(self, body: dict[str, Any]) -> _Response:
        return self._shown(_text(body, "browser", _BROWSER), body)

    def _alive(self, body: dict[str, Any]) -> _Response:
        self._session.alive(_text(body, "browser", _BROWSER))
        return _json({})

    def _leave(self, body: dict[str, Any]) -> _Response:
        self._session.leave(_text(body, "browser", _BROWSER))
        return _json({})

    def _answer(self, body: dict[str, Any]) -> _Response:
        request = _text(body, "request", _REQUEST)
        indices, was = body.get("images"), body.get("was")
        if not isinstance(indices, list) or not isinstance(was, list):
            raise werkzeug.exceptions.BadRequest("images and was must be lists")
        if (
            not indices
            or len({*map(repr, indices)}) < len(indices)
            or (len(indices) != len(was))
        ):
            raise werkzeug.exceptions.BadRequest(
                "images must be different ones, and was as long"
            )
        for index in indices:
            self._check_index(index)
        answer, name = body.get("answer"), body.get("class")
        if answer not in ("class", "none", "skip"):
            raise werkzeug.exceptions.BadRequest(
                f"answer={answer!r}: must be class, none or skip"
            )
        browser = request.rpartition("-")[0]
        try:
            self._session.answer(request, indices, answer, name, was)
        except session_lib.ConflictError as error:
            return self._shown(browser, body, error=str(error), status=409)
        except ValueError as error:
            raise werkzeug.exceptions.BadRequest(str(error)) from None
        except OSError as error:
            return _not_saved(error)
        return self._shown(browser, body)

    def _undo(self, body: dict[str, Any]) -> _Response:
        request = _text(body, "request", _REQUEST)
        try:
            self._session.undo(request)
        except OSError as error:
            return _not_saved(error)
        return self._shown(request.rpartition("-")[0], body)

    def _class(self, body: dict[str, Any]) -> _Response:
        request = _text(body, "request", _REQUEST)
        try:
            self._session.add_class(request, _text(body, "name"))
        except ValueError as error:
            raise werkzeug.exceptions.BadRequest(str(error)) from None
        except OSError as error:
            return _not_saved(error)
        return self._shown(request.rpartition("-")[0], body)

    def _open(self, body: dict[str, Any]) -> _Response:
        index = body.get("image")
        self._check_index(index)
        return _json(self._session.open_image(index))

    def _like(self, body: dict[str, Any]) -> _Response:
        browser = _text(body, "browser", _BROWSER)
        index = body.get("image")
        self._check_index(index)
        self._lookalikes.start()
        try:
            nearest = self._lookalikes.like(index)
        except ValueError as error:
            self._session.pass_over(index, str(error))
            return _failure(422, f"{self._session.work.names[index]}: {error}")
        images = [self._session.open_image(index)]
        others = dict.fromkeys([*self._session.of_cluster(index), *nearest])
        for other in others:
            if len(images) == _LIKE:
                break
            if other != index and self._session.is_open(other, browser):
                images.append(self._session.open_image(other))
        seen, total = self._lookalikes.progress()
        return _json({"images": images, "seen": seen, "all": total})

    def _shown(
        self,
        browser: str,
        body: dict[str, Any],
        *,
        error: str = "",
        status: int = 200,
    ) -> _Response:
        beyond = body.get("beyond") is True
        state = self._session.view(browser, beyond=beyond)
        # Once somebody looks, the features of the grid are on their way.
        self._lookalikes.start()
        return _json({**self._about, **state, "error": error}, status)

    def _check_index(self, index: Any) -> None:
        if type(index) is not int or not 0 <= index < len(self._session.work):
            raise werkzeug.exceptions.NotFound(
                f"image {index!r}: must be a number from 0 to "
                f"{len(self._session.work) - 1}"
            )


class Server:
    """Listens for browsers, each request in a thread of its own.

    Attributes:
        port: The port that it listens on.
    """

    def __init__(self, host: str, port: int) -> None:
        """Takes the port.

        Args:
            host: Name or address of this machine.
            port: The port; 0: any free one.

        Raises:
            InputError: The port or the host cannot be listened on.
        """
        try:
            family, *_, address = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM
            )[0]
        except OSError as error:
            raise InputError(
                f"--host={host}: is no address of this machine "
                f"({error.strerror})"
            ) from None
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind(address)
            self._socket.listen(128)
        except OSError as error:
            self._socket.close()
            raise InputError(
                f"--host={host} --port={port}: cannot be listened on "
                f"({error.strerror})"
            ) from None
        self._address = address[0]
        self.port = self._socket.getsockname()[1]

    def serve(self, app: App) -> None:
        """Answers requests until KeyboardInterrupt."""
        server = werkzeug.serving.make_server(
            self._address,
            self.port,
            app,
            threaded=True,
            request_handler=_Handler,
            fd=self._socket.fileno(),
        )
        try:
            server.serve_forever(poll_interval=0.2)
        finally:
            server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()


class _Handler(werkzeug.serving.WSGIRequestHandler):
    """Logs no requests, and does not say what serves them."""

    # A browser that keeps silent ends its connection, not the server's thread.
    timeout = 120

    def log(self, type: str, message: str, *args: Any) -> None:
        del type, message, args

    def version_string(self) -> str:
        return "simmatch_tf"


def is_loopback(host: str) -> bool:
    """Returns whether only this machine can reach a host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _without_port(host: str) -> str:
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(:[0-9]{1,5})?", host)
    return match[1].strip("[]").lower() if match else ""


def _is_own_name(name: str, host: str) -> bool:
    """Whether a browser that asks for a name may mean this server.

    The port is left open: it may be forwarded by ssh.
    """
    if is_loopback(name):
        return True
    if is_loopback(host):
        return False
    try:
        # Nobody can lead an address elsewhere, as one can a name.
        ipaddress.ip_address(name)
    except ValueError:
        own = {host, socket.gethostname(), socket.getfqdn()}
        return name in {each.lower() for each in own}
    return True


@functools.cache
def _files() -> dict[str, bytes]:
    folder = importlib.resources.files("simmatch_tf.labeling") / "page"
    return {file: (folder / file).read_bytes() for file, _ in _PAGE.values()}


def _encode(image: PIL.Image.Image) -> tuple[bytes, str]:
    file = io.BytesIO()
    if max(image.size) <= _LOSSLESS:
        image.save(file, "PNG", compress_level=1)
        return file.getvalue(), "image/png"
    image.save(file, "JPEG", quality=88)
    return file.getvalue(), "image/jpeg"


def _body(request: werkzeug.Request) -> dict[str, Any]:
    if request.mimetype != "application/json":
        raise werkzeug.exceptions.UnsupportedMediaType("must be JSON")
    try:
        body = json.loads(request.get_data())
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise werkzeug.exceptions.BadRequest("must be a JSON object")
    return body


def _text(
    body: dict[str, Any], key: str, pattern: re.Pattern | None = None
) -> str:
    value = body.get(key)
    if not isinstance(value, str) or (
        pattern is not None and not pattern.fullmatch(value)
    ):
        raise werkzeug.exceptions.BadRequest(f"{key}={value!r}: is not right")
    return value


def _json(content: Any, status: int = 200) -> _Response:
    return _Response(
        json.dumps(content, ensure_ascii=False),
        status,
        content_type="application/json",
    )


def _failure(status: int, text: str) -> _Response:
    return _json({"error": text}, status)


def _not_saved(error: OSError) -> _Response:
    return _failure(507, f"The answer is not saved ({error.strerror or error})")
