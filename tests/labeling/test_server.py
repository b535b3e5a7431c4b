import io
import json

import PIL.Image
import pytest

from simmatch_tf.data import answers as answers_lib
from simmatch_tf.flags.errors import InputError
from simmatch_tf.labeling import server
from tests.labeling import helpers

GETS = ("/image/0", "/thumbnail/0")
POSTS = {
    "/api/view": {"browser": "annannann"},
    "/api/alive": {"browser": "annannann"},
    "/api/leave": {"browser": "annannann"},
    "/api/answer": {
        "request": "annannann-1",
        "images": [0],
        "was": [None],
        "answer": "class",
        "class": "cat",
    },
    "/api/undo": {"request": "annannann-2"},
    "/api/class": {"request": "annannann-3", "name": "fox"},
    "/api/open": {"image": 0},
    "/api/like": {"browser": "annannann", "image": 0},
}


@pytest.fixture
def place(tmp_path):
    place = helpers.Place(tmp_path)
    yield place
    place.writer.close()


@pytest.fixture
def client(place):
    return place.client()


def lines(place):
    return place.log.read_text("utf-8").count("\n") - 1


# ------------------------------------------------------------------- security


@pytest.mark.parametrize("token", [None, "", "the-toke", "the-token2", "é"])
def test_nothing_but_the_page_without_the_token(place, client, token):
    for path in GETS:
        response = client.get(path, **{server.TOKEN_HEADER: token})
        assert response.status_code == 403
        assert response.mimetype == "application/json"
    for path, body in POSTS.items():
        response = client.post(path, body, **{server.TOKEN_HEADER: token})
        assert response.status_code == 403, path
    assert not lines(place)
    for path in ("/", "/label.js", "/label.css"):
        response = client.get(path, **{server.TOKEN_HEADER: token})
        assert response.status_code == 200
        assert "photos" not in response.text
        assert helpers.TOKEN not in response.text


def test_all_of_them_with_the_token(place, client):
    for path in GETS:
        assert client.get(path).status_code == 200
    for path, body in POSTS.items():
        assert client.post(path, body).status_code == 200, path


def test_the_token_is_not_taken_from_the_address(client):
    response = client.client.get(
        f"/image/0?token={helpers.TOKEN}", base_url=helpers.BASE
    )
    assert response.status_code == 403


