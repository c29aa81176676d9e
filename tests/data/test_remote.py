"""Files at URLs: opened, asked for, and one line where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from vtr.data.remote import open_remote, remote_is_there
from vtr.errors import VtrError


def test_a_url_is_opened_and_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"content")
    url = (tmp_path / "a.tar").as_uri()
    with open_remote(url) as file:
        assert file.read() == b"content"
    assert remote_is_there(url)
    assert not remote_is_there(url + "x")


@pytest.mark.parametrize("url", ["file:///nowhere/a.tar", "http://127.0.0.1:9/a.tar", "nosuch://a/b.tar"])
def test_a_url_that_cannot_be_opened_is_one_line(url: str) -> None:
    with pytest.raises(VtrError, match="cannot be opened") as error:
        open_remote(url, timeout=5)
    assert "\n" not in str(error.value)
    assert not remote_is_there(url, timeout=5)
