"""Downloads from a server that does everything wrong: in the end the file is whole and as published, or there is one
line about each address."""
import hashlib
import os
import random
import signal
import subprocess
import sys

import pytest

from loopback import serving, until
from wsss_nb.ground.core import UserError
from wsss_nb.data import download as module
from wsss_nb.data.download import Archive, download, get_archive

DATA = random.Random(0).randbytes(400_000)
SHA = f"sha256:{hashlib.sha256(DATA).hexdigest()}"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch): monkeypatch.setenv("no_proxy", "127.0.0.1")

@pytest.fixture
def server():
    with serving({"/a": DATA, "/b": DATA, "/other": DATA[::-1]}) as s: yield s

@pytest.fixture
def get(server, tmp_path):
    "Return a function that downloads with faults and returns the ranges that were asked for"
    def get(*faults, urls=("/a",), checksum=SHA, **kw):
        server.faults,server.asked = list(faults),[]
        download([u if "://" in u else server.url+u for u in urls], tmp_path/"d"/"file", checksum,
                 **{"stall":.3, "pause":.005}|kw)
        assert (tmp_path/"d"/"file").read_bytes() == DATA
        assert [p.name for p in (tmp_path/"d").iterdir()] == ["file"]
        return [r and r[6:-1] for _,r,_ in server.asked]
    return get

@pytest.fixture
def fails(get):
    def fails(*faults, **kw):
        with pytest.raises(UserError) as e: get(*faults, **kw)
        assert "\n" not in str(e.value)
        return str(e.value)
    return fails


@pytest.mark.parametrize("checksum",
                         [SHA, f"md5:{hashlib.md5(DATA).hexdigest()}", SHA.upper().replace("SHA256", "sha256"), None])
@pytest.mark.parametrize("faults,asked", [
    ([], [None]),
    (["cut 0"], [None, None]),
    (["cut 100000"], [None, "100000"]),
    (["reset 100000"], None),
    (["cut 100000"]*3, [None, "100000", "200000", "300000"]),
    (["cut 399999"], [None, "399999"]),
    (["cut 10"]*3, [None, "10", "20", "30"]),
    (["stall 100000"], [None, "100000"]),
    (["trickle"], None),
    (["status 503", "status 429", "status 500"], [None]*4),
    (["cut 100000", "norange"], [None, "100000"]),
    (["cut 100000", "status 503"], [None, "100000", "100000"]),
    (["chunked"], [None]),
    (["redirect /b"], [None, None]),
    (["cut 100000", "redirect /b"], [None, "100000", "100000"]),
], ids=lambda x: "+".join(map(str, x)) if isinstance(x, list) else None)
def test_whole_in_the_end(get, checksum, faults, asked):
    found = get(*faults, checksum=checksum)
    assert asked is None or found == asked


@pytest.mark.parametrize("faults,words", [
    (["status 404"], "answers 404 Not Found"), (["status 403"], "answers 403"), (["status 503"]*4, "answers 503"),
    (["wrong"]*2, "sends another file than the published one"),
    (["stall 0"]*4, "sent nothing for 0.3 s"), (["cut 0"]*4, "broke off after 0.0 of 0.4 MB"),
    (["redirect file:///etc/passwd"], "etc/passwd"),
    (["redirect ftp://127.0.0.1/a"], "ftp://127.0.0.1/a, which is not followed"),
    (["redirect /a"]*30, "infinite loop"), (["cut 100000", "shifted"], "another part of the file"),
])
def test_one_line_for_each_address(fails, server, tmp_path, faults, words):
    line = fails(*faults)
    assert words in line and f"{server.url}/a" in line and "--mirror" in line
    assert not (tmp_path/"d"/"file").exists()


def test_no_server(fails): assert "cannot be reached" in fails(urls=["http://127.0.0.1:9/x"], retries=1)
@pytest.mark.parametrize("url", ["ftp://127.0.0.1/a", "file:///etc/passwd", "/a/b", "http:///x", ""])
def test_no_address(tmp_path, url):
    with pytest.raises(UserError, match="is no address"): download([url], tmp_path/"file")


def test_mirrors_in_order(get, server):
    get("status 404", "wrong", urls=["/a", "/a", "http://127.0.0.1:9/x", "/nowhere", "/b"], retries=0)
    assert [p for p,*_ in server.asked] == ["/a", "/a", "/nowhere", "/b"]


def test_another_address_goes_on_where_the_first_stopped(get, server):
    assert get("cut 250000", "status 404", urls=["/a", "/b"]) == [None, "250000", "250000"]


def test_but_not_where_nobody_knows_the_checksum(get):
    assert get("cut 250000", "status 404", urls=["/a", "/b"], checksum=None) == [None, "250000", None]


