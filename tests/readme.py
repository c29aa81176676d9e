"""Reads the commands out of README.md and the pages of docs/ and runs them after a demo, each page in a copy of the checkout.

python -m tests.readme                       # the README, as it is written, after `make demo`; hours
python -m tests.readme --quick docs/howto/search.md         # that page, with the sizes of SMALLER
python -m tests.readme --list                # of all pages: what is run, what is not and why; runs nothing

A fenced block of `bash` or `python` holds commands. One that cannot be run everywhere says in its first line what it needs, as in
`bash needs=weights,gpu`. `tests/test_readme.py` reads the same commands without running them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
# What a block may need, as its first line says it.
NEEDS = {
    "demo": "to be the first: --demo names its result",
    "network": "the network",
    "weights": "weights that are fetched once",
    "data": "a data set that is fetched by hand",
    "gpu": "a GPU",
    "machines": "several machines, or a server of their own",
    "tools": "a program that does not come with vtr",
    "tests": "nothing, but it is a test itself",
    "yours": "something of yours in the place of a name",
}
# What --quick says in a command that begins so: a flag that is there has this value instead.
SMALLER = {
    "vtr pretrain --corpus demo": "--demo-clips CLIPS --demo-images IMAGES --steps 2 --set warmup.steps=2",
    "accelerate launch pretrain/run.py": "--demo-clips CLIPS --demo-images IMAGES --steps 2 --set warmup.steps=2",
    "vtr pretrain --corpus my.csv": "--steps 2",
    "vtr finetune": "--steps 2",
    "vtr eval": "--rerank 4",
    "accelerate launch eval/zero_shot.py": "--rerank 4",
    "python -m bench.fake_corpus": "--scale 100000",
    "python -m bench.serve_load": "--clients 4 --seconds 3",
    "python -m bench.kernels": "--length 64",
    "python -m bench.loader": "--generate 16 --batch-size 4 --seconds 1 --rounds 1",
    "python -m bench.library": "--count 3000 --queries 20",
    "python -m bench.drills kills": "--ranks 1 --moments 1",
    "python -m tests.library.killing": "-n 3",
    "python -m vtr.eval.ablate task": "--seeds 0 --task-steps 2",
    "python -m vtr.eval.efficiency": "--frames 4 --repeats 1 --pixels 64",
}
_LIMIT = 1800  # seconds of a command under --quick


@dataclass(frozen=True)
class Command:
    """One command of the README."""

    line: int
    """Where it begins, from 1."""
    block: int
    """Which fenced block it stands in, from 0."""
    text: str
    """As it is written; continued lines are one, and so is a file that is written line by line."""
    python: bool = False
    """A whole block of Python."""
    needs: tuple[str, ...] = ()
    """What its block is marked as needing, of `NEEDS`."""

    @property
    def why_not(self) -> str:
        """Why it is not run, or nothing."""
        return ", ".join(NEEDS.get(need, need) for need in self.needs)


def pages() -> list[Path]:
    """The README and the written pages of docs/, whose commands are checked; not results, which say how they were made."""
    written = (p for p in sorted((REPO / "docs").rglob("*.md")) if "results" not in p.parts)
    return [REPO / "README.md", *written]


def commands(page: str) -> list[Command]:
    """The commands of a page's fenced blocks, in order; a block of Python is one command."""
    found: list[Command] = []
    block = -1
    for fence in re.finditer(r"^```(\w*)([^\n]*)\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        kind, words, held = fence.groups()
        if kind not in ("bash", "python"):
            continue
        block += 1
        needs = tuple(re.sub(r".*\bneeds=(\S+).*", r"\1", words).split(",")) if "needs=" in words else ()
        begin = page.count("\n", 0, fence.start()) + 2
        if kind == "python":
            found.append(Command(begin, block, held, python=True, needs=needs))
            continue
        for line in re.finditer(r"(?:.*\\\n)*.*<<'EOF'.*\n(?:.*\n)*?EOF\n|(?:.*\\\n)*.*\S.*\n", held):
            text = line[0].rstrip("\n")
            if "<<'EOF'" not in text:
                text = re.sub(r"\s+# .*", "", text.replace("\\\n", ""))
            if not text.startswith("# "):
                found.append(Command(begin + held.count("\n", 0, line.start()), block, text, needs=needs))
    return found


def smaller(text: str, clips: int = 0, images: int = 0) -> str:
    """A command with the sizes of `SMALLER`."""
    for start, words in SMALLER.items():
        if text.startswith(start):
            words = words.replace("CLIPS", str(clips)).replace("IMAGES", str(images))
            for flag, value in re.findall(r"(-\S+) ([^-]\S*)", words):
                # Of --set there may be several values: ours is one more.
                old, new = (" --set ", f" --set {value} ") if flag == "--set" else (rf" {flag} \S+", f" {flag} {value}")
                text, there = re.subn(old, new, text)
                if not there:
                    text = f"{start} {flag} {value}{text[len(start) :]}"
            break
    return text


def workplace(folder: Path, demo: Path, data: Path) -> None:
    """A copy of the checkout's files with a copy of the demo in it, as it is after `make demo`."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPO, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (REPO / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPO / name, folder / name)
    if not (folder / "runs/demo").exists():
        shutil.copytree(demo, folder / "runs/demo")
    if not (folder / "data/demo").exists():  # its files are replaced, never written into: links will do
        shutil.copytree(data, folder / "data/demo", copy_function=_linked)


def _linked(source: str, copy: str) -> None:
    try:
        os.link(source, copy)
    except OSError:  # another disk
        shutil.copyfile(source, copy)


class Shell:
    """Runs commands in a folder, as a user's shell does there; a server goes on until `close`."""

    def __init__(self, folder: Path, port: int) -> None:
        paths = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
        self._environment = {
            **os.environ, "PATH": os.pathsep.join(paths), "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        self._folder, self._port, self._server = folder, port, None

    def _started(self, command: Command, text: str, log: Path) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-c", text] if command.python else ["bash", "-c", f"exec 2>&1\n{text}"]
        with log.open("wb") as out:
            return subprocess.Popen(
                words, cwd=self._folder, env=self._environment, stdout=out, stderr=out, start_new_session=True
            )

    def run(self, command: Command, text: str, limit: float | None, log: Path) -> int:
        """The exit code of a command; 0 for a server that answers."""
        text = text.replace("127.0.0.1:8000", f"127.0.0.1:{self._port}")
        if text.startswith("curl "):
            text = text.replace("curl ", "curl -fsS ", 1)
        if text.startswith("vtr serve "):
            return self._serve(command, f"{text} --port {self._port}", log)
        process = self._started(command, text, log)
        try:
            return process.wait(limit)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)

    def _serve(self, command: Command, text: str, log: Path) -> int:
        self._server = self._started(command, f"exec {text}", log)
        for _ in range(300):
            if self._server.poll() is not None:
                return self._server.returncode or 1
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self._port}/api/info", timeout=5).close()
                return 0
            except OSError:
                time.sleep(0.2)
        return 1

    def close(self) -> int:
        """Ctrl-C for the server, if one runs; its exit code, where that is not the one of Ctrl-C (0 where it is ignored)."""
        server, self._server = self._server, None
        if server is None or server.poll() is not None:
            return 0 if server is None else server.returncode
        server.send_signal(signal.SIGINT)
        code = server.wait(60)
        return 0 if code == 130 else code


