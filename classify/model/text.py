"""From the title and the HTML body of posts to features, many posts at a time.

All code works on the bytes of Arrow arrays: it makes no Python object for a post or a word. A feature is a 64-bit key:
a hash of a word, of a joined form (`asp.net-mvc`) or of two neighbours; its lowest four bits are the field.
The same key means the same feature in every process and on every machine.
"""

import string
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from html.entities import html5

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shared.arrays import Bytes, Hashes, Int64s
from shared.compiled import EACH_BYTE, HIGH_BITS, LOW_BITS, compiled, inlined, load_word, store_word, trailing_zeros


class Field(IntEnum):
    """Where a feature was found. The value is part of every key and of every stored model: never renumber."""

    ALL = 0  # every word, joined form and camelCase piece; those of the title count three times
    TITLE = 1  # words and joined forms of the title
    CODE = 2  # words of <pre> blocks
    TITLE_PAIR = 3  # two neighbouring words of the title
    TEXT_PAIR = 4  # two neighbouring words of running text
    SYMBOL = 5  # runs of punctuation in code, such as `->` or `};`: languages differ in them
    SYMBOL_PAIR = 6  # two neighbouring runs of punctuation in code
    TITLE_GRAM = 7  # three to five bytes of a word of the title, including a blank before or after it


FIELDS = len(Field)
FIELD_MASK = np.uint64(15)

MAX_BATCH_POSTS = 2048
BATCH_BYTES = 1024 * 1024  # of bodies
MAX_TITLE_BYTES = 1024
MAX_BODY_BYTES = 64 * 1024  # Stack Exchange allows 30,000 characters; a longer text would not change the topic
MAX_TOKEN_BYTES = 40
GRAM_SIZES = (3, 4, 5)
MAX_ENTITY_NAME = 8  # bytes between `&` and `;`

# The kind of a byte. Joiners are symbols too; special bytes are handled one at a time.
_WORD, _SYMBOL, _JOINER, _LOWER, _UPPER, _SPECIAL, _STARTS_TAG, _ENDS_NAME = (1 << bit for bit in range(8))

# The bits that are kept, with the place of the byte. A cut is an upper-case letter after a lower-case one.
_KEPT, _CUT, _MARKUP, _CODE, _PRE = _WORD | _SYMBOL | _JOINER, 16, 32, 64, 128


def _class_of(byte: int) -> int:
    character = bytes([byte])
    kind = _ENDS_NAME if character in b"> \t\r\n/" else 0
    kind |= _STARTS_TAG if character.isalpha() or character in b"/!?" else 0
    kind |= _JOINER if character in b".-_" else 0
    kind |= _SPECIAL if character in b"<>&+" or byte >= 0x80 else 0
    if character.isalnum() or character == b"#" or byte >= 0x80:
        return kind | _WORD | (_UPPER if character.isupper() else _LOWER if character.islower() else 0)
    return kind | (_SYMBOL if character in string.punctuation.encode() else 0)


_CLASSES = np.array([_class_of(byte) for byte in range(256)], np.uint8)
_LOWER_CASE = np.frombuffer(bytearray(bytes(range(256)).lower()), np.uint8)

# HTML's named character references of one code point, sorted by their names read as little-endian numbers.
_NAMED = sorted(
    (int.from_bytes(name[:-1].encode(), "little"), ord(characters))
    for name, characters in html5.items()
    if name.endswith(";") and len(name) - 1 <= MAX_ENTITY_NAME and len(characters) == 1
)
_NAMES = np.array([name for name, _ in _NAMED], np.uint64)
_CODE_POINTS = np.array([code_point for _, code_point in _NAMED], np.int64)
# Numeric references 0x80 to 0x9F mean characters of Windows-1252 (HTML standard, 13.2.5.80).
_WINDOWS = np.array([ord(bytes([byte]).decode("cp1252", "replace")) for byte in range(0x80, 0xA0)], np.int64)
_REPLACEMENT = 0xFFFD

