"""From the title and the HTML body of posts to features, many posts at a time.

Everything works on the bytes of Arrow arrays with numpy: no Python object is made for a post, let alone for a word.
A feature is a 64-bit key: a hash of a word, of a joined form (`asp.net-mvc`) or of two neighbours, and in its lowest
four bits the field it was seen in. The same key means the same feature in every process and on every machine.
"""

import html
import string
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Bytes = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]
Posts = npt.NDArray[np.uint32]
Flags = npt.NDArray[np.bool_]


class Field(IntEnum):
    """Where a feature was seen. The value is part of every key and of every stored model: never renumber."""

    ALL = 0  # every word, joined form and camelCase piece; those of the title count three times
    TITLE = 1  # words and joined forms of the title
    CODE = 2  # words of <pre> blocks
    TITLE_PAIR = 3  # two neighbouring words of the title
    TEXT_PAIR = 4  # two neighbouring words of running text
    SYMBOL = 5  # runs of punctuation in code, such as `->` or `};`: they tell languages apart
    SYMBOL_PAIR = 6  # two neighbouring runs of punctuation in code
    TITLE_GRAM = 7  # three to five bytes of a word of the title, a blank before or after it included


FIELDS = len(Field)
FIELD_MASK = np.uint64(15)

MAX_BATCH_POSTS = 2048
BATCH_BYTES = 512 * 1024  # of bodies; a batch and what is derived from it stay in the second-level cache
MAX_TITLE_BYTES = 1024
MAX_BODY_BYTES = 64 * 1024  # Stack Exchange allows 30,000 characters; what follows adds nothing to a topic
MAX_TOKEN_BYTES = 40
GRAM_SIZES = (3, 4, 5)  # without a gap
_PADDING = 8  # so that eight bytes can be loaded at any position


def _table(accepted: bytes) -> bytes:
    """A table of 1 for the bytes accepted and 0 for the others."""
    return bytes(byte in accepted for byte in range(256))


_FILLER = b"\0"  # stands in for what a decoded entity no longer needs, so that nothing has to move

# What a byte is; letters of either case are told apart by bits that make `byte | class & _UPPER` lower case.
_WORD, _SYMBOL, _SPECIAL, _LOWER, _UPPER = (np.uint8(bit) for bit in (1, 2, 4, 0x10, 0x20))


def _class_of(byte: int) -> np.uint8:
    character = bytes([byte])
    if character.isalpha():
        return _WORD | (_UPPER if character.isupper() else _LOWER)
    special = _SPECIAL if character in b"<>&+\xc2\xe2" else np.uint8(0)
    if character.isdigit() or character == b"#" or byte >= 0x80:
        return _WORD | special
    return special | (_SYMBOL if character == _FILLER or character in string.punctuation.encode() else np.uint8(0))


_CLASSES = bytes(map(_class_of, range(256)))
_NO_CASE = np.uint64(0x2020202020202020)
_IS_JOINER = np.frombuffer(_table(b".-_"), np.bool_)
_STARTS_TAG = np.frombuffer(_table(string.ascii_letters.encode() + b"/!?"), np.bool_)
_ENDS_NAME = np.frombuffer(_table(b"> \t\r\n/"), np.bool_)

_MULTIPLY_HEAD = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLY_TAIL = np.uint64(0xC2B2AE3D27D4EB4F)
_MULTIPLY_END = np.uint64(0xD6E8FEB86659FD93)
_HALF = np.uint64(32)
_FIELD_SALTS = [np.uint64((0xA24BAED4963EE407 * (field + 1) & (2**64 - 16)) | field) for field in Field]

_MARKUP, _CODE, _PRE = np.uint8(1), np.uint8(2), np.uint8(4)


@dataclass(frozen=True, slots=True)
class Occurrences:
    """The features of a batch of posts, one entry an occurrence, in no particular order.

    `count` is the number of posts; `post` the position of the post within the batch; `key` the feature.
    """

    count: int
    post: Posts
    key: Hashes


