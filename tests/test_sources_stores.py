"""Images in object stores: a real S3 server, ranges instead of files, stores that fail, and what stays out of runs."""

from __future__ import annotations

import threading
import warnings
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from decided import rsprune
from image_files import encoded, source_of, texture, write_png, write_tiff
from rsprune.config import SourceConfig
from rsprune.errors import ConfigError, StoreError, UnreadableImage
from rsprune.export import MARKER, export
from rsprune.locations import absolute, source_scheme, source_values
from rsprune.run import Run
from rsprune.sources import ids, store
from shard_files import png, write_shard, write_table
from test_sources_tar import items, refusals

fsspec = pytest.importorskip("fsspec")
pytestmark = [
    # Of the server and its client, which are not ours to mend.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def server():
    """An S3 server on this machine, with credentials and its address in the environment alone."""
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        running = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        running.start()
    host, port = running.get_host_and_port()
    names = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "who", "AWS_SECRET_ACCESS_KEY": "geheim",
        "AWS_DEFAULT_REGION": "us-east-1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in names.items():
            patch.setenv(name, value)
        yield running
    running.stop()


@pytest.fixture
def bucket(server, request):
    """A bucket of its own: its URL, and a function that puts an object into it."""
    import s3fs

    store.filesystem.cache_clear()
    store._filesystem.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()
    fs = s3fs.S3FileSystem(use_listings_cache=False)
    name = f"b{abs(hash(request.node.name)) % 10**12}"
    fs.mkdir(name)
    return f"s3://{name}", lambda key, data: fs.pipe_file(f"{name}/{key}", data)


@pytest.fixture
def memory():
    """A store in this process."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    return lambda path, data: fs.pipe_file(path, data)


@pytest.fixture
def no_sleep(monkeypatch):
    pauses = []
    monkeypatch.setattr(store, "_sleep", pauses.append)
    return pauses


class TestS3:
    def test_a_folder(self, bucket):
        url, put = bucket
        names = ["b/x.png", "b.png", "b-c.png", "a #1%.png", ".hidden.png", "b/deep/é.png", "notes.md"]
        for i, name in enumerate(names):
            put(f"data/{name}", png(i))
        put("data/b/x.txt", b"caption")
        found, source = items(f"{url}/data/"), source_of(f"{url}/data")
        assert list(found) == sorted(["b/x.png", "b.png", "b-c.png", "a %231%25.png", "b/deep/é.png"])
        np.testing.assert_array_equal(source.read(found["a %231%25.png"]).pixels, texture(24, 24, seed=3))
        assert source.originals(found["b/x.png"]) == {"png": png(0), "txt": b"caption"}
        assert ids.decode(found["b/x.png"].uri) == f"{url}/data/b/x.png"
        put("data/b.png", png(77, 25))
        assert items(f"{url}/data")["b.png"].stamp != found["b.png"].stamp
        assert items(f"{url}/data")["b-c.png"].stamp == found["b-c.png"].stamp

    def test_a_single_image_and_nothing(self, bucket):
        url, put = bucket
        put("a.png", png())
        assert list(items(f"{url}/a.png")) == ["a.png"]
        with pytest.raises(ConfigError, match="no such object"):
            source_of(f"{url}/b.png").items()
        put("text/a.md", b"no image")
        with pytest.raises(ConfigError, match="no image below"):
            source_of(f"{url}/text").items()
        with pytest.raises(ConfigError, match="cannot be read"):
            source_of("s3://no-such-bucket-here/x").items()

    def test_shards(self, bucket, tmp_path):
        url, put = bucket
        for s in range(3):
            members = {
                f"{s}-{i}.{e}": d for i in range(3) for e, d in (("png", png(3 * s + i)), ("json", b"{}"))
            }
            put(f"t/shard-{s:03d}.tar", write_shard(tmp_path / "s.tar", members).read_bytes())
        expected = [f"{s}-{i}" for s in range(3) for i in range(3)]
        for name in ("t/shard-{000..002}.tar", "t/shard-*.tar", "t", "t/"):
            assert list(items(f"{url}/{name}")) == expected
        source = source_of(f"{url}/t")
        item = items(f"{url}/t")["1-2"]
        np.testing.assert_array_equal(source.read(item).pixels, texture(24, 24, seed=5))
        assert source.originals(item) == {"png": png(5), "json": b"{}"}
        put("t/shard-001.tar", write_shard(tmp_path / "s.tar", {"z.png": png()}).read_bytes()[:700])
        assert "is not a complete tar file" in refusals(f"{url}/t")["shard-001.tar"]

    def test_tables_and_lists(self, bucket, tmp_path):
        url, put = bucket
        put("a.png", png(1))
        put("t.parquet", write_table(tmp_path / "t.parquet", image=[(png(2), "x.png")]).read_bytes())
        put(
            "l.txt",
            f"a.png\n{url}/a.png\n../up.png\n/etc/passwd\nfile:///etc/passwd\nmemory://x.png\n".encode(),
        )
        assert refusals(f"{url}/t.parquet") == {"x.png": None}
        said = refusals(f"{url}/l.txt")
        assert said.pop("a.png") is None
        assert said.pop(f"{url.removeprefix('s3://')}/a.png") is None
        assert len(said) == 4
        assert all("a list from elsewhere" in why for why in said.values())

    def test_a_table_from_elsewhere_reads_no_file_of_this_machine(self, bucket, tmp_path):
        url, put = bucket
        (tmp_path / "private.png").write_bytes(png())
        paths = [
            str(tmp_path / "private.png"),
            f"file://{tmp_path}/private.png",
            f"local://{tmp_path}/private.png",
        ]
        put("t.parquet", write_table(tmp_path / "t.parquet", uri=paths).read_bytes())
        assert all("a list from elsewhere" in why for why in refusals(f"{url}/t.parquet").values())

    def test_windows_of_a_remote_scene_are_ranges(self, bucket, tmp_path, monkeypatch):
        url, put = bucket
        pixels = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), np.uint8)
        write_tiff(tmp_path / "a.tif", pixels, tiled=True, blockxsize=64, blockysize=64)
        put("scene.tif", (tmp_path / "a.tif").read_bytes())
        read = []
        range_of = store.StoredFile._range
        monkeypatch.setattr(
            store.StoredFile, "_range", lambda s, a, b: read.append(b - a) or range_of(s, a, b)
        )
        source = source_of(f"{url}/scene.tif", tile=64)
        found = list(source.items())
        assert len(found) == 256
        item = next(i for i in found if i.window[:2] == (512, 640))
        np.testing.assert_array_equal(source.read(item).pixels, pixels[640:704, 512:576])
        assert sum(read) < 3 * 2**18 + 2**17
        assert (tmp_path / "a.tif").stat().st_size > 3_000_000

    def test_masks_beside_images(self, bucket):
        url, put = bucket
        mask = np.zeros((24, 24, 1), np.uint8)
        mask[:, :6] = 9
        put("a.png", png())
        put("a_SCL.png", encoded(mask[..., 0]))
        source = source_of(f"{url}/", mask="_SCL.png:values=9")
        (item,) = source.items()
        assert source.read(item).valid.mean() == 0.75
        put("a_SCL.png", encoded(255 - mask[..., 0]))
        assert next(source.items()).stamp != item.stamp

    def test_credentials_that_are_wrong_are_no_bad_images(self, bucket, monkeypatch):
        import s3fs

        url, put = bucket
        put("a.png", png())
        store._filesystem.cache_clear()
        store.filesystem.cache_clear()
        s3fs.S3FileSystem.clear_instance_cache()
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        with pytest.raises(ConfigError, match="AWS_ACCESS_KEY_ID"):
            source_of(url).items()


class _Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


class TestOtherStores:
    def test_memory_and_file(self, memory, tmp_path):
        memory("/c/a.png", png())
        assert refusals("memory://c") == {"a.png": None}
        (tmp_path / "b.png").write_bytes(png())
        assert list(items(f"file://{tmp_path}")) == ["b.png"]
        assert source_values(f"file://{tmp_path}")["path"] == str(tmp_path)

    def test_a_web_server(self, tmp_path, monkeypatch):
        """The plainest there is: it lists folders as pages, and knows no ranges."""
        pytest.importorskip("aiohttp")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        (tmp_path / "www" / "deep").mkdir(parents=True)
        (tmp_path / "www" / "deep" / "b c.png").write_bytes(png(1))
        write_shard(tmp_path / "www" / "s.tar", {"a.png": png(2), "a.txt": b"sea"})
        (tmp_path / "outside.png").write_bytes(png(3))
        handler = partial(_Silent, directory=str(tmp_path / "www"))
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            url = f"http://127.0.0.1:{server.server_port}"
            source, found = source_of(f"{url}/s.tar"), items(f"{url}/s.tar")
            assert source.originals(found["a"]) == {"png": png(2), "txt": b"sea"}
            assert list(refusals(f"{url}/deep").values()) == [None]
            with pytest.raises(ConfigError, match="no such object"):
                source_of(f"{url}/gone.tar").items()
            server.shutdown()

    def test_large_headers_and_bombs(self, memory, tmp_path):
        import faults

        faults.jpeg_bomb(tmp_path / "a.jpg")
        memory("/c/bomb.jpg", (tmp_path / "a.jpg").read_bytes())
        memory(
            "/c/long.jpg", encoded(texture(), "jpeg", exif=b"Exif\0\0" + b"x" * 60_000, comment=b"y" * 60_000)
        )
        said = refusals("memory://c")
        assert said["long.jpg"] is None
        assert "claims 60000 x 60000" in said["bomb.jpg"]

    def test_unknown_schemes(self):
        with pytest.raises(ConfigError, match="no store is known as nosuch://"):
            source_of("nosuch://x/y").items()


class TestSecrets:
    @pytest.mark.parametrize(
        "url",
        [
            "s3://user:geheim@bucket/x", "https://user:geheim@host/x.tar", "https://token@host/geheim.tar",
            "https://host/x.tar?X-Amz-Signature=geheim", "https://host/x?sig=geheim", "https://h/x?Expires=1&access_token=geheim",
        ],
    )  # fmt: skip
    def test_a_url_with_a_secret_is_refused_and_not_repeated(self, url):
        for refuse in (absolute, lambda u: SourceConfig(path=u), lambda u: source_of(u)):
            with pytest.raises(ValueError, match="credentials in the environment") as caught:
                refuse(url)
            if "geheim" in url.partition("?")[2] or ":geheim@" in url:
                assert "geheim" not in str(caught.value).partition("[type=")[0]

    def test_chains_are_refused(self):
        with pytest.raises(ConfigError, match="chains stores"):
            absolute("s3://b/x.zip::file:///etc/passwd")

    def test_urls_and_plugins_are_told_apart(self):
        assert absolute("s3://b/x=1/") == "s3://b/x=1/"
        assert source_values("s3://b/year=2020/") == {"path": "s3://b/year=2020/", "name": "year=2020"}
        assert source_values("s3://b/x.tar=web") == {"path": "s3://b/x.tar", "name": "web"}
        assert source_scheme("npz:a/b.npz") == "npz"
        assert source_scheme("s3://b/x") == ""


class _Broken:
    """A store that answers `failures` times with an error."""

    def __init__(self, error: Exception, failures: int):
        self.error, self.failures, self.asked = error, failures, 0

    def __call__(self):
        self.asked += 1
        if self.asked <= self.failures:
            raise self.error
        return "answer"


class _Status(Exception):  # as aiohttp raises it
    def __init__(self, status):
        self.status = status
        super().__init__(f"{status}, message='no'")


class TestRetries:
    @pytest.mark.parametrize(
        "error",
        [TimeoutError(), ConnectionResetError("reset"), OSError(16, "busy"), _Status(503), _Status(429)],
    )
    def test_what_passes_is_tried_again(self, no_sleep, error):
        action = _Broken(error, 3)
        assert store._ask("s3://b/x", action) == "answer"
        assert action.asked == 4
        assert [p >= base for p, base in zip(no_sleep, store.PAUSES, strict=True)] == [True] * 3
        action = _Broken(error, 4)
        with pytest.raises(
            StoreError, match=r"s3://b/x could not be read in 4 attempts .*run the same command again"
        ):
            store._ask("s3://b/x", action)

    @pytest.mark.parametrize(
        "error", [FileNotFoundError("x"), PermissionError("Forbidden"), _Status(403), ValueError("y")]
    )
    def test_what_does_not_pass_is_said_at_once(self, no_sleep, error):
        action = _Broken(error, 9)
        with pytest.raises(UnreadableImage, match="cannot be read: "):
            store._ask("s3://b/x", action)
        assert action.asked == 1
        assert no_sleep == []

    def test_a_store_that_fails_in_the_middle_of_a_scene(self, memory, no_sleep, monkeypatch, tmp_path):
        """It must not look like a damaged image: the run goes on from there once the store answers."""
        write_tiff(tmp_path / "a.tif", np.random.default_rng(0).integers(0, 256, (600, 600, 3), np.uint8))
        memory("/c/a.tif", (tmp_path / "a.tif").read_bytes())
        source = source_of("memory://c", tile=512)
        (item,) = source.items()

        def fail(self, path, start=None, end=None, **kwargs):
            raise ConnectionResetError("reset by peer")

        with monkeypatch.context() as patch:
            patch.setattr("fsspec.implementations.memory.MemoryFileSystem.cat_file", fail)
            with pytest.raises(StoreError, match="reset by peer"):
                source.read(item)
        assert source.read(item).pixels.shape == (512, 512, 3)

    def test_a_store_that_fails_while_a_shard_is_listed(self, memory, no_sleep, monkeypatch, tmp_path):
        memory("/c/s.tar", write_shard(tmp_path / "s.tar", {"a.png": png()}).read_bytes())
        monkeypatch.setattr(
            "fsspec.implementations.memory.MemoryFileSystem.cat_file",
            lambda *_, **__: (_ for _ in ()).throw(TimeoutError()),
        )
        with pytest.raises(StoreError, match="TimeoutError"):
            source_of("memory://c/s.tar").items()


def test_masks_of_images_in_a_store(memory, tmp_path, monkeypatch):
    """Beside each image and missing for one; a local one for all; one in the store for all, there or not."""
    for name in "abc":
        memory(f"/m/{name}.png", png(0, 24))
    clear = np.zeros((24, 24), np.uint8)
    for name in "ab":
        memory(f"/m/{name}_mask.png", encoded(clear))
    write_png(tmp_path / "mask.png", clear)
    memory("/other/mask.png", encoded(clear))
    asked, info = [], store.info
    monkeypatch.setattr(store, "info", lambda url: asked.append(url) or info(url))

    def stamped(mask: str) -> list[bool]:
        """Whether the stamps of a, b and c have a part of their masks."""
        found = items("memory://m", mask=f"{mask}:values=1")
        return [" " in found[f"{name}.png"].stamp for name in "abc"]

    assert stamped("_mask.png") == [True, True, False]
    assert asked == ["memory://m"]  # what lies in the folder was listed with it
    source = source_of("memory://m", mask="_mask.png:values=1")
    item = {item.id: item for item in source.items()}
    assert source.read(item["a.png"]).pixels.shape == (24, 24, 3)
    with pytest.raises(UnreadableImage, match="has a mask memory://m/c_mask.png that"):
        source.header(item["c.png"])
    assert all(stamped(f"{tmp_path}/mask.png"))
    asked.clear()
    assert all(stamped("memory://other/mask.png"))
    assert not any(stamped("memory://other/gone.png"))
    assert asked.count("memory://other/mask.png") == asked.count("memory://other/gone.png") == 1


def test_images_of_a_store_are_read_once_and_not_linked(memory, tmp_path, monkeypatch):
    fs = fsspec.filesystem("memory")
    for i in range(6):
        memory(f"/kept/{i}.png", png(i))
        memory(f"/kept/{i}.txt", b"caption")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(6, 12)).astype(np.float32))
    given = ("--embeddings", tmp_path / "x.npy", "--entropy-drop", 0, "--n", 4)
    done = rsprune("run", "memory://kept", "-o", tmp_path / "run", *given)
    assert done.returncode == 0, done.stderr
    run, read = Run.open(tmp_path / "run"), []
    whole = type(fs).cat_file

    def cat_file(self, path, start=None, end=None, **kwargs):
        read.append((path, start))
        return whole(self, path, start, end, **kwargs)

    monkeypatch.setattr(type(fs), "cat_file", cat_file)
    assert export(run, tmp_path / "out", "copy").count == 4
    expected = {f"{Path(id).stem}.{e}" for id in run.kept_ids for e in ("png", "txt")}
    found = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.name != MARKER}
    assert found == {name: fs.store[f"/kept/{name}"].getvalue() for name in expected}
    assert len(read) == len(set(read)) >= 8
    with pytest.raises(ConfigError, match="images in a store are no files to link to"):
        export(run, tmp_path / "linked", "symlink")


def test_what_is_not_there_names_the_extra(monkeypatch):
    import sys

    store._filesystem.cache_clear()
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ConfigError, match=r"pip install 'rsprune\[cloud\]'"):
        store._filesystem("s3")
