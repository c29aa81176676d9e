"""What lies at an address (http, https, s3, gs …), read in pieces as a file is: bounded, resumed, and kept off this network.

A program that fetches what others name can be made to fetch what only it may reach. So the address that is connected to
is checked, each redirect anew: one of this machine or of a private network is refused unless `Access.private` allows it,
and so is file://. Only the command line and the Python API make an `Address`; names inside files, uploads and requests
stay names.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import http.client
import io
import ipaddress
import re
import socket
import ssl
import tempfile
import time
import urllib.parse
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, cast

from vtr.data.decode.types import DecodeError, Stored, TimeLimit

_OBJECTS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "oss", "oci")  # through fsspec
_HTTP = ("http", "https")
_BLOCK = 256 << 10
_BLOCKS = 32  # that are kept of one file
_NEAR = 1 << 20  # bytes ahead that are read over rather than asked for anew
_TRIES = 4  # connections without a byte more before it is given up
_HOPS = 5
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class Refused(DecodeError):
    """An address that is not fetched."""


class Unreachable(TimeLimit):
    """What lies at an address could not be read this time; another call may do better."""


@dataclass(frozen=True, kw_only=True)
class Access:
    """What may be fetched, and how long and how much of it.

    Attributes:
        private: Also addresses of this machine and of private networks, and file://.
        timeout: Seconds without 256 KiB more after which it is given up.
        most: Bytes of a file that has to be fetched whole, from a server that sends no ranges.
    """

    private: bool = False
    timeout: float = 30.0
    most: int = 16 << 30


def is_uri(name: str) -> bool:
    """Whether this is an address and not a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", name) is not None


def shown_uri(uri: str) -> str:
    """An address as messages have it: without password, and without what signs it."""
    parts = urllib.parse.urlsplit(uri)
    host = parts.netloc.rpartition("@")[2]
    return parts.scheme + "://" + host + parts.path + ("?…" if parts.query else "")


@dataclass
class Address(Stored):
    """What lies at an address, as a source of the decoders; it can be sent to another process.

    Raises (when it is opened, or asked for its size):
        Refused: It may not be fetched.
        Unreachable: It cannot be had now.
    """

    uri: str
    access: Access = field(default_factory=Access)
    _known: _Remote | None = field(default=None, repr=False, compare=False)

    @property
    def name(self) -> str:
        return shown_uri(self.uri)

    def open(self) -> BinaryIO:
        """A reader of its own from the start."""
        return self._remote().open()

    def size(self) -> int:
        """Bytes."""
        return self._remote().size

    def facts(self) -> tuple[int | None, float | None]:
        """Bytes, and when it was changed last, as far as the server says; nothing is fetched."""
        known = self._remote()
        return known.length, known.modified

    def modified(self) -> float | None:
        """When it was changed last, in seconds since 1970, as the server says."""
        return self._remote().modified

    def close(self) -> None:
        """Let go of what was fetched."""
        self._known = None

    def __getstate__(self) -> dict[str, object]:
        return {"uri": self.uri, "access": self.access, "_known": None}

    def _remote(self) -> _Remote:
        if self._known is None:
            scheme = urllib.parse.urlsplit(self.uri).scheme.lower()
            if scheme in _HTTP:
                self._known = _Http(self)
            elif "::" in self.uri and not self.access.private:  # fsspec would read one place through another
                raise Refused(self.name, "is several addresses in one, which is not fetched" + _ALLOW)
            elif scheme in _OBJECTS or self.access.private:
                self._known = _Object(self)
            else:
                raise Refused(
                    self.name, f"{scheme}:// is not fetched; {', '.join((*_HTTP, *_OBJECTS[:4]))} … are" + _ALLOW
                )
        return self._known


_ALLOW = " (--allow-private allows this machine and private networks)"


class _Remote(ABC):
    length: int | None
    modified: float | None

    @property
    @abstractmethod
    def size(self) -> int: ...

    @abstractmethod
    def open(self) -> BinaryIO: ...