@dataclass(frozen=True, slots=True)
class _Tokens:
    """Tokens of one kind in order of appearance: which post, where in it (flags), and the hash."""

    post: Posts
    place: Bytes
    hash: Hashes

    def where(self, chosen: Flags) -> "_Tokens":
        rows = np.flatnonzero(chosen)
        return _Tokens(self.post[rows], self.place[rows], self.hash[rows])

    def single(self, field: Field) -> "_Features":
        return self.post, _keys(self.hash, field)

    def pairs(self, field: Field) -> "_Features":
        """Each token with the next one of the same post."""
        first = np.flatnonzero(self.post[1:] == self.post[:-1])
        return self.post[first], _keys(_finish(self.hash[first] * _MULTIPLY_TAIL + self.hash[first + 1]), field)


_Features = tuple[Posts, Hashes]


@dataclass(frozen=True, slots=True)
class _Tags:
    """The HTML tags of some posts in order: positions of `<` and `>`, and the flags of what follows each tag.

    `first` [posts + 1] is the number of the first tag of each post.
    """

    opening: Indices
    closing: Indices
    flags: Bytes
    first: Indices


def parse_tags(tags: pa.Array | pa.ChunkedArray) -> pa.ListArray:
    """The tags of posts as lists, from either notation: `<c#><.net>` or `|c#|.net|`.

    Takes strings or binaries of any Arrow kind, dictionary-encoded or not. Null and empty become null.
    """
    text = _flat(tags, pa.string())
    bare = pc.ascii_trim(pc.replace_substring(text, "><", "|"), "<>|")
    known = pc.if_else(pc.equal(bare, ""), pa.scalar(None, pa.string()), bare)
    return pc.split_pattern(known, "|")


def occurrences(titles: pa.Array | pa.ChunkedArray, bodies: pa.Array | pa.ChunkedArray) -> Iterator[Occurrences]:
    """The features of posts, batch after batch in the order given; each batch holds at most MAX_BATCH_POSTS.

    Takes two arrays of one length: strings or binaries of any Arrow kind, nulls allowed, UTF-8 not required.
    Of a title the first MAX_TITLE_BYTES are read, of a body the first MAX_BODY_BYTES; the time is linear in them.
    """
    if len(titles) != len(bodies):
        raise ValueError(f"{len(titles)} titles but {len(bodies)} bodies")
    title_bytes, title_starts = _terminated(titles, MAX_TITLE_BYTES)
    body_bytes, body_starts = _terminated(bodies, MAX_BODY_BYTES)
    first, total = 0, len(titles)
    while first < total:
        fitting = int(np.searchsorted(body_starts, body_starts[first] + BATCH_BYTES, "right")) - 1
        last = min(max(fitting, first + 1), first + MAX_BATCH_POSTS, total)
        title = _Text.cut(title_bytes, title_starts[first : last + 1])
        body = _Text.cut(body_bytes, body_starts[first : last + 1])
        features = _title_features(title) + _body_features(body)
        yield Occurrences(
            last - first, np.concatenate([f[0] for f in features]), np.concatenate([f[1] for f in features])
        )
        first = last


def hash_of(token: str) -> int:
    """The 64-bit hash of a lower-case token, as it is found in keys (without the field)."""
    data = token.encode()
    text = _Text.cut(np.frombuffer(data, np.uint8), np.array([0, len(data)]))
    return int(text.hashes(np.array([0]), np.array([len(data)]))[0])


def key_of(token: str, field: Field) -> int:
    """The key of a word or joined form in a field that holds single tokens."""
    return int(_keys(np.array([hash_of(token)], np.uint64), field)[0])


def _flat(array: pa.Array | pa.ChunkedArray, kind: pa.DataType) -> pa.Array:
    """One contiguous array of the plain kind asked for, without a check that text is UTF-8."""
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
        if isinstance(array, pa.ChunkedArray):
            array = pa.concat_arrays(array.chunks)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    options = pc.CastOptions(target_type=kind, allow_invalid_utf8=True)
    return array if array.type == kind else pc.cast(array, options=options)


