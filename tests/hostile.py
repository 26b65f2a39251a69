"""Pieces of hostile texts that are slow to read; tests repeat each piece up to a megabyte."""

HOSTILE = (
    b"<",
    b">",
    b"<p",
    b"&",
    b"&#",
    b"a.",
    b"+",
    b"aB",
    b"<code>",
    b"</pre>",
    b"\xe2\x80\x9c",
    b";",
    b"&lt;",
    b"&eacute;",
)
PLAIN = b"plain words "


def entities(kinds: int) -> bytes:
    """Different character references."""
    return b"".join(b"&#%d;" % (1000 + number) for number in range(kinds))