class _Object(_Remote):
    """A file of an object store, or of whatever fsspec knows."""

    def __init__(self, address: Address) -> None:
        import fsspec

        self._address = address
        with self._said():
            self._files, self._path = fsspec.core.url_to_fs(address.uri)
            facts = self._files.info(self._path)
            if facts.get("type") == "directory":
                raise FileNotFoundError("is a folder, not a file")
            self._size = self.length = int(facts["size"])
            when = facts.get("LastModified") or facts.get("mtime") or facts.get("updated") or facts.get("last_modified")
            self.modified = when.timestamp() if hasattr(when, "timestamp") else None

    @property
    def size(self) -> int:
        return self._size

    def open(self) -> BinaryIO:
        with self._said():
            return cast(BinaryIO, self._files.open(self._path, "rb", block_size=1 << 20))

    @contextlib.contextmanager
    def _said(self) -> Iterator[None]:
        name = self._address.name
        try:
            yield
        except FileNotFoundError as error:
            raise DecodeError(name, f"no such file ({error})") from error
        except ImportError as error:
            raise Refused(name, f"needs a package that is not installed: {error}") from error
        except Exception as error:  # each store has errors of its own
            raise Unreachable(name, f"cannot be read now ({type(error).__name__}: {error})") from error


class _Http(_Remote):
    """A file of a web server: in ranges where the server sends them, else fetched whole, up to `Access.most` bytes."""

    def __init__(self, address: Address) -> None:
        self.address, self.access = address, address.access
        self.modified: float | None = None
        self.tag = ""
        self._whole: BinaryIO | None = None
        with contextlib.closing(self._begun()) as stream:
            self.tag = "" if stream.header("ETag").startswith("W/") else stream.header("ETag")
            when = email.utils.parsedate_tz(stream.header("Last-Modified"))
            self.modified = email.utils.mktime_tz(when) if when else None
            self.length, self.ranges = stream.total, stream.ranges

    @property
    def size(self) -> int:
        return self._held().seek(0, io.SEEK_END) if self.length is None else self.length

    def open(self) -> BinaryIO:
        if self.ranges:
            return cast(BinaryIO, _Ranged(self))
        return cast(BinaryIO, _Again(self._held(), self.size))

    def _held(self) -> BinaryIO:
        if self._whole is None:
            self._whole = self._fetched(self._begun())
            self.length = self._whole.seek(0, io.SEEK_END)
        return self._whole

    def _begun(self) -> _Stream:
        return _tried(self.address, lambda: _Stream(self.address, 0, first=True))

    def _fetched(self, stream: _Stream) -> BinaryIO:
        """All of it in a temporary file that goes with this process; a connection that drops begins anew."""
        for attempt in range(_TRIES):
            target = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115 - for as long as it is read
            try:
                place = 0
                while data := stream.read(_BLOCK):
                    place += len(data)
                    if place > self.access.most:
                        raise Refused(
                            self.address.name, f"its server sends no ranges, and it has over {self.access.most} bytes"
                        )
                    target.write(data)
                if stream.total is not None and place < stream.total:
                    raise ConnectionError(f"the connection dropped after {place} of {stream.total} bytes")
                return target
            except (OSError, http.client.HTTPException) as error:
                target.close()
                stream.close()
                if attempt == _TRIES - 1 or isinstance(error, TimeoutError):
                    raise Unreachable(self.address.name, _why(error)) from error
                stream = self._begun()
            except BaseException:
                target.close()
                raise
        raise AssertionError


def _tried(address: Address, connect: Callable[[], _Stream]) -> _Stream:
    """Connect, several times where the connection fails."""
    for attempt in range(_TRIES):
        try:
            return connect()
        except (OSError, http.client.HTTPException) as error:
            if attempt == _TRIES - 1 or isinstance(error, (TimeoutError, socket.gaierror, ssl.SSLError)):
                raise Unreachable(address.name, _why(error)) from error
            time.sleep(0.1 * 2**attempt)
    raise AssertionError


def _why(error: Exception) -> str:
    if isinstance(error, socket.gaierror):
        return "no such host"
    if isinstance(error, TimeoutError):
        return str(error) if "KiB" in str(error) else "its server does not answer in time"
    return f"the connection failed ({error or type(error).__name__})"