def _terminated(array: pa.Array | pa.ChunkedArray, limit: int) -> tuple[Bytes, Indices]:
    """All texts in one buffer, each cut to the limit and followed by a line feed, and where each starts."""
    flat = pc.fill_null(_flat(array, pa.large_binary()), b"")
    if len(flat) and pc.max(pc.binary_length(flat)).as_py() > limit:
        flat = pc.binary_slice(flat, 0, limit)
    nothing, line_feed = pa.scalar(b"", pa.large_binary()), pa.scalar(b"\n", pa.large_binary())
    lines = pc.binary_join_element_wise(flat, nothing, line_feed)
    _, offsets, data = lines.buffers()
    starts = np.frombuffer(offsets, np.int64)[lines.offset : lines.offset + len(lines) + 1]
    return np.frombuffer(data or b"", np.uint8), starts


class _Text:
    """The bytes of some consecutive posts, the class of each, and where each post starts.

    Entities are decoded in place, before `lower` and `in_word` are asked for.
    """

    def __init__(self, raw: bytes, starts: Indices) -> None:
        self.bytes: Bytes = np.frombuffer(bytearray(raw), np.uint8)
        self.classes: Bytes = np.frombuffer(bytearray(raw.translate(_CLASSES)), np.uint8)
        self.starts = starts

    @classmethod
    def cut(cls, data: Bytes, starts: Indices) -> "_Text":
        return cls(data[starts[0] : starts[-1]].tobytes() + b"\n" * _PADDING, starts - starts[0])

    @cached_property
    def lower(self) -> Hashes:
        """Eight bytes from each position, in lower case."""
        return _loads(self.bytes | (self.classes & _UPPER))

    @cached_property
    def in_word(self) -> Flags:
        """Which bytes are part of words: letters, digits, `#`, non-ASCII letters, and `+` beside another one."""
        data = self.bytes
        mask: Flags = (self.classes & _WORD).view(np.bool_)
        special = self.specials()
        kind = data[special]
        plus = special[kind == ord("+")]
        mask[plus[(data[plus - 1] == ord("+")) | (data[plus + 1] == ord("+"))]] = True  # before byte 0 is padding
        latin = special[kind == 0xC2]  # U+0080 to U+00BF: no-break space, guillemets and other signs
        general = special[kind == 0xE2]
        general = general[data[general + 1] == 0x80]  # U+2000 to U+203F: typographic quotes, dashes, spaces
        mask[latin] = mask[latin + 1] = False
        mask[general] = mask[general + 1] = mask[general + 2] = False
        mask[-_PADDING:] = False  # where text is cut off inside one of these signs
        return mask

    def specials(self) -> Indices:
        """Positions of the bytes that need a second look, in one pass over the text."""
        return np.flatnonzero((self.classes[:-_PADDING] & _SPECIAL) != 0)

    def posts_of(self, positions: Indices) -> Posts:
        """The posts that rising positions lie in."""
        bounds = np.searchsorted(positions, self.starts)
        return np.repeat(np.arange(len(self.starts) - 1, dtype=np.uint32), np.diff(bounds))

    def hashes(self, start: Indices, end: Indices) -> Hashes:
        """Hashes of the byte ranges, from their first eight bytes, last eight bytes and length."""
        length = end - start
        hashes = self.lower[start]
        hashes <<= (64 - 8 * np.minimum(length, 8)).astype(np.uint64)
        hashes *= _MULTIPLY_HEAD
        long = np.flatnonzero(length > 8)
        if len(long):
            hashes[long] ^= self.lower[end[long] - 8] * _MULTIPLY_TAIL + length[long].astype(np.uint64)
        return _finish(hashes)


def _loads(data: Bytes) -> Hashes:
    """Eight bytes from each position as one number, the first byte lowest."""
    return np.ndarray((len(data) - _PADDING + 1,), "<u8", data, 0, (1,))