# For eight bytes at once: one character in all of them, and what is added so that bytes from a character on (_FROM)
# or after a character (_BEYOND) reach 128.
_OPENING, _CLOSING, _AMPERSAND, _PLUS, _HASH, _UNDERSCORE = (np.uint64(ord(it)) * EACH_BYTE for it in "<>&+#_")
_FROM_UPPER, _FROM_LOWER, _FROM_DIGIT, _FROM_GRAPHIC, _FROM_DASH = (
    np.uint64(128 - ord(first)) * EACH_BYTE for first in "Aa0!-"
)
_BEYOND_UPPER, _BEYOND_LOWER, _BEYOND_DIGIT, _BEYOND_GRAPHIC, _BEYOND_DOT = (
    np.uint64(127 - ord(last)) * EACH_BYTE for last in "Zz9~."
)

_MULTIPLY_HEAD = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLY_TAIL = np.uint64(0xC2B2AE3D27D4EB4F)
_MULTIPLY_END = np.uint64(0xD6E8FEB86659FD93)
_HALF, _BYTE, _TOP_BYTE = np.uint64(32), np.uint64(8), np.uint64(56)
_NO_HASH, _ONE = np.uint64(0), np.uint64(1)
_WORDS, _IS_SYMBOL, _CUTS = (np.uint64(bit) * EACH_BYTE for bit in (_WORD, _SYMBOL, _CUT))
_BLANK = np.uint64(ord(" ")) << _TOP_BYTE

# A hash XOR the salt of its field is the key. The lowest four bits of a salt are the field.
_SALTS = [np.uint64((0xA24BAED4963EE407 * (field + 1) & (2**64 - 16)) | field) for field in Field]
_ALL, _TITLE, _IN_CODE, _TITLE_PAIR, _TEXT_PAIR, _SYMBOLS, _SYMBOL_PAIR, _TITLE_GRAM = _SALTS

_KEYS_PER_TITLE_BYTE, _KEYS_PER_BODY_BYTE = 8, 4
"""Upper bounds. A title of n bytes has n/2 words, joined forms and pieces, each with up to four keys, and 3n grams.
A body has n/2 words with two keys each, their joined forms and pieces, or n/2 symbols with two keys each."""


@dataclass(frozen=True, slots=True)
class Occurrences:
    """The features of a batch of n posts, one key per occurrence.

    Those of post i are `keys[bounds[i]:bounds[i + 1]]`, in no particular order; bounds int64 [n + 1].
    """

    keys: Hashes
    bounds: Int64s

    @property
    def posts(self) -> int:
        return len(self.bounds) - 1

    def once_a_post(self) -> Hashes:
        """The keys, each once for every post that has it."""
        keys = np.empty_like(self.keys)
        return keys[: _distinct(self.keys, self.bounds, keys)]


def parse_tags(tags: pa.Array | pa.ChunkedArray) -> pa.ListArray:
    """The tags of posts as lists, from either notation: `<c#><.net>` or `|c#|.net|`.

    Takes strings or binaries of any Arrow type, dictionary-encoded or not. Nulls and texts without a tag become null.
    """
    text = _flat(tags, pa.string())
    bare = pc.ascii_trim(pc.replace_substring_regex(text, r"[<>|\s]+", "|"), "|")
    known = pc.if_else(pc.equal(bare, ""), pa.scalar(None, pa.string()), bare)
    return pc.split_pattern(known, "|")


