"""What the JSON API says. Places in texts are numbers of characters (Unicode code points), from 0."""

from pydantic import BaseModel, Field


class RaisingToken(BaseModel):
    """A token of a document as the model reads it."""

    token: str
    start: int | None = Field(description="its first character in the text; null for special tokens and prompts")
    end: int | None = Field(description="the character after its last one")


class Term(BaseModel):
    """What a term of the query adds to the score of a document."""

    token: str
    query_weight: float
    document_weight: float
    share: float = Field(description="the product of both weights, a part of the score")
    in_text: bool | None = Field(description="whether the text holds it; if not, the model added it; null if unknown")


class RaisedTerm(Term):
    """A term, and where the document has it from."""

    raised_by: RaisingToken | None = Field(description="the token of the document that made its weight, if known")


class Mark(BaseModel):
    """A place in a text where a term of the query stands."""

    start: int
    end: int
    term: int = Field(description="number of the term in `terms`, from 0")


class Excerpt(BaseModel):
    """The part of a text that shows most of a query."""

    text: str
    is_start: bool = Field(description="whether the text begins here")
    is_end: bool = Field(description="whether the text ends here")
    marks: list[Mark]


class FoundDocument(BaseModel):
    """A hit."""

    rank: int
    id: str
    score: float
    whole_rank: int | None = Field(description="rank without the cap; null if beyond the first hundred, or without cap")
    grade: int | None = Field(description="its grade for this query in the task; null if not judged")
    excerpt: Excerpt | None
    terms: list[Term] = Field(description="those that add to the score, the largest share first")


class QueryTerm(BaseModel):
    """A term of a query's vector."""

    token: str
    weight: float


class LeftDocument(BaseModel):
    """A document that a cap takes out of the hits."""

    id: str
    whole_rank: int


class Answer(BaseModel):
    """The hits of a query."""

    query: str
    system: int
    cap: int | None
    search_ms: float = Field(description="milliseconds of tokenising, looking up and searching, in this server")
    query_terms: list[QueryTerm]
    hits: list[FoundDocument]
    left: list[LeftDocument] = Field(description="hits without the cap that are none with it")
    ndcg: float | None = Field(
        description="nDCG@10 of these hits, if the query is one of the task and `top` is 10 or more"
    )


class Dim(BaseModel):
    """An active dim of a document."""

    token: str
    weight: float
    in_text: bool | None
    raised_by: RaisingToken | None


class Document(BaseModel):
    """A document in full, with its vector."""

    id: str
    system: int
    text: str | None
    is_whole: bool = Field(description="false where the text is longer than what is sent")
    read_from: int = Field(description="the character from which the model reads")
    read_until: int | None = Field(description="the character before which it stops reading; null: it reads on")
    score: float
    marks: list[Mark]
    terms: list[RaisedTerm] = Field(description="all terms of the query, the largest share first")
    dims: list[Dim] = Field(description="active dims, the largest weight first")
    num_dims: int = Field(description="how many there are")


class PruningPoint(BaseModel):
    """What is left when each document keeps so many of its largest weights."""

    cap: int | None = Field(description="null: all weights")
    active_dims: float | None = Field(description="mean number of weights of a document; null if they are not counted")
    num_postings: int | None
    num_bytes: int | None = Field(description="of posting lists, 8 bytes a weight")
    ndcg: float | None = Field(description="nDCG@10 on the task; null while it is measured, or without task")


class PruningCurve(BaseModel):
    """All caps, the smallest first."""

    points: list[PruningPoint]
    is_complete: bool = Field(description="false while nDCG@10 is being measured")


class SystemFacts(BaseModel):
    """What can be searched."""

    number: int
    name: str
    kind: str = Field(description="`index` or `bm25`")
    num_documents: int
    active_dims: float | None = Field(description="mean number of weights of a document")
    can_prune: bool
    knows_tokens: bool = Field(description="whether there is a model to tell which token raised a term")


class Site(BaseModel):
    """What this server has."""

    systems: list[SystemFacts]
    task: str | None
    queries: list[str] = Field(description="some queries of the task")
    num_queries: int = Field(description="how many it has")
    max_query_characters: int
    max_top: int


class Problem(BaseModel):
    """What is wrong with a request."""

    detail: str