def run(options: argparse.Namespace, page: Path, folder: Path) -> int:
    """Run a page's commands in a new checkout; returns how many failed."""
    workplace(folder / "checkout", options.demo, options.data)
    made = json.loads((options.data / "corpus.json").read_text())["settings"]
    shell, failed, ran, log = Shell(folder / "checkout", options.port), 0, 0, folder / "log"
    block = -1
    try:
        for command in commands(page.read_text()):
            if command.block != block and (code := shell.close()):
                failed += 1
                print(f"FAILED the server ended with exit code {code}", flush=True)
            block = command.block
            if command.why_not or not options.start <= command.line <= options.stop:
                continue
            text = smaller(command.text, made["clips"], made["images"]) if options.quick else command.text
            begin = time.perf_counter()
            try:
                code = shell.run(command, text, _LIMIT if options.quick else None, log)
            except subprocess.TimeoutExpired:
                code = 124
            ran += 1
            failed += code != 0
            said = "python block" if command.python else text.partition("\n")[0]
            print(
                f"{f'FAILED ({code})' if code else 'ok'} {time.perf_counter() - begin:6.1f} s  {command.line}: {said}",
                flush=True,
            )
            if code:
                print(
                    "".join(f"    {line}\n" for line in log.read_text(errors="replace").splitlines()[-15:]), flush=True
                )
    finally:
        shell.close()
    print(f"{page.relative_to(REPO)}: {ran} commands ran, {failed} failed", flush=True)
    return failed


def main() -> int:
    """The command line; 1 if a command failed."""
    about, _, _ = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(prog="python -m tests.readme", description=about)
    parser.add_argument("pages", nargs="*", type=Path, help="pages (default: README.md; `all`: every page)")
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="the demo's run (default: %(default)s)")
    parser.add_argument("--data", type=Path, default=Path("data/demo"), help="its corpus (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="smaller sizes, as stated in the script")
    parser.add_argument("--port", type=int, default=8000, help="the server's, instead of 8000")
    parser.add_argument("--start", type=int, default=0, metavar="LINE", help="leave out what stands before")
    parser.add_argument("--stop", type=int, default=10**6, metavar="LINE", help="leave out what stands behind")
    parser.add_argument("--list", action="store_true", help="what is run, what is not and why")
    parser.add_argument("--folder", type=Path, help="of the copies, kept and used again (default: a temporary one)")
    options = parser.parse_args()
    chosen = [page.resolve() for page in options.pages] or [REPO / "README.md"]
    if options.pages == [Path("all")] or (options.list and not options.pages):
        chosen = [page for page in pages() if commands(page.read_text())]
    if options.list:
        for page in chosen:
            print(page.relative_to(REPO))
            for command in commands(page.read_text()):
                said = command.text.partition("\n")[0]
                print(f"{command.line:4} {said}" + (f"   NOT RUN: needs {command.why_not}" if command.why_not else ""))
        return 0
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        for page in chosen:
            place = (options.folder or Path(name)) / "-".join(page.relative_to(REPO).with_suffix("").parts)
            failed += run(options, page, place)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