def occurrences(
    titles: pa.Array | pa.ChunkedArray, bodies: pa.Array | pa.ChunkedArray, *, passing: bool = False
) -> Iterator[Occurrences]:
    """The features of posts, batch after batch in the order given; each batch holds at most MAX_BATCH_POSTS.

    Takes two arrays of equal length: strings or binaries of any Arrow type, nulls allowed, UTF-8 not required. With
    `passing`, a batch is valid only until the same thread makes the next one, which saves a copy.
    Reads the first MAX_TITLE_BYTES of a title and the first MAX_BODY_BYTES of a body, in time linear in these bytes.
    Raises ValueError when the lengths differ.
    """
    if len(titles) != len(bodies):
        raise ValueError(f"{len(titles)} titles but {len(bodies)} bodies")
    title_bytes, title_starts = _bytes_of(titles)
    body_bytes, body_starts = _bytes_of(bodies)
    title_sizes = np.minimum(np.diff(title_starts), MAX_TITLE_BYTES)
    body_sizes = np.minimum(np.diff(body_starts), MAX_BODY_BYTES)
    read = np.concatenate([[0], np.cumsum(body_sizes)])
    first, total = 0, len(titles)
    while first < total:
        fitting = int(np.searchsorted(read, read[first] + BATCH_BYTES, "right")) - 1
        last = min(max(fitting, first + 1), first + MAX_BATCH_POSTS, total)
        posts = slice(first, last)
        room = _KEYS_PER_TITLE_BYTE * title_sizes[posts].sum() + _KEYS_PER_BODY_BYTE * body_sizes[posts].sum()
        if room > len(_scratch.keys):
            _scratch.keys = np.empty(room, np.uint64)
        keys, bounds = _scratch.keys, np.zeros(last - first + 1, np.int64)
        _extract(
            title_bytes, title_starts[posts], title_sizes[posts],
            body_bytes, body_starts[posts], body_sizes[posts],
            keys, bounds,
        )  # fmt: skip
        found = keys[: bounds[-1]]
        yield Occurrences(found if passing else found.copy(), bounds)
        first = last


class _Scratch(threading.local):
    """Room for the keys of a batch, reused: it saves an allocation of 40 MB per batch, of which a tenth is used."""

    keys = np.empty(0, np.uint64)


_scratch = _Scratch()


def _flat(array: pa.Array | pa.ChunkedArray, kind: pa.DataType) -> pa.Array:
    """One contiguous array of the type `kind`, without a check that text is UTF-8."""
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
        if isinstance(array, pa.ChunkedArray):
            array = pa.concat_arrays(array.chunks)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    options = pc.CastOptions(target_type=kind, allow_invalid_utf8=True)
    return array if array.type == kind else pc.cast(array, options=options)


def _bytes_of(array: pa.Array | pa.ChunkedArray) -> tuple[Bytes, Int64s]:
    """The bytes of all texts, and the offsets where each text starts and the last one ends; a null is an empty text."""
    flat = pc.fill_null(_flat(array, pa.large_binary()), b"")
    _, offsets, data = flat.buffers()
    starts = np.frombuffer(offsets or bytes(8), np.int64)[flat.offset : flat.offset + len(flat) + 1]
    content = np.frombuffer(data or b"", np.uint8)
    for part in (content, starts):
        part.setflags(write=False)  # otherwise the loops are compiled twice: for writable and for read-only arrays
    return content, starts


@compiled
def _extract(
    titles: Bytes, title_starts: Int64s, title_sizes: Int64s,
    bodies: Bytes, body_starts: Int64s, body_sizes: Int64s,
    keys: Hashes, bounds: Int64s,
) -> None:  # fmt: skip
    """Write the keys of all posts, one post after the other, and their bounds."""
    room = max(MAX_TITLE_BYTES, MAX_BODY_BYTES) + 10  # eight bytes are read at a time, also past the end
    text, kind = np.empty(room, np.uint8), np.empty(room, np.uint8)
    count = bounds[0]
    for post in range(len(title_sizes)):
        for is_body in range(2):
            if is_body:
                raw = bodies[body_starts[post] : body_starts[post] + body_sizes[post]]
            else:
                raw = titles[title_starts[post] : title_starts[post] + title_sizes[post]]
            size = _decode(raw, is_body, text, kind)
            count = _body_keys(text, kind, size, keys, count) if is_body else _title_keys(text, kind, size, keys, count)
        bounds[post + 1] = count


