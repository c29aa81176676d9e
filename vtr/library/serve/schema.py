"""What the API takes and gives: limits, parameters, answers."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from fastapi import Path as InPath
from fastapi import Query
from pydantic import BaseModel, Field

MAX_K = 100
MAX_QUERY = 500  # characters
MAX_TEXTS = 8  # wanted, and as many unwanted
MAX_MOMENTS = 20  # of one video
MAX_WHERE = 1000  # characters
MAX_RERANK = 50  # segments
UPLOAD_PATH = "/api/search/clip"

Responses: TypeAlias = dict[int | str, dict[str, object]]


class Step(BaseModel):
    """One of several moments that were asked for in order."""

    text: str
    start: float
    end: float
    segment: int
    similarity: float


class Said(BaseModel):
    """A subtitle, in seconds of the video."""

    start: float
    end: float
    text: str


class Moment(BaseModel):
    """One hit: a moment of a video."""

    rank: int
    score: float
    similarity: float
    reranked: bool
    segment: int
    video: int
    path: str
    name: str
    start: float
    end: float
    duration: float
    moment: Annotated[int, Field(description="1 for the best moment of its video")]
    measure: Annotated[
        Literal["similarity", "likeness", "mixed", "combined", "words", "fused"],
        Field(
            description="what the score is: of a text, of a clip (cosine), of both, re-ranked, of what is said, or fused"
        ),
    ]
    match: Annotated[float, Field(ge=0, le=1, description="the score between 0 and 1")]
    confidence: Annotated[
        float | None,
        Field(description="share of unrelated texts whose best hit here scores lower; null where it is not known"),
    ]
    weak: Annotated[
        bool, Field(description="so many unrelated texts score as high that it is hardly what was asked for")
    ]
    refined: Annotated[bool, Field(description="start and end lie between those of segments, by vectors of frames")]
    steps: Annotated[list[Step], Field(description="of a query with `then` or `before`: its moments in order")]
    by: Annotated[list[Literal["picture", "words"]], Field(description="what it was found by")]
    words: Annotated[float, Field(ge=0, le=1, description="share of the query's words that are said")]
    said: Annotated[list[Said], Field(description="the subtitles in which they are")]
    copies: Annotated[list[str], Field(description="other files of the same content")]
    near_copies: Annotated[
        list[str], Field(description="other files that look the same there: another codec, size, compression or frame")
    ]
    keyframes: Annotated[bool, Field(description="only key frames were looked at when it was indexed: a quick look")]
    metadata: dict[str, str | int | float | bool]
    kind: Literal["video", "image", "file"]


class Answer(BaseModel):
    """The hits of a query, best first."""

    query: str
    hits: list[Moment]
    milliseconds: float
    notes: Annotated[list[str], Field(description="what could not be done as it was asked for")]
    library: Annotated[str, Field(description="which library the ids are of: `library` of the routes that take an id")]


class CurveAnswer(BaseModel):
    """How well a video fits a query from moment to moment."""

    query: str
    video: int
    start: Annotated[float, Field(description="seconds of the first value's beginning")]
    step: Annotated[float, Field(description="seconds of each value")]
    exact: Annotated[bool, Field(description="from vectors of single frames; else from segments")]
    scores: Annotated[list[float | None], Field(description="null where nothing is known")]
    notes: Annotated[list[str], Field(description="what could not be done as it was asked for")]
    library: str


class Limits(BaseModel):
    """What a request may ask for."""

    k: int = MAX_K
    query: int = MAX_QUERY
    texts: int = MAX_TEXTS
    where: int = MAX_WHERE
    rerank: int = MAX_RERANK
    moments: int = MAX_MOMENTS
    upload_bytes: int


class Listed(BaseModel):
    """A video of the library."""

    video: int
    segment: Annotated[int, Field(description="one of its middle, for a picture")]
    name: str
    title: Annotated[str, Field(description="its metadata's title, else the file's name without its ending")]
    path: str
    duration: float
    modified: Annotated[str | None, Field(description="the file's date, ISO 8601; null where it is not known")]
    kind: Literal["video", "image", "file"]
    metadata: dict[str, str | int | float | bool]


class Videos(BaseModel):
    """Videos of the library, the newest first."""

    total: int
    first: Annotated[int, Field(description="how many were passed over")]
    videos: list[Listed]
    library: str


class Example(BaseModel):
    """A query that this library answers."""

    q: str
    by: Annotated[Literal["picture", "words"], Field(description="`by` of a search that finds it")]
    origin: Annotated[Literal["caption", "subtitle"], Field(description="where it was taken from")]


class Examples(BaseModel):
    """Queries out of the library's own captions and subtitles; none where it has neither."""

    examples: list[Example]
    library: str


