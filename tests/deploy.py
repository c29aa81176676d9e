"""Does what deploy/Containerfile does, in an environment instead of a container, and what docs/service.md promises of it.

python -m tests.deploy        # a few minutes: builds the wheel first

Its ENTRYPOINT and CMD serve, its HEALTHCHECK asks; while it serves, another process adds videos and a backup is made.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.helpers import small_model, write_videos
from tests.installed import build, install

CONTAINERFILE = Path(__file__).resolve().parent.parent / "deploy/Containerfile"


def instructions(text: str) -> list[tuple[str, str]]:
    """Each instruction of a Containerfile with its words, continued lines joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines())]


def words_of(kind: str) -> list[str]:
    """The JSON list of the last instruction of a kind; of HEALTHCHECK that of its CMD."""
    rest = [rest for word, rest in instructions(CONTAINERFILE.read_text()) if word == kind][-1]
    return [str(word) for word in json.loads(rest[rest.index("[") :])]


def main() -> int:
    """Run everything; the first that fails ends it."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        commands = install(build(root / "dist"), root / "env")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHONPATH", "VTR_"))}
        env |= {"HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(root / "cache"), "VTR_TOKEN": "secret"}

        def run(*words: object) -> str:
            done = subprocess.run(
                [commands / str(words[0]), *map(str, words[1:])],
                cwd=root,
                env=env,
                capture_output=True,
                text=True,
                timeout=300,
            )
            assert done.returncode == 0, (words, done.stdout, done.stderr)
            print(f"$ {' '.join(map(str, words))[:100]}: {done.stdout.strip()[-100:]}", flush=True)
            return done.stdout

        library = root / "library"
        small_model().save_pretrained(root / "model")
        write_videos(root / "videos", 3)
        run("vtr", "index", "build", root / "videos", "--model", root / "model", "--out", library)
        here = {"/library": str(library), "8000": port}
        words = [here.get(word, word) for word in (*words_of("ENTRYPOINT"), *words_of("CMD"))]
        print(f"$ {' '.join(words)}", flush=True)
        log = root / "log"
        with log.open("w") as errors:
            server = subprocess.Popen(
                [commands / words[0], *words[1:]], cwd=root, env=env, stdout=errors, stderr=errors
            )
        try:
            health = [word.replace(":8000/", f":{port}/") for word in words_of("HEALTHCHECK")]
            deadline = time.monotonic() + 120
            while subprocess.run([commands / health[0], *health[1:]], env=env, capture_output=True).returncode:
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, "not healthy within two minutes"
                time.sleep(0.2)
            print("HEALTHCHECK: healthy", flush=True)
            assert status(port, token="wrong") == 401
            before = len(json.loads(ask(port, "/api/search?q=a+dog"))["hits"])
            write_videos(root / "more", 5)
            run("vtr", "index", "add", library, root / "more")
            run("vtr", "index", "backup", library, root / "backup")
            run("vtr", "index", "verify", root / "backup")
            after = len(json.loads(ask(port, "/api/search?q=a+dog"))["hits"])
            assert after > before, (before, after)
            told = re.search(r"^process_resident_memory_bytes (\S+)", ask(port, "/metrics"), re.MULTILINE)
            assert told
            print(
                f"hits before and after the other process: {before}, {after}; resident memory {float(told[1]) / 1e6:.0f} MB"
            )
        finally:
            server.send_signal(signal.SIGTERM)
            code = server.wait(timeout=30)
        assert code in (0, -signal.SIGTERM), code
        assert "secret" not in log.read_text().replace("#token=secret", "")
        print(f"SIGTERM: ended with {code}; the log: {log.read_text().splitlines()[-1]}")
    return 0


def ask(port: str, path: str, token: str = "secret") -> str:
    """What the server answers."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return str(answer.read().decode())


def status(port: str, token: str) -> int:
    """With what the server answers a search."""
    try:
        ask(port, "/api/search?q=a+dog", token)
        return 200
    except urllib.error.HTTPError as error:
        return error.code


if __name__ == "__main__":
    sys.exit(main())