@compiled
def _decode(raw: Bytes, is_html: int, text: Bytes, kind: Bytes) -> int:
    """Write the text in lower case with its entities decoded, and the kind and place of each byte; return its size.

    A tag reaches from a `<` that may start one to the next `>`. Broken or hostile HTML (`a < b`, a tag that never ends)
    is text. A byte without a kind precedes the text and one follows it, so that every byte has two neighbours.
    """
    text[0] = kind[0] = 0
    size = 1  # bytes written
    opening = opened = -1  # where the last unclosed `<` was read, and where it was written
    in_code = in_pre = 0
    here = before = 0
    at, end = 0, len(raw)
    while at < end:
        if at + 8 <= end:
            plain, after_lower = _decode_word(load_word(raw, at), before, here, text, kind, size)
            if plain:
                at += plain
                size += plain
                before = after_lower
                if plain == 8:
                    continue
        byte = raw[at]
        found = _CLASSES[byte]
        text[size] = _LOWER_CASE[byte]
        kind[size] = found & _KEPT | (before << 1) & found & _CUT | here
        before = found
        at += 1
        size += 1
        if not found & _SPECIAL:
            continue
        if byte >= 0x80:
            _leave_out_signs(text, kind, size)
        elif byte == 43:  # +, which is part of a word when it follows another `+`
            if text[size - 2] == 43:
                kind[size - 2] = kind[size - 1] = _WORD | here
        elif byte == 38:  # &
            length, code_point = _entity(raw, at)
            if length:
                at += length
                size = _write(code_point, here, text, kind, size - 1)
                before = 0
        elif not is_html:
            continue
        elif byte == 60:  # <
            if at < end and _CLASSES[raw[at]] & _STARTS_TAG:
                opening, opened = at, size - 1
        elif opening >= 0:  # >
            for written in range(opened, size):
                kind[written] = kind[written] & (_KEPT | _CUT) | _MARKUP
            kind[opened] = kind[size - 1] = 0
            is_end = 1 if raw[opening] == 47 else 0  # /
            step = 1 - 2 * is_end
            if _is_named(raw, opening + is_end, _CODE_NAME):
                in_code = max(in_code + step, 0)
            elif _is_named(raw, opening + is_end, _PRE_NAME):
                in_pre = max(in_pre + step, 0)
            here = (_CODE if in_code > 0 else 0) | (_PRE if in_pre > 0 else 0)
            opening = -1
    text[size] = kind[size] = 0
    return size


@inlined
def _decode_word(word: np.uint64, before: int, here: int, text: Bytes, kind: Bytes, size: int) -> tuple[int, int]:
    """Write the word's bytes before the first special one, and their kinds. Returns their number, and _LOWER when the
    last of them is a lower-case letter. Computes the kinds in `_CLASSES` for eight bytes at once."""
    low = word & LOW_BITS
    angles_and = _equal(low, _OPENING) | _equal(low, _CLOSING) | _equal(low, _AMPERSAND) | _equal(low, _PLUS)
    special = (angles_and | word) & HIGH_BITS
    plain = trailing_zeros(special) >> 3
    upper = _between(low, _FROM_UPPER, _BEYOND_UPPER)
    lower = _between(low, _FROM_LOWER, _BEYOND_LOWER)
    words = upper | lower | _between(low, _FROM_DIGIT, _BEYOND_DIGIT) | _equal(low, _HASH)
    symbols = _between(low, _FROM_GRAPHIC, _BEYOND_GRAPHIC) & ~words
    joiners = _between(low, _FROM_DASH, _BEYOND_DOT) | _equal(low, _UNDERSCORE)
    cuts = upper & (lower << _BYTE | np.uint64((before & _LOWER) << 4))
    store_word(text, size, word | upper >> np.uint64(2))
    kinds = words >> np.uint64(7) | symbols >> np.uint64(6) | joiners >> np.uint64(5) | cuts >> np.uint64(3)
    store_word(kind, size, kinds | np.uint64(here) * EACH_BYTE)
    is_lower = lower >> np.uint64(8 * max(plain, 1) - 1) & _ONE
    return plain, _LOWER if is_lower else 0


@inlined
def _equal(low: np.uint64, bytes_: np.uint64) -> np.uint64:
    """The highest bit of each byte (below 128) that equals the byte at the same place in `bytes_`."""
    return ~((low ^ bytes_) + LOW_BITS) & HIGH_BITS


