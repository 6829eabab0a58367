"""Tests of the daemon by the Python SDK, in one process, which prints TAP.

The synchronous SDK polls its watchers, the asynchronous one streams.
"""

import asyncio
import json
import os
import tempfile
import time
import traceback
import urllib.request

from e2b import AsyncSandbox, ConnectionConfig, Sandbox
from e2b import CommandExitException, FilesystemEventType, FileType
from e2b import AuthenticationException, InvalidArgumentException, NotFoundException, TimeoutException
from packaging.version import Version

URL = os.environ.get("ENVD_URL") or "http://localhost:49983"
VERSION = Version(json.load(urllib.request.urlopen(URL + "/health"))["version"])
USER, USER_ID = "daemon", 1


def connect(kind):
    return kind(
        sandbox_id="local",
        sandbox_domain=None,
        envd_version=VERSION,
        envd_access_token=None,
        connection_config=ConnectionConfig(sandbox_url=URL, request_timeout=20),
    )


def temp_dir():
    path = tempfile.mkdtemp()
    os.chmod(path, 0o755)
    os.chown(path, USER_ID, USER_ID)
    return path


def raises(kinds, call, *args, **opts):
    try:
        call(*args, **opts)
    except kinds as err:
        return err
    raise AssertionError(f"no {kinds}")


def until(what, condition):
    end = time.monotonic() + 20
    while not (found := condition()):
        assert time.monotonic() < end, f"timed out waiting for {what}"
        time.sleep(0.005)
    return found


box = connect(Sandbox)


def test_run():
    out = []
    result = box.commands.run(
        "pwd; id -un; echo $A; echo err >&2", cwd="/usr", user=USER, envs={"A": "ü"}, on_stdout=out.append
    )
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"/usr\n{USER}\nü\n", "err\n"), result
    assert "".join(out) == result.stdout
    err = raises(CommandExitException, box.commands.run, "echo partly; exit 7")
    assert (err.exit_code, err.stdout) == (7, "partly\n")


def test_run_errors():
    raises(TimeoutException, box.commands.run, "sleep 1000", timeout=1)
    raises(InvalidArgumentException, box.commands.run, "true", cwd="/no/such/dir")
    raises(AuthenticationException, box.commands.run, "true", user="nosuchuser")


def test_background():
    handle = box.commands.run("while read x; do echo got $x; done; exit 3", background=True, stdin=True)
    assert any(p.pid == handle.pid for p in box.commands.list())
    handle.send_stdin("one\n")
    box.commands.send_stdin(handle.pid, "two\n")
    handle.close_stdin()
    err = raises(CommandExitException, handle.wait)
    assert (err.exit_code, err.stdout) == (3, "got one\ngot two\n"), err


def test_kill_and_connect():
    handle = box.commands.run("sleep 1000", background=True)
    handle.disconnect()
    again = box.commands.connect(handle.pid)
    assert again.kill()
    raises(CommandExitException, again.wait)
    assert not box.commands.kill(handle.pid)
    raises(NotFoundException, box.commands.connect, 4_000_000)


def test_pty():
    from e2b import PtySize

    handle = box.pty.create(PtySize(rows=31, cols=91), envs={"PS1": "> "})
    box.pty.resize(handle.pid, PtySize(rows=41, cols=111))
    box.pty.send_stdin(handle.pid, b"stty size; exit 5\n")
    text = bytearray()
    err = raises(CommandExitException, handle.wait, on_pty=text.extend)
    assert err.exit_code == 5 and b"41 111" in text, (err, bytes(text))


def test_write_and_read():
    path = temp_dir() + "/made/for/it/f"
    for data in ("Grüße, 世界", os.urandom(300_000), ""):
        info = box.files.write(path, data, user=USER)
        assert (info.path, info.name) == (path, "f"), info
        raw = data.encode() if isinstance(data, str) else data
        with open(path, "rb") as f:
            assert f.read() == raw
        assert box.files.read(path, format="bytes") == raw
        assert b"".join(box.files.read(path, format="stream")) == raw
    assert box.files.read(path) == ""
    assert os.stat(os.path.dirname(path)).st_uid == USER_ID
    raises(NotFoundException, box.files.read, path + "2")