def test_a_file_patched_from_two_versions_is_thrown_away(get):
    "The second address finished what a wrong one began; asked for all of it, it is right"
    assert get("cut 250000", "status 404", urls=["/other", "/b"]) == [None, "250000", "250000", None]


def test_a_file_that_changed_meanwhile_is_begun_anew(server, tmp_path):
    "Without a checksum the server's word counts: another ETag, another file"
    server.faults = ["cut 100000", *["status 503"]*9]
    with pytest.raises(UserError): download([server.url+"/a"], tmp_path/"file", stall=.3, pause=.005)
    server.faults,server.tag,server.files["/a"] = [],'"v2"',DATA[::-1]
    download([server.url+"/a"], tmp_path/"file", stall=.3)
    assert (tmp_path/"file").read_bytes() == DATA[::-1]
    assert server.asked[-1] == ("/a", "bytes=100000-", '"v1"')


def test_without_word_from_the_server_nothing_is_patched(tmp_path):
    with serving({"/a": DATA}, tag=None) as server:
        server.faults = ["cut 100000"]
        download([server.url+"/a"], tmp_path/"file", stall=.3, pause=.005)
        assert [r for _,r,_ in server.asked] == [None, None] and (tmp_path/"file").read_bytes() == DATA


def test_killed_between_the_last_byte_and_the_name(get, tmp_path):
    (tmp_path/"d").mkdir()
    (tmp_path/"d"/"file.part").write_bytes(DATA)
    assert get() == [str(len(DATA))]


def test_a_part_that_is_too_long_is_begun_anew(get, tmp_path):
    (tmp_path/"d").mkdir()
    (tmp_path/"d"/"file.part").write_bytes(DATA+b"more")
    assert get() == [str(len(DATA)+4), None]


def test_a_file_that_is_there(get, server, tmp_path):
    get()
    assert get() == []
    (tmp_path/"d"/"file").write_bytes(DATA[1:])
    with pytest.raises(UserError, match="is not the published file .its sha256 differs.; remove it"): get()
    assert (tmp_path/"d"/"file").read_bytes() == DATA[1:]


def test_full_disk(fails, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda p: module.shutil._ntuple_diskusage(1, 1, 300_000))
    assert "the disk has 0.0 GB left, file needs 0.0 more" in fails()


def test_unwritable(server, tmp_path):
    (tmp_path/"file").touch()
    with pytest.raises(UserError, match="cannot be written"): download([server.url+"/a"], tmp_path/"file"/"x")


SCRIPT = "import sys; from wsss_nb.data.download import download; download([sys.argv[1]], sys.argv[2], sys.argv[3])"

def test_killed_and_called_again(server, tmp_path):
    server.faults = ["slow"]
    part = tmp_path/"file.part"
    child = subprocess.Popen([sys.executable, "-c", SCRIPT, server.url+"/a", str(tmp_path/"file"), SHA],
                             stderr=subprocess.PIPE, text=True)
    until(lambda: part.exists() and part.stat().st_size > 50_000)
    with pytest.raises(UserError, match="another command is downloading it"):
        download([server.url+"/b"], tmp_path/"file", SHA)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    have = part.stat().st_size
    download([server.url+"/a"], tmp_path/"file", SHA)
    assert server.asked[-1][1] == f"bytes={have}-" and (tmp_path/"file").read_bytes() == DATA


def test_progress_bar(server, tmp_path):
    "On standard error, with size, rate and time left"
    server.faults = ["slow"]
    done = subprocess.run([sys.executable, "-c", SCRIPT, server.url+"/a", str(tmp_path/"file"), SHA],
                          capture_output=True, text=True, env=os.environ|{"TQDM_DISABLE":"0"}, timeout=60)
    assert done.returncode == 0 and "file:" in done.stderr and "400k/400k" in done.stderr and "B/s" in done.stderr, \
        done.stderr


def test_archives_as_published():
    "Names, addresses and the checksums that are known"
    names = {n for archives in module.ARCHIVES.values() for n in archives}
    assert (names == {"VOCtrainval_11-May-2012.tar", "VOC2012test.tar", "benchmark.tgz", "train2014.zip", "val2014.zip",
                      "annotations_trainval2014.zip", "images.tar.gz", "annotations.tar.gz"})
    for archives in module.ARCHIVES.values():
        for name,a in archives.items():
            assert a.url is None or a.url.endswith("/"+name)
            assert a.url is None or a.checksum or a.holds, "neither checksum nor count"


@pytest.mark.parametrize("mirror", ["ftp://x", "x", "file:///tmp"])
def test_mirrors_are_web_addresses(tmp_path, mirror):
    with pytest.raises(UserError, match="is no address"):
        get_archive("a.tar", Archive("http://127.0.0.1:9/a.tar"), tmp_path, [mirror])