@inlined
def _between(low: np.uint64, start: np.uint64, stop: np.uint64) -> np.uint64:
    """The highest bit of each byte (below 128) that reaches 128 when `start` is added, but not when `stop` is."""
    return (low + start) & ~(low + stop) & HIGH_BITS


_CODE_NAME, _PRE_NAME = (np.frombuffer(bytearray(name), np.uint8) for name in (b"code", b"pre"))


@inlined
def _is_named(raw: Bytes, at: int, name: Bytes) -> bool:
    """Whether the name at this position is `name`, which is in lower case; upper case matches too."""
    if at + len(name) >= len(raw) or not _CLASSES[raw[at + len(name)]] & _ENDS_NAME:
        return False
    for i in range(len(name)):  # noqa: SIM110
        if raw[at + i] | 0x20 != name[i]:
            return False
    return True


@inlined
def _leave_out_signs(text: Bytes, kind: Bytes, size: int) -> None:
    """Exclude typographic quotes, dashes, spaces and other signs from words: U+0080 to U+00BF (two bytes) and
    U+2000 to U+203F (three bytes). Called after each byte from 0x80 on."""
    last, before = text[size - 1], text[size - 2]
    if last == 0xC2 or before == 0xC2:
        kind[size - 1] = 0
    elif last == 0x80 and before == 0xE2:
        kind[size - 1] = kind[size - 2] = 0
    elif before == 0x80 and text[size - 3] == 0xE2:
        kind[size - 1] = 0


@inlined
def _entity(raw: Bytes, at: int) -> tuple[int, int]:
    """The number of bytes of the character reference after this `&`, and its code point; (0, 0) if it is invalid."""
    name = np.uint64(0)
    end = min(at + MAX_ENTITY_NAME + 1, len(raw))
    behind = at
    while behind < end and raw[behind] != 59:  # ;
        if behind < at + MAX_ENTITY_NAME:
            name |= np.uint64(raw[behind]) << np.uint64(8 * (behind - at))
        behind += 1
    if behind in (at, end):
        return 0, 0
    code_point = _number(raw, at + 1, behind) if raw[at] == 35 else _named(name)  # #
    return (behind + 1 - at, code_point) if code_point >= 0 else (0, 0)


@inlined
def _named(name: np.uint64) -> int:
    """The code point of a named reference; -1 when the name is unknown."""
    low, high = 0, len(_NAMES)
    while low < high:
        middle = (low + high) // 2
        if _NAMES[middle] < name:
            low = middle + 1
        else:
            high = middle
    return int(_CODE_POINTS[low]) if low < len(_NAMES) and _NAMES[low] == name else -1


@inlined
def _number(raw: Bytes, at: int, end: int) -> int:
    """The code point of a numeric reference's digits (`233`, `xE9`); -1 when they are invalid."""
    base = 10
    if at < end and raw[at] | 0x20 == 120:  # x
        base = 16
        at += 1
    if at == end:
        return -1
    number = 0
    for i in range(at, end):
        byte = int(raw[i])
        if 48 <= byte <= 57:
            number = number * base + byte - 48
        elif base == 16 and 97 <= byte | 0x20 <= 102:
            number = number * base + (byte | 0x20) - 87
        else:
            return -1
    if 0x80 <= number < 0xA0:
        return int(_WINDOWS[number - 0x80])
    if number == 0 or 0xD800 <= number < 0xE000 or number > 0x10FFFF:
        return _REPLACEMENT
    return number


@inlined
def _write(code_point: int, here: int, text: Bytes, kind: Bytes, size: int) -> int:
    """Write one character as UTF-8, which is never longer than a reference to it; returns the new size."""
    if code_point < 0x80:
        length, lead = 1, code_point
    elif code_point < 0x800:
        length, lead = 2, 0xC0 | code_point >> 6
    elif code_point < 0x10000:
        length, lead = 3, 0xE0 | code_point >> 12
    else:
        length, lead = 4, 0xF0 | code_point >> 18
    for i in range(length):
        byte = lead if i == 0 else 0x80 | (code_point >> 6 * (length - 1 - i)) & 0x3F
        text[size] = _LOWER_CASE[byte]
        kind[size] = _CLASSES[byte] & _KEPT | here
        size += 1
        if byte >= 0x80:
            _leave_out_signs(text, kind, size)
        elif byte == 43 and text[size - 2] == 43:  # +
            kind[size - 2] = kind[size - 1] = _WORD | here
    return size