def _finish(hashes: Hashes) -> Hashes:
    """Spread what the bits hold over all of them, in place."""
    hashes ^= hashes >> _HALF
    hashes *= _MULTIPLY_END
    hashes ^= hashes >> _HALF
    return hashes


def _keys(hashes: Hashes, field: Field) -> Hashes:
    return (hashes & ~FIELD_MASK) ^ _FIELD_SALTS[field]


def _title_features(text: _Text) -> list[_Features]:
    text, no_tags = _decode_entities(text, _no_tags(text), text.specials())
    words, joined, pieces, _ = _tokens(text, no_tags)
    everything = [tokens.single(Field.ALL) for tokens in (words, joined, pieces)]
    twice = [*everything, *everything]
    return [
        *twice,
        *everything[:2],
        words.single(Field.TITLE),
        joined.single(Field.TITLE),
        words.pairs(Field.TITLE_PAIR),
        *_grams(text),
    ]


def _body_features(text: _Text) -> list[_Features]:
    special = text.specials()
    text, tags = _decode_entities(text, _tags(text, special), special)
    words, joined, pieces, symbols = _tokens(text, tags)
    visible = words.place & _MARKUP == 0
    in_block = words.place & _PRE != 0
    symbols = symbols.where((symbols.place & _MARKUP == 0) & (symbols.place & (_CODE | _PRE) != 0))
    return [
        words.single(Field.ALL),
        joined.single(Field.ALL),
        pieces.where(pieces.place & _MARKUP == 0).single(Field.ALL),
        words.where(visible & in_block).single(Field.CODE),
        words.where(visible & ~in_block).pairs(Field.TEXT_PAIR),
        symbols.single(Field.SYMBOL),
        symbols.pairs(Field.SYMBOL_PAIR),
    ]


def _tokens(text: _Text, tags: _Tags) -> tuple[_Tokens, _Tokens, _Tokens, _Tokens]:
    """Words, joined forms, camelCase pieces and symbols of the texts."""
    start, end = _runs(text.in_word)
    post = text.posts_of(start)
    place = _places(tags, start, post)

    def tokens(first_word: Indices, start: Indices, end: Indices) -> _Tokens:
        fits = np.flatnonzero(end - start <= MAX_TOKEN_BYTES)
        first_word = first_word[fits]
        return _Tokens(post[first_word], place[first_word], text.hashes(start[fits], end[fits]))

    words = tokens(np.arange(len(start)), start, end)
    joined = tokens(*_joined_spans(text, start, end))
    pieces = tokens(*_camel_spans(text, start, end))
    return words, joined, pieces, _symbols(text, tags)


def _runs(mask: Flags) -> tuple[Indices, Indices]:
    """Start and end of every run of True. The last entry of the mask must be False."""
    edges = np.flatnonzero(mask[1:] != mask[:-1]) + 1
    if mask[0]:
        edges = np.concatenate([[0], edges])
    return edges[0::2], edges[1::2]


def _joined_spans(text: _Text, start: Indices, end: Indices) -> tuple[Indices, Indices, Indices]:
    """Words held together by single `.`, `-` or `_`, and words led by a dot: first word, start, end."""
    data = text.bytes
    linked = np.flatnonzero(start[1:] - end[:-1] == 1)  # to the word that follows
    linked = linked[_IS_JOINER[data[end[linked]]]]
    is_first = np.diff(linked, prepend=-2) != 1
    head, tail = linked[is_first], linked[np.append(is_first[1:], True)[: len(linked)]] + 1
    led = np.flatnonzero(data[start - 1] == ord("."))
    in_chain = np.zeros(len(start), np.bool_)
    in_chain[linked] = in_chain[linked + 1] = True
    alone = led[~in_chain[led]]
    head_led = data[start[head] - 1] == ord(".")
    return (
        np.concatenate([head, alone]),
        np.concatenate([start[head] - head_led, start[alone] - 1]),
        np.concatenate([end[tail], end[alone]]),
    )