def test_write_many_and_streams():
    dir = temp_dir()
    infos = box.files.write_files([{"path": f"{dir}/{i}", "data": str(i)} for i in range(5)])
    assert [i.path for i in infos] == [f"{dir}/{i}" for i in range(5)], infos
    with open("/proc/self/exe", "rb") as f:
        data = f.read(3_000_000)
        f.seek(0)
        box.files.write(f"{dir}/0", f)
    with open(f"{dir}/0", "rb") as f:
        assert f.read(3_000_000) == data


def test_entries():
    dir = temp_dir()
    assert box.files.make_dir(f"{dir}/a/b", user=USER)
    assert not box.files.make_dir(f"{dir}/a/b")
    box.files.write(f"{dir}/f", "12345", metadata={"key": "value"})
    os.symlink("f", f"{dir}/link")
    assert [e.path for e in box.files.list(dir, depth=2)] == [f"{dir}/{n}" for n in ("a", "a/b", "f", "link")]
    info = box.files.get_info(f"{dir}/f")
    assert (info.type, info.size, info.mode, info.permissions, info.owner) == (FileType.FILE, 5, 0o644, "-rw-r--r--", "root"), info
    assert info.metadata == {"key": "value"}, info
    assert box.files.get_info(f"{dir}/link").symlink_target == f"{dir}/f"
    assert box.files.rename(f"{dir}/f", f"{dir}/g").path == f"{dir}/g"
    assert not box.files.exists(f"{dir}/f") and box.files.exists(f"{dir}/g")
    box.files.remove(f"{dir}/a")
    box.files.remove(f"{dir}/a")
    raises(NotFoundException, box.files.list, f"{dir}/a")
    raises(InvalidArgumentException, box.files.list, f"{dir}/g")


def test_watch_polled():
    dir = temp_dir()
    handle = box.files.watch_dir(dir, recursive=True)
    os.makedirs(f"{dir}/a/b")
    events = []

    def seen(name):
        events.extend(handle.get_new_events())
        return any(e.name == name for e in events)

    until("the directory", lambda: seen("a/b"))
    open(f"{dir}/a/b/f", "w").close()
    os.rename(f"{dir}/a/b/f", f"{dir}/g")
    until("the rename", lambda: seen("g"))
    assert [(e.type, e.name) for e in events] == [
        (FilesystemEventType.CREATE, "a"),
        (FilesystemEventType.CREATE, "a/b"),
        (FilesystemEventType.CREATE, "a/b/f"),
        (FilesystemEventType.RENAME, "a/b/f"),
        (FilesystemEventType.CREATE, "g"),
    ], events
    handle.stop()
    raises(NotFoundException, box.files.watch_dir, f"{dir}/none")


def test_async_and_watch_streamed():
    asyncio.run(streamed())


async def streamed():
    box, dir, events, exits = connect(AsyncSandbox), temp_dir(), [], []
    handle = await box.files.watch_dir(dir, on_event=events.append, on_exit=exits.append)
    await box.files.write(f"{dir}/f", "small")
    results = await asyncio.gather(*(box.commands.run(f"echo {i}") for i in range(8)))
    assert [r.stdout for r in results] == [f"{i}\n" for i in range(8)]
    end = time.monotonic() + 20
    while len(events) < 3 and time.monotonic() < end:
        await asyncio.sleep(0.005)
    assert [e.type for e in events] == [
        FilesystemEventType.CREATE, FilesystemEventType.CHMOD, FilesystemEventType.WRITE,
    ], events
    await handle.stop()


def main():
    tests = [(n, f) for n, f in globals().items() if n.startswith("test_")]
    failed = 0
    for number, (name, test) in enumerate(tests, 1):
        try:
            test()
            print(f"ok {number} - python: {name[5:]}", flush=True)
        except BaseException:
            failed += 1
            print(f"not ok {number} - python: {name[5:]}")
            print("  " + traceback.format_exc().replace("\n", "\n  "), flush=True)
    print(f"1..{len(tests)}", flush=True)
    os._exit(failed > 0)


main()