@inlined
def _hash(text: Bytes, start: int, end: int) -> np.uint64:
    """The hash of a range of at least one byte, from its first eight bytes, its last eight and its length."""
    size = end - start
    first = load_word(text, start)
    if size < 8:
        return _finish((first << np.uint64(64 - 8 * size)) * _MULTIPLY_HEAD)
    mixed = first * _MULTIPLY_HEAD
    if size > 8:
        mixed ^= load_word(text, end - 8) * _MULTIPLY_TAIL + np.uint64(size)
    return _finish(mixed)


@inlined
def _run_end(kind: Bytes, at: int, wanted: np.uint64) -> tuple[int, np.uint64]:
    """Where the run of bytes of one kind that starts at `at` ends, and the kinds in it. `wanted` has the bit of that
    kind in each byte."""
    kinds = _NO_HASH
    while True:
        word = load_word(kind, at)
        others = ~word & wanted
        if others:
            size = trailing_zeros(others) >> 3
            return at + size, kinds | word & ((_ONE << np.uint64(8 * size)) - _ONE)
        kinds |= word
        at += 8


@inlined
def _finish(mixed: np.uint64) -> np.uint64:
    """Mix all bits of the hash, and set the four bits of the field to 0."""
    mixed ^= mixed >> _HALF
    mixed *= _MULTIPLY_END
    return (mixed ^ mixed >> _HALF) & ~FIELD_MASK


@inlined
def _pair(one: np.uint64, following: np.uint64) -> np.uint64:
    return _finish(one * _MULTIPLY_TAIL + following)


@compiled
def _title_keys(text: Bytes, kind: Bytes, size: int, keys: Hashes, count: int) -> int:
    """Write the keys of a title from position `count` on; returns the position after them."""
    before = _NO_HASH  # the word before this one
    is_joined = False
    joined_from = joined_to = 0
    at = 1
    while at < size:
        if not kind[at] & _WORD:
            at += 1
            continue
        start = at
        at, kinds = _run_end(kind, start, _WORDS)
        hashed = _hash(text, start, at)
        if at - start <= MAX_TOKEN_BYTES:
            count = _write_title_token(hashed, keys, count)
            if before:
                keys[count] = _pair(before, hashed) ^ _TITLE_PAIR
                count += 1
            before = hashed
        if kinds & _CUTS:
            pieces = count
            count = _write_pieces(text, kind, start, at, keys, count)
            for piece in range(pieces, count):
                keys[count] = keys[piece]
                count += 1
        count = _write_grams(text, start, at, keys, count)
        if is_joined and joined_to - joined_from <= MAX_TOKEN_BYTES:  # asp.net too, when asp.net-mvc follows
            count = _write_title_token(_hash(text, joined_from, joined_to), keys, count)
        if joined_to == start - 1 and kind[joined_to] & _JOINER:
            is_joined = True
        else:
            is_joined = text[start - 1] == 46  # .
            joined_from = start - is_joined
        joined_to = at
    if is_joined and joined_to - joined_from <= MAX_TOKEN_BYTES:
        count = _write_title_token(_hash(text, joined_from, joined_to), keys, count)
    return count


@inlined
def _write_title_token(hashed: np.uint64, keys: Hashes, count: int) -> int:
    """Write a word or joined form of the title: three keys of the field ALL, one of TITLE."""
    keys[count] = keys[count + 1] = keys[count + 2] = hashed ^ _ALL
    keys[count + 3] = hashed ^ _TITLE
    return count + 4


