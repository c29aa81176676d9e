"""Errors: one message, with parameters as they are called where it is read."""

from __future__ import annotations

import pickle
import subprocess
import sys

from vtr.errors import COMMAND_LINE, HTTP, UsageError, VtrError, unknown_name


def test_a_message_names_parameters_as_python_the_command_line_and_http_call_them() -> None:
    error = UsageError(lambda say: f"{say.given('all_moments', 3)}: see {say.call('index remove')}")
    assert str(error) == "all_moments=3: see Library.remove"
    assert error.said(COMMAND_LINE) == "--all-moments 3: see vtr index remove"
    assert error.said(HTTP) == "all_moments=3: see vtr index remove"


def test_an_error_crosses_processes_with_its_message() -> None:
    for error in (VtrError("plain"), UsageError(lambda say: say.name("k"))):
        back = pickle.loads(pickle.dumps(error))
        assert (type(back), str(back)) == (type(error), str(error))


def test_a_near_name_is_offered_whatever_its_case_and_a_far_one_is_not() -> None:
    known = ["anet", "msrvtt", "completion"]
    assert str(unknown_name("benchmark", "MSRVTT", known)) == "unknown benchmark 'MSRVTT': did you mean 'msrvtt'?"
    assert str(unknown_name("benchmark", "comp", known)) == "unknown benchmark 'comp': did you mean 'completion'?"
    parts = ["vatex", "vitatecs_msrvtt", "vitatecs_vatex"]
    assert str(unknown_name("benchmark", "vitatecs", parts)).endswith("mean 'vitatecs_msrvtt' or 'vitatecs_vatex'?")
    assert str(unknown_name("benchmark", "VATEX", [*parts, "vatex_a", "vatex_b"])).endswith("mean 'vatex'?")
    assert str(unknown_name("benchmark", "nope", known)).endswith("known: anet, completion, msrvtt")
    assert str(unknown_name("benchmark", "nope", map(str, range(50)))).endswith(" and 10 more")


def test_a_command_whose_reader_has_gone_or_that_is_stopped_ends_without_a_traceback() -> None:
    code = (
        "from vtr.errors import reports_errors\n"
        "@reports_errors\n"
        "def main():\n"
        "    {}\n"
        "    return 0\n"
        "raise SystemExit(main())"
    )
    long = [sys.executable, "-c", code.format("print('x' * 10_000_000)")]
    with subprocess.Popen(long, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", 141)
    stopped = subprocess.run(
        [sys.executable, "-c", code.format("raise KeyboardInterrupt")], capture_output=True, text=True
    )
    assert (stopped.stderr, stopped.returncode) == ("vtr: stopped\n", 130)