@pytest.mark.parametrize(
    "host, allowed",
    [
        ("127.0.0.1:5000", True),
        ("localhost:8888", True),  # forwarded by ssh
        ("[::1]:5000", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example:5000", False),
        ("192.168.1.2:5000", False),
        ("", False),
        ("localhost:5000:1", False),
        ("a@localhost", False),
    ],
)
def test_only_a_loopback_host(place, client, host, allowed):
    for path in ("/", *GETS):
        response = client.get(path, Host=host)
        assert response.status_code == (200 if allowed else 403)
    response = client.post("/api/answer", POSTS["/api/answer"], Host=host)
    assert response.status_code == (200 if allowed else 403)
    assert lines(place) == allowed


@pytest.mark.parametrize(
    "host, name, allowed",
    [
        ("0.0.0.0", "192.168.1.2:5000", True),
        ("0.0.0.0", "evil.example:5000", False),
        ("0.0.0.0", "127.0.0.1:5000", True),
        ("lab.example", "lab.example:5000", True),
        ("lab.example", "Lab.Example:5000", True),
        ("lab.example", "evil.example:5000", False),
    ],
)
def test_hosts_of_a_server_for_others(place, host, name, allowed):
    client = place.client(host=host)
    response = client.get("/image/0", Host=name)
    assert response.status_code == (200 if allowed else 403)


@pytest.mark.parametrize(
    "origin, allowed",
    [
        ("http://127.0.0.1:5000", True),
        ("http://127.0.0.1:5001", False),
        ("https://127.0.0.1:5000", False),
        ("http://localhost:5000", False),
        ("http://evil.example", False),
        ("null", False),
        ("", False),
    ],
)
def test_only_its_own_origin(place, client, origin, allowed):
    response = client.post("/api/answer", POSTS["/api/answer"], Origin=origin)
    assert response.status_code == (200 if allowed else 403)
    assert lines(place) == allowed


@pytest.mark.parametrize(
    "path",
    [
        "/../setup.py",
        "/..%2fsetup.py",
        "/label.html",
        "/page/label.js",
        "/image/../../../etc/passwd",
        "/image/%2e%2e%2f000.png",
        "/image/000.png",
        "/image/-1",
        "/image/12",
        "/image/99999999999999999999",
        "/image/0.5",
        "/image/",
        "/image",
        "/image/0/",
        "//image/0",
        "/thumbnail/12",
        "/labels.jsonl",
        "/api/none",
    ],
)
def test_paths_that_lead_nowhere(client, path):
    response = client.get(path)
    assert response.status_code == 404, response.status
    assert response.mimetype == "application/json"


@pytest.mark.parametrize("index", [-1, 12, 10**30, 0.0, True, None, "0", [0]])
def test_indices_that_are_none(place, client, index):
    for path in ("/api/open", "/api/like"):
        response = client.post(path, POSTS[path] | {"image": index})
        assert response.status_code == 404
    body = POSTS["/api/answer"] | {"images": [index]}
    assert client.post("/api/answer", body).status_code == 404
    assert not lines(place)


def test_every_response_has_the_security_headers(client):
    responses = [
        client.get("/"),
        client.get("/none"),
        client.get("/image/0"),
        client.get("/", Host="evil.example"),
        client.post("/api/view", POSTS["/api/view"]),
        client.post("/", {}),
    ]
    for response in responses:
        policy = response.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert response.headers["Cache-Control"] == "no-store"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Referrer-Policy"] == "no-referrer"
    assert [r.status_code for r in responses] == [200, 404, 200, 403, 200, 405]


def test_the_page_has_no_inline_code_and_names_no_other_site(client):
    page = client.get("/").text
    assert "<script src=" in page and "<script>" not in page
    assert "style=" not in page and "onclick" not in page
    for path in ("/", "/label.css", "/label.js"):
        assert "//" not in client.get(path).text.replace("// ", "")


@pytest.mark.parametrize(
    "content, kind, status",
    [
        (b"{}", "text/plain", 415),
        (b"{}", "application/x-www-form-urlencoded", 415),
        (b"", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"\xff", "application/json", 400),
        (b"{" * 1000, "application/json", 400),
        (b" " * 2**17, "application/json", 413),
    ],
)
def test_bodies_that_are_no_json_objects(client, content, kind, status):
    response = client.client.post(
        "/api/view",
        base_url=helpers.BASE,
        headers={server.TOKEN_HEADER: helpers.TOKEN},
        data=content,
        content_type=kind,
    )
    assert response.status_code == status
    assert "error" in response.json


@pytest.mark.parametrize(
    "changes",
    [
        {"images": []},
        {"images": 0},
        {"images": [0, 0], "was": [None, None]},
        {"images": [0, 1]},
        {"was": None},
        {"answer": "undo"},
        {"answer": None},
        {"class": "owl"},
        {"class": None},
        {"class": ["cat"]},
        {"request": "annannann"},
        {"request": "a-1"},
        {"request": "ANNANNANN-1"},
        {"request": 7},
    ],
)
def test_answers_that_are_refused(place, client, changes):
    response = client.post("/api/answer", POSTS["/api/answer"] | changes)
    assert response.status_code == 400 and response.json["error"]
    assert not lines(place)


@pytest.mark.parametrize("name", ["", "a/b", "CAT", "a\nb", "\ud800", 7, None])
def test_classes_that_are_refused(place, client, name):
    body = {"request": client.request(), "name": name}
    response = client.client.post(
        "/api/class",
        base_url=helpers.BASE,
        headers={server.TOKEN_HEADER: helpers.TOKEN},
        data=json.dumps(body),
        content_type="application/json",
    )
    assert response.status_code == 400 and response.json["error"]
    assert not lines(place)


# -------------------------------------------------------------------- answers


def test_an_answer_is_on_the_disk_with_its_response(place, client):
    state = client.view()
    name = state["current"]["name"]
    response = client.answer(state, "cat")
    assert answers_lib.read(place.log).labels == {name: "cat"}
    after = response.json
    assert after["done"] == 1
    assert after["current"]["index"] == state["ahead"][0]
    assert after["recent"][0] == {
        "index": state["current"]["index"],
        "name": name,
        "was": ["class", "cat"],
    }


def test_an_answer_that_is_sent_again_does_not_label_the_next(place, client):
    state, request = client.view(), client.request()
    first = client.answer(state, "cat", request=request)
    # The response was lost; the page sends the same request again.
    again = client.answer(state, "cat", request=request)
    assert again.status_code == 200 and again.json == first.json
    assert lines(place) == 1
    # A planted fault: as another request it is refused, not taken twice.
    response = client.answer(state, "cat")
    assert response.status_code == 409
    assert "in another window" in response.json["error"]
    assert response.json["current"] == first.json["current"]
    assert lines(place) == 1


def test_two_browsers_and_undo(place, client):
    other = client.other()
    mine, its = client.view(), other.view()
    assert mine["current"]["index"] != its["current"]["index"]
    client.answer(mine, "cat")
    other.answer(its, "dog")
    undone = client.undo().json
    assert undone["current"] == mine["current"]
    assert undone["done"] == 1
    request = client.request()
    first = client.undo(request).json
    assert client.undo(request).json == first


def test_a_class_is_added_on_the_way(place, client):
    body = {"request": client.request(), "name": " fox "}
    for _ in range(2):  # sent again
        response = client.post("/api/class", body)
    assert [c["name"] for c in response.json["classes"]] == [
        "cat",
        "dog",
        "fox",
    ]
    state = client.answer(response.json, "fox").json
    assert state["classes"][2] == {"name": "fox", "key": "f", "count": 1}


def test_a_grid_is_answered_at_once(place, client):
    state = client.view()
    index = state["current"]["index"]
    body = {"browser": client.browser, "image": index}
    for number in range(12):
        client.post("/api/like", body | {"image": number})
    grid = client.post("/api/like", body).json
    assert grid["seen"] == grid["all"] == 12
    images = grid["images"]
    assert images[0]["index"] == index
    # Those of the same colour are nearest.
    assert {image["index"] % 4 for image in images[:3]} == {index % 4}
    after = client.answer(state, "cat", images=images[:3]).json
    assert after["done"] == 3
    assert len(answers_lib.read(place.log).labels) == 3
    assert client.undo().json["done"] == 0


def test_the_grid_has_neither_answered_images_nor_those_of_others(client):
    other = client.other()
    state, its = client.view(), other.view()
    answered = state["current"]["index"]
    state = client.answer(state, "cat").json
    for number in range(12):
        body = {"browser": client.browser, "image": number}
        client.post("/api/like", body)
    body = {"browser": client.browser, "image": state["current"]["index"]}
    indices = [
        i["index"] for i in client.post("/api/like", body).json["images"]
    ]
    assert len(indices) == 10
    assert not {answered, its["current"]["index"]} & {*indices}


def test_the_grid_begins_with_the_cluster_of_the_list(place):
    chosen = place.images.parent / "selected.csv"
    # Of other colours, which are not near.
    names = ["000.png", "005.png", "010.png"]
    rows = [f"{name},7" for name in names] + ["001.png,8"]
    chosen.write_text("\n".join(["file,cluster", *rows]))
    place.start(chosen=str(chosen))
    client = place.client()
    body = {"browser": client.browser, "image": 0}
    images = client.post("/api/like", body).json["images"]
    assert [image["name"] for image in images[:3]] == names


def test_goes_on_behind_the_goal_if_asked_to(place):
    place.start(goal=1)
    client = place.client()
    state = client.answer(client.view(), "cat").json
    assert state["current"] is None and state["more"]
    state = client.view(beyond=True)
    state = client.answer(state, "cat", beyond=True).json
    assert state["current"] is not None and state["done"] == 2


def test_an_answer_that_cannot_be_written(place, client, monkeypatch):
    state = client.view()

    def append(*lines):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(place.writer, "append", append)
        for response in (
            client.answer(state, "cat"),
            client.post("/api/class", POSTS["/api/class"]),
        ):
            assert response.status_code == 507
            assert "not saved (No space left" in response.json["error"]
    # The same image again.
    assert client.view() == state
    assert client.answer(state, "cat").status_code == 200


def test_what_never_changes_is_told_to_the_page(place):
    client = place.client(about={"folder": "photos"})
    assert client.view()["folder"] == "photos"


# --------------------------------------------------------------------- images


def opened(response):
    return PIL.Image.open(io.BytesIO(response.data))


def test_small_images_are_sent_without_loss(place, client):
    response = client.get("/image/0")
    assert response.mimetype == "image/png"
    with PIL.Image.open(place.images / "000.png") as image:
        assert list(opened(response).getdata()) == list(image.getdata())


def test_large_photographs_are_scaled_down_and_upright(tmp_path):
    place = helpers.Place(tmp_path, 2)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    image = PIL.Image.new("RGB", (4000, 1000))
    image.save(place.images / "000.jpg", exif=exif)
    place.start()
    client = place.client()
    response = client.get("/image/0")
    assert response.mimetype == "image/jpeg"
    assert opened(response).size == (400, 1600)
    assert max(opened(client.get("/thumbnail/0")).size) == 192
    place.writer.close()


@pytest.mark.parametrize("path", ["/image/{}", "/thumbnail/{}", "like"])
def test_unreadable_images_are_named_and_passed_over(place, client, path):
    index = place.work.order[0]
    name = place.work.names[index]
    (place.images / name).write_text("text")
    if path == "like":
        body = {"browser": client.browser, "image": index}
        response = client.post("/api/like", body)
    else:
        response = client.get(path.format(index))
    assert response.status_code == 422
    assert response.json["error"].startswith(f"{name}: is no JPEG")
    state = client.view()
    assert state["current"]["index"] != index
    assert [each["name"] for each in state["unreadable"]] == [name]


def test_images_that_were_removed(place, client):
    (place.images / "003.png").unlink()
    response = client.get("/image/3")
    assert response.status_code == 422
    assert "No such file" in response.json["error"]


# ----------------------------------------------------------------- the server


def test_a_port_that_is_in_use():
    with server.Server("127.0.0.1", 0) as first:
        with pytest.raises(InputError, match=f"--port={first.port}: cannot be"):
            server.Server("127.0.0.1", first.port)
    with server.Server("127.0.0.1", first.port):
        pass


def test_hosts_that_are_none():
    with pytest.raises(InputError, match="no address of this machine"):
        server.Server("host.invalid", 0)
    with pytest.raises(InputError, match="cannot be listened on"):
        server.Server("203.0.113.1", 0)


def test_loopback():
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        assert server.is_loopback(host)
    for host in ("0.0.0.0", "::", "192.168.1.2", "example.org"):
        assert not server.is_loopback(host)


def test_each_server_has_a_token_of_its_own(place):
    tokens = {place.client(token=None).client.application.token for _ in "123"}
    assert len(tokens) == 3 and all(len(token) == 32 for token in tokens)