@inlined
def _write_grams(text: Bytes, start: int, end: int, keys: Hashes, count: int) -> int:
    """Write every three to five consecutive bytes of the word with one blank before and one after it."""
    last = _BLANK
    for at in range(start, end + 1):
        last = last >> _BYTE | (np.uint64(text[at]) << _TOP_BYTE if at < end else _BLANK)
        for size in GRAM_SIZES:
            if at - size + 1 >= start - 1:
                gram = last >> np.uint64(64 - 8 * size) << np.uint64(64 - 8 * size)
                keys[count] = _finish(gram * _MULTIPLY_HEAD + np.uint64(size)) ^ _TITLE_GRAM
                count += 1
    return count


@inlined
def _write_pieces(text: Bytes, kind: Bytes, start: int, end: int, keys: Hashes, count: int) -> int:
    """Write the pieces of a camelCase word that have two bytes or more."""
    piece = start
    for at in range(start + 1, end + 1):
        if at == end or kind[at] & _CUT:
            if 1 < at - piece <= MAX_TOKEN_BYTES:
                keys[count] = _hash(text, piece, at) ^ _ALL
                count += 1
            piece = at
    return count


@compiled
def _body_keys(text: Bytes, kind: Bytes, size: int, keys: Hashes, count: int) -> int:
    """Write the keys of a body from position `count` on; returns the position after them."""
    before = symbol_before = _NO_HASH  # the last word of running text and the last symbol of code
    is_joined = False
    joined_from = joined_to = 0
    at = 1
    while at < size:
        start, here = at, kind[at]
        if kind[at] & _WORD:
            at, kinds = _run_end(kind, start, _WORDS)
            hashed = _hash(text, start, at)
            if at - start <= MAX_TOKEN_BYTES:
                keys[count] = hashed ^ _ALL
                count += 1
                if here & _PRE:
                    keys[count] = hashed ^ _IN_CODE
                    count += 1
                elif not here & _MARKUP:
                    if before:
                        keys[count] = _pair(before, hashed) ^ _TEXT_PAIR
                        count += 1
                    before = hashed
            if kinds & _CUTS and not here & _MARKUP:
                count = _write_pieces(text, kind, start, at, keys, count)
            if is_joined and joined_to - joined_from <= MAX_TOKEN_BYTES:
                keys[count] = _hash(text, joined_from, joined_to) ^ _ALL
                count += 1
            if joined_to == start - 1 and kind[joined_to] & _JOINER:
                is_joined = True
            else:
                is_joined = text[start - 1] == 46  # .
                joined_from = start - is_joined
            joined_to = at
        elif kind[at] & _SYMBOL:
            at, _ = _run_end(kind, start, _IS_SYMBOL)
            if at - start <= MAX_TOKEN_BYTES and here & (_CODE | _PRE):
                hashed = _hash(text, start, at)
                keys[count] = hashed ^ _SYMBOLS
                count += 1
                if symbol_before:
                    keys[count] = _pair(symbol_before, hashed) ^ _SYMBOL_PAIR
                    count += 1
                symbol_before = hashed
        else:
            at += 1
    if is_joined and joined_to - joined_from <= MAX_TOKEN_BYTES:
        keys[count] = _hash(text, joined_from, joined_to) ^ _ALL
        count += 1
    return count


@compiled
def _distinct(keys: Hashes, bounds: Int64s, found: Hashes) -> int:
    """Write the distinct keys of each post, post after post; returns their number."""
    longest = 1
    for post in range(len(bounds) - 1):
        longest = max(longest, bounds[post + 1] - bounds[post])
    table = np.empty(4 * longest, np.int64)  # positions in `found`
    count = 0
    for post in range(len(bounds) - 1):
        bits = 1
        while 1 << bits < 2 * (bounds[post + 1] - bounds[post]):
            bits += 1
        last = (1 << bits) - 1
        table[: last + 1] = -1  # only this part: one long post must not slow down thousands of short ones
        for at in range(bounds[post], bounds[post + 1]):
            slot = np.int64(keys[at] >> np.uint64(64 - bits))
            while table[slot] >= 0 and found[table[slot]] != keys[at]:
                slot = (slot + 1) & last
            if table[slot] < 0:
                table[slot] = count
                found[count] = keys[at]
                count += 1
    return count