def _grams(text: _Text) -> Iterator[_Features]:
    """Every three to five consecutive bytes of which all but the outermost belong to a word."""
    in_word = text.in_word
    blank = np.uint8(ord(" "))
    loads = _loads(np.append(blank, np.where(in_word, text.bytes | (text.classes & _UPPER), blank)))  # from one before
    inside = np.ones(len(loads), np.bool_)
    for size in GRAM_SIZES:
        inside &= in_word[size - 3 : size - 3 + len(loads)]
        at = np.flatnonzero(inside)
        hashes = _finish((loads[at] << np.uint64(64 - 8 * size)) * _MULTIPLY_HEAD + np.uint64(size))
        yield text.posts_of(at), _keys(hashes, Field.TITLE_GRAM)


def _camel_spans(text: _Text, start: Indices, end: Indices) -> tuple[Indices, Indices, Indices]:
    """The pieces of two bytes and more of camelCase words: word, start, end."""
    cut = np.flatnonzero((text.classes[1:] & (text.classes[:-1] << 1) & _UPPER) != 0) + 1  # upper after lower case
    owner = np.searchsorted(start, cut, "right") - 1  # a cut follows a letter, so it lies in a word
    is_first = np.diff(owner, prepend=-1) != 0
    is_last = np.append(is_first[1:], True)[: len(owner)]
    following = np.where(is_last, end[owner], np.append(cut[1:], 0)[: len(cut)])
    heads = owner[is_first]
    piece_start = np.concatenate([cut, start[heads]])
    piece_end = np.concatenate([following, cut[is_first]])
    long = np.flatnonzero(piece_end - piece_start > 1)
    return np.concatenate([owner, heads])[long], piece_start[long], piece_end[long]


def _symbols(text: _Text, tags: _Tags) -> _Tokens:
    """Runs of punctuation; the brackets of tags end a run and belong to none."""
    if not len(tags.opening):
        return _Tokens(np.zeros(0, np.uint32), np.zeros(0, np.uint8), np.zeros(0, np.uint64))
    mask: Flags = (text.classes & _SYMBOL) != 0
    mask &= ~text.in_word
    mask[tags.opening] = mask[tags.closing] = False
    start, end = _runs(mask)
    fits = np.flatnonzero(end - start <= MAX_TOKEN_BYTES)
    start, end = start[fits], end[fits]
    post = text.posts_of(start)
    return _Tokens(post, _places(tags, start, post), text.hashes(start, end))


def _no_tags(text: _Text) -> _Tags:
    nowhere = np.zeros(0, np.int64)
    return _Tags(nowhere, nowhere, np.zeros(0, np.uint8), np.zeros(len(text.starts), np.int64))


def _tags(text: _Text, special: Indices) -> _Tags:
    """The tags of HTML; what is none (`a < b`, one that never ends) is left out, also in broken or hostile HTML."""
    data = text.bytes
    kind = data[special]
    opening = special[kind == ord("<")]
    opening = opening[_STARTS_TAG[data[opening + 1]]]
    closing = special[kind == ord(">")]
    if not (len(opening) == len(closing) and (opening < closing).all() and (closing[:-1] < opening[1:]).all()):
        nearest = np.searchsorted(closing, opening)
        is_closed = nearest < len(closing)
        opening, closing = opening[is_closed], closing[nearest[is_closed]]
        is_innermost = np.append(closing[1:] != closing[:-1], True)[: len(closing)]
        opening, closing = opening[is_innermost], closing[is_innermost]
    inside = np.searchsorted(text.starts, opening, "right") == np.searchsorted(text.starts, closing, "right")
    opening, closing = opening[inside], closing[inside]
    first = np.searchsorted(opening, text.starts)
    tags_of_post = np.diff(first)
    is_end = data[opening + 1] == ord("/")
    step = np.where(is_end, -1, 1)
    name = opening + 1 + is_end
    names = _loads(data)[name] | _NO_CASE
    flags = np.zeros(len(opening), np.uint8)
    for element, flag in ((b"code", _CODE), (b"pre", _PRE)):
        bits = np.uint64(64 - 8 * len(element))
        wanted = np.uint64(int.from_bytes(element, "little"))
        named = (names << bits == wanted << bits) & _ENDS_NAME[data[name + len(element)]]
        depth = np.concatenate([[0], np.cumsum(step * named)])
        flags |= flag * (depth[1:] > np.repeat(depth[first[:-1]], tags_of_post))
    return _Tags(opening, closing, flags, first)