class _Again(io.RawIOBase):
    """A reader of its own of a file that is open."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size, self._place = file, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = 0) -> int:
        self._place = max(0, offset + (0, self._place, self._size)[whence])
        return self._place

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        data = self._piece(len(view))
        view[: len(data)] = data
        self._place += len(data)
        return len(data)

    def _piece(self, most: int) -> bytes:
        self._file.seek(self._place)
        return self._file.read(most)


class _Ranged(_Again):
    """A reader of a file on a server that sends ranges: in blocks, of which some are kept; resumed where it drops."""

    def __init__(self, remote: _Http) -> None:
        super().__init__(cast(BinaryIO, None), remote.size)
        self._remote = remote
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._stream: _Stream | None = None
        self._at = 0  # where the stream stands

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        super().close()

    def _piece(self, most: int) -> bytes:
        if self._place >= self._size or most <= 0:
            return b""
        number = self._place // _BLOCK
        if number not in self._blocks:
            self._blocks[number] = self._fetched(number * _BLOCK, min((number + 1) * _BLOCK, self._size))
            while len(self._blocks) > _BLOCKS:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(number)
        first = self._place - number * _BLOCK
        return self._blocks[number][first : first + most]

    def _fetched(self, start: int, end: int) -> bytes:
        name, parts, got = self._remote.address.name, list[bytes](), 0
        failed = 0
        while start + got < end:
            try:
                stream = self._placed(start + got)
                data = stream.read(end - start - got)
                if not data:
                    raise ConnectionError(f"it dropped after {start + got} of {self._size} bytes")
                parts.append(data)
                got += len(data)
                self._at += len(data)
                failed = 0
            except (OSError, http.client.HTTPException) as error:
                if self._stream is not None:
                    self._stream.close()
                    self._stream = None
                failed += 1
                if failed == _TRIES or isinstance(error, (TimeoutError, ssl.SSLError)):
                    raise Unreachable(name, _why(error)) from error
                time.sleep(0.05 * 4 ** (failed - 1))
        return b"".join(parts)

    def _placed(self, place: int) -> _Stream:
        """A stream that stands at a place."""
        stream = self._stream
        if stream is not None and self._at <= place <= self._at + _NEAR:
            while self._at < place:
                passed = len(stream.read(min(_BLOCK, place - self._at)))
                if not passed:
                    raise ConnectionError(f"it dropped after {self._at} of {self._size} bytes")
                self._at += passed
            return stream
        if stream is not None:
            stream.close()
        self._stream = None
        stream = _Stream(self._remote.address, place, tag=self._remote.tag)
        if not stream.ranges or stream.total != self._size:
            stream.close()
            raise Unreachable(self._remote.address.name, "it was changed while it was read")
        self._stream, self._at = stream, place
        return stream


class _Stream:
    """An answer of a web server, from a place of the file on; redirects are followed, each address is checked."""

    def __init__(self, address: Address, place: int, *, first: bool = False, tag: str = "") -> None:
        self._access, self._name = address.access, address.name
        uri = address.uri
        for _ in range(_HOPS + 1):
            self._connection, self._answer = _asked(uri, address, place, tag)
            answer = self._answer
            if answer.status not in (301, 302, 303, 307, 308):
                break
            uri = urllib.parse.urljoin(uri, answer.headers.get("Location", ""))
            self._connection.close()
            if urllib.parse.urlsplit(uri).scheme.lower() not in _HTTP:
                raise Refused(self._name, f"is redirected to {shown_uri(uri)}, which is not fetched")
        else:
            raise Unreachable(self._name, f"is redirected more than {_HOPS} times")
        self.total: int | None
        if answer.status == 416 and first:  # an empty file has no first byte
            self.ranges, self.total = False, 0
        elif answer.status == 206:
            span = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", answer.headers.get("Content-Range", "").strip())
            if span is None or int(span[1]) != place:
                self.close()
                raise Unreachable(
                    self._name, f"its server answers with the range {answer.headers.get('Content-Range')!r}"
                )
            self.ranges, self.total = True, int(span[3])
        elif answer.status == 200:
            length = answer.headers.get("Content-Length", "")
            self.ranges, self.total = False, int(length) if length.isdigit() else None
        else:
            self.close()
            kind = DecodeError if answer.status in (400, 401, 403, 404, 405, 406, 410, 451) else Unreachable
            raise kind(self._name, f"its server says {answer.status} {answer.reason}")

    def header(self, name: str) -> str:
        return self._answer.headers.get(name, "")

    def read(self, size: int) -> bytes:
        """Up to so many bytes, all in `Access.timeout` seconds; b"" at the end of the answer."""
        end = time.monotonic() + self._access.timeout
        parts, got = list[bytes](), 0
        while got < size and self.total != 0:
            left = end - time.monotonic()
            if left <= 0:
                raise self._slow()
            self._connection.limit(left)
            try:
                data = self._answer.read1(size - got)
            except TimeoutError as error:
                raise self._slow() from error
            if not data:
                break
            parts.append(data)
            got += len(data)
        return b"".join(parts)

    def _slow(self) -> TimeoutError:
        return TimeoutError(f"its server sent less than {_BLOCK >> 10} KiB in {self._access.timeout:g} s")

    def close(self) -> None:
        self._answer.close()
        self._connection.close()


def _asked(uri: str, address: Address, place: int, tag: str) -> tuple[_Connection, http.client.HTTPResponse]:
    parts = urllib.parse.urlsplit(uri)
    try:
        host, port = (parts.hostname or "").encode("idna").decode(), parts.port
    except (UnicodeError, ValueError) as error:
        raise Refused(address.name, f"is no address ({error})") from error
    if not host:
        raise Refused(address.name, "names no host")
    headers = {"Range": f"bytes={place}-", "Accept-Encoding": "identity", "User-Agent": "vtr"}
    if tag and place:
        headers["If-Range"] = tag
    if parts.username is not None and parts.netloc == urllib.parse.urlsplit(address.uri).netloc:
        known = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        headers["Authorization"] = "Basic " + base64.b64encode(known.encode()).decode()
    path = urllib.parse.quote(parts.path or "/", safe="/%:=&?~#+!$,;'@()*[]")
    query = "?" + urllib.parse.quote(parts.query, safe="/%:=&?~#+!$,;'@()*[]") if parts.query else ""
    connection = _Connection(host, port, secure=parts.scheme.lower() == "https", address=address)
    try:
        connection.request("GET", path + query, headers=headers)
        return connection, connection.getresponse()
    except BaseException:
        connection.close()
        raise


class _Connection(http.client.HTTPConnection):
    """A connection to an address that was checked: the one that is connected to, and not what its name meant before."""

    def __init__(self, host: str, port: int | None, *, secure: bool, address: Address) -> None:
        super().__init__(host, port or (443 if secure else 80), timeout=address.access.timeout)
        self._secure, self._address, self._own = secure, address, cast("socket.socket | None", None)

    def connect(self) -> None:
        found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        allowed = [a for a in found if self._address.access.private or is_public(str(a[4][0]))]
        if not allowed:
            where = str(found[0][4][0]) if found else self.host
            raise Refused(self._address.name, f"{where} is an address of this machine or of a private network" + _ALLOW)
        failed: OSError | None = None
        for family, kind, protocol, _, place in allowed:
            made = socket.socket(family, kind, protocol)
            try:
                made.settimeout(min(10.0, self._address.access.timeout))
                made.connect(place)
                made.settimeout(self._address.access.timeout)
                self.sock = self._own = self._wrapped(made)
                return
            except OSError as error:
                made.close()
                failed = error
        raise failed or OSError("no address")

    def _wrapped(self, made: socket.socket) -> socket.socket:
        return ssl.create_default_context().wrap_socket(made, server_hostname=self.host) if self._secure else made

    def limit(self, seconds: float) -> None:
        """How long the next read may take."""
        if self._own is not None:
            self._own.settimeout(max(0.01, seconds))


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open net: not this machine's, a private network's, or one that stands for such."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast and not ip.is_reserved and not ip.is_unspecified