class Info(BaseModel):
    """What the library holds."""

    name: str
    library: str
    model: str | None
    trained: Annotated[bool | None, Field(description="false: its weights are random; null: it is not known")]
    trained_on: Annotated[
        str | None, Field(description="corpus of its run, data of its release, or tag of its weights")
    ]
    knows: Annotated[str | None, Field(description="what it can tell apart, where that is little")]
    words: Annotated[bool, Field(description="there are subtitles: a search may be `by` words")]
    frame_vectors: Annotated[bool, Field(description="hits have finer ends, and curves values of single frames")]
    confidence: Annotated[bool, Field(description="hits of texts say how sure they are")]
    reranks: Annotated[bool, Field(description="the model has a cross-modal decoder: `rerank`")]
    videos: int
    segments: int
    seconds: float
    unreadable: int
    cut_off: Annotated[int, Field(description="files that end before they say, indexed as far as they go")]
    window: float
    stride: float
    columns: Annotated[list[str], Field(description="metadata that filters may use")]
    version: str
    limits: Limits


class Health(BaseModel):
    """That the server answers and its library can be read."""

    status: Literal["ok"] = "ok"


class Problem(BaseModel):
    """Why a request was refused, in one line."""

    error: str
    request: Annotated[str | None, Field(description="the request's id, as in the header X-Request-ID and in the log")]


class Login(BaseModel):
    """The token that the server printed."""

    token: Annotated[str, Field(max_length=1000)]


K = Annotated[int, Query(ge=1, le=MAX_K, description="number of hits")]
Where = Annotated[str, Query(max_length=MAX_WHERE, description='filter, as in: duration < 60 and path ~ "dog"')]
AllMoments = Annotated[bool, Query(description="several moments of one video, each with a rank of its own")]
Moments = Annotated[int, Query(ge=1, le=MAX_MOMENTS, description="up to so many moments of a video, together")]
Unmerged = Annotated[bool, Query(description="every window and every copy of a file on its own")]
All = Annotated[bool, Query(description="near copies as hits of their own; otherwise the best one names them")]
By = Annotated[
    Literal["picture", "words", "both"] | None,
    Query(description="what answers: pictures, words that are said, or both (default where there are subtitles)"),
]
Of = Annotated[
    str | None,
    Query(
        alias="library",
        max_length=40,
        description="`library` of the answer that gave the id: refused (409) when another one has taken its place",
    ),
]
MinScore = Annotated[float, Query(ge=0, le=1, description="leave out hits whose `confidence` is lower; 0: none")]
Within = Annotated[
    float | None,
    Query(ge=0, le=86_400, description="seconds between it and what comes before or then: 60, if left out"),
]
Begin = Annotated[float | None, Query(ge=0, description="seconds, of a hit; the segment's, if left out")]
End = Annotated[float | None, Query(ge=0, description="seconds, of a hit; the segment's, if left out")]
Words = Annotated[str, Field(min_length=1, max_length=MAX_QUERY)]
Id = Annotated[int, InPath(ge=1, le=2**63 - 1, examples=[1])]
WhatFor = Annotated[
    list[Words],
    Query(max_length=MAX_TEXTS, description="what to look for; several count the same", examples=[["a dog"]]),
]
Unwanted = Annotated[list[Words], Query(max_length=MAX_TEXTS, description="texts that are unwanted")]
Phrase = Annotated[str, Field(max_length=MAX_QUERY)]


class Asked(BaseModel):
    """A query of texts, as parameters of an address."""

    q: WhatFor
    minus: Unwanted = []
    k: K = 24
    rerank: Annotated[
        int, Query(ge=0, le=MAX_RERANK, description="best segments that the cross-modal decoder looks at again")
    ] = 0
    where: Where = ""
    all_moments: AllMoments = False
    moments: Moments = 1
    unmerged: Unmerged = False
    all: All = False
    unrefined: Annotated[bool, Query(description="hits begin and end where segments do")] = False
    min_score: MinScore = 0.0
    then: Annotated[Phrase | None, Query(description="what happens after it in the same video")] = None
    before: Annotated[Phrase | None, Query(description="what happened before it")] = None
    within: Within = None
    by: By = None

    @property
    def title(self) -> str:
        """The query for people."""
        wanted = " \u2192 ".join(t for t in (self.before, " + ".join(self.q), self.then) if t)
        return wanted + "".join(f" \u2212 {text}" for text in self.minus)

    def options(self) -> dict[str, object]:
        """What `Library.search` takes beside texts and number."""
        values = self.model_dump(include={*Asked.model_fields} - {"q", "k"})
        for name in ("min_score", "then", "before"):
            values[name] = values[name] or None
        return {**values, "where": self.where if self.where.strip() else None}


def problems(*statuses: int) -> Responses:
    """The refusals of a route, beside those of all (400: a parameter that none of them has)."""
    return {status: {"model": Problem} for status in (400, *statuses, 401, 403, 413, 422, 429, 500)}


PICTURE: Responses = {
    200: {
        "content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}},
        "description": "a JPEG picture",
    }
}
_BYTES = {"content": {"*/*": {"schema": {"type": "string", "format": "binary"}}}}
METRICS: Responses = {
    200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus text format"}
}
LIST: Responses = {
    200: {
        "description": "the list, of the media type of its format",
        "content": {
            **{kind: {"schema": {"type": "string"}} for kind in ("text/plain", "text/csv", "application/xml")},
            "application/json": {"schema": {"type": "object"}},
        },
    }
}
FILE: Responses = {
    200: {**_BYTES, "description": "the file"},
    206: {**_BYTES, "description": "the bytes asked for"},
    304: {"description": "unchanged"},
}