def _places(tags: _Tags, start: Indices, post: Posts) -> Bytes:
    """For every token whether it stands inside a tag, in <code> and in <pre>."""
    count = len(tags.opening)
    if not count:
        return np.zeros(len(start), np.uint8)
    bounds = np.empty(2 * count + 2, np.int64)
    bounds[0], bounds[-1] = 0, len(start)
    bounds[1:-1:2], bounds[2:-1:2] = np.searchsorted(start, tags.opening), np.searchsorted(start, tags.closing)
    flags = np.zeros(2 * count + 1, np.uint8)
    flags[1::2], flags[2::2] = _MARKUP, tags.flags
    place = np.repeat(flags, np.diff(bounds))
    if tags.flags[np.maximum(tags.first[1:] - 1, 0)].any():  # a post that ends inside code must not colour the next one
        first_tagged = bounds[1::2][tags.first[:-1]]
        place[np.arange(len(start)) < first_tagged[post]] = 0
    return place


def _decode_entities(text: _Text, tags: _Tags, special: Indices) -> tuple[_Text, _Tags]:
    """The text with its entities decoded (changed in place unless something moves), and the tags where they are then.

    Punctuation (`&lt;`) is followed by fillers and white space (`&nbsp;`) by blanks, so that nothing moves;
    only what may be part of a word (`&eacute;`) closes up.
    """
    data = text.bytes
    at = special[data[special] == ord("&")]
    width = np.zeros(len(at), np.int64)
    for length in range(_PADDING, 1, -1):  # of the name, which must fit into one load
        width[data[np.minimum(at + length + 1, len(data) - 1)] == ord(";")] = length
    at, width = at[width > 0], width[width > 0]
    if not len(at):
        return text, tags
    names = _loads(data)[at + 1]
    names <<= (64 - 8 * width).astype(np.uint64)
    by_name = np.argsort(names, kind="stable")
    distinct, first = np.unique(names[by_name], return_index=True)
    dropped: list[Indices] = []
    for name, positions in zip(distinct.tolist(), np.split(at[by_name], first[1:]), strict=True):
        entity = b"&" + name.to_bytes(8, "little").lstrip(b"\0") + b";"
        written = _decoded(entity)
        for offset, byte in enumerate(written):
            data[positions + offset] = byte
            text.classes[positions + offset] = _CLASSES[byte]
        dropped += [positions + offset for offset in range(len(written), len(entity))]
    if not dropped:
        return text, tags
    keep = np.ones(len(data), np.bool_)
    keep[np.concatenate(dropped)] = False
    before = np.concatenate([[0], np.cumsum(~keep)])
    opening, closing = tags.opening - before[tags.opening], tags.closing - before[tags.closing]
    moved = _Text(data[keep].tobytes(), text.starts - before[text.starts])
    return moved, _Tags(opening, closing, tags.flags, tags.first)


@lru_cache(4096)
def _decoded(entity: bytes) -> bytes:
    """What to write in place of an entity; shorter than that when it closes up."""
    name = entity.decode("latin-1")
    character = html.unescape(name)
    written = character.encode("utf-8", "replace")
    if character == name or len(written) > len(entity):
        return entity
    if character.isspace() or written[:1] == b"\xc2" or written[:2] == b"\xe2\x80":
        return b" " * len(entity)
    if len(written) == 1 and _CLASSES[written[0]] & _SYMBOL and written not in (b"+", b".", b"-", b"_"):
        return written + _FILLER * (len(entity) - 1)
    return written
