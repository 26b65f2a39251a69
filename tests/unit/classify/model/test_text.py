"""From posts to features: the words, their fields, and broken or hostile input."""

import pyarrow as pa
import pytest

from classify.model.text import (
    _KEYS_PER_BODY_BYTE,
    _KEYS_PER_TITLE_BYTE,
    MAX_BODY_BYTES,
    MAX_TITLE_BYTES,
    Field,
    Occurrences,
    occurrences,
    parse_tags,
)
from tests.hostile import HOSTILE
from tests.keys import key_of


def keys_of(title: bytes | str | None, body: bytes | str | None) -> set[int]:
    (batch,) = occurrences(pa.array([title]), pa.array([body]))
    return set(batch.keys.tolist())


def of_post(batch: Occurrences, post: int) -> list[int]:
    keys: list[int] = batch.keys[batch.bounds[post] : batch.bounds[post + 1]].tolist()
    return keys


def finds(keys: set[int], token: str, field: Field = Field.ALL) -> bool:
    return key_of(token, field) in keys


@pytest.mark.parametrize(
    ("tags", "lists"),
    [
        (["<c#><.net>", "<c++>"], [["c#", ".net"], ["c++"]]),
        (["|a|b-c|", "|node.js|"], [["a", "b-c"], ["node.js"]]),
        ([None, "", "<x>"], [None, None, ["x"]]),
        (["<c#> <.net>", " ", "|a||b|", "<>"], [["c#", ".net"], None, ["a", "b"], None]),
    ],
)
def test_both_notations_of_tags_are_read(tags: list[str | None], lists: list[list[str] | None]) -> None:
    assert parse_tags(pa.array(tags)).to_pylist() == lists
    assert parse_tags(pa.array(tags).dictionary_encode()).to_pylist() == lists
    assert parse_tags(pa.array(tags, pa.large_string())).to_pylist() == lists
    assert parse_tags(pa.array([tag and tag.encode() for tag in tags], pa.binary())).to_pylist() == lists


def test_missing_and_empty_tags_are_read() -> None:
    assert parse_tags(pa.nulls(2)).to_pylist() == [None, None]
    assert parse_tags(pa.chunked_array([], pa.string())).to_pylist() == []


@pytest.mark.parametrize("token", ["c#", "c++", ".net", "node.js", "asp.net-mvc", "objective-c", "a_b"])
def test_names_of_topics_are_not_split(token: str) -> None:
    assert finds(keys_of(None, f"<p>I use {token.upper()}, every day</p>"), token)
    assert finds(keys_of(f"How to {token}?", None), token, Field.TITLE)


@pytest.mark.parametrize(
    ("written", "token"),
    [("asp.net-mvc-3", "asp.net-mvc"), ("Node.js-based", "node.js"), (".NET-Core", ".net"), ("a-b-c-d", "a-b-c")],
)
def test_a_name_that_is_a_prefix_of_a_longer_one_is_found_too(written: str, token: str) -> None:
    for keys, field in (
        (keys_of(None, f"<p>in {written} there</p>"), Field.ALL),
        (keys_of(written, None), Field.TITLE),
    ):
        assert finds(keys, token, field)
        assert finds(keys, written.lower(), field)


def test_parts_of_joined_and_camel_case_words_are_found() -> None:
    keys = keys_of(None, "<p>asp.net DataGridView</p>")
    for token in ("asp", "net", "asp.net", "datagridview", "data", "grid", "view"):
        assert finds(keys, token)


def test_a_tag_separates_words_and_an_entity_is_not_a_word() -> None:
    keys = keys_of(None, "<p>one<br/>two</p><p>&lt;div&gt; a&nbsp;&quot;b&quot; &amp;amp</p>")
    for token in ("one", "two", "div", "a", "b", "amp"):
        assert finds(keys, token)
    for token in ("onetwo", "lt", "gt", "nbsp", "quot", "twop"):
        assert not finds(keys, token)


@pytest.mark.parametrize("spelled", ["caf&eacute;s", "caf&#233;s", "caf&#xE9;s", "cafés"])
def test_entities_within_words_are_decoded(spelled: str) -> None:
    keys = keys_of(None, f"<p>two {spelled} c&#43;&#43; <code>x</code></p>")
    for token in ("cafés", "two", "c++", "x"):
        assert finds(keys, token)


def test_entities_do_not_shift_the_position_of_code() -> None:
    keys = keys_of(None, "<p>&eacute;&eacute; out</p><pre><code>within</code></pre> after")
    assert finds(keys, "within", Field.CODE)
    assert not finds(keys, "out", Field.CODE)
    assert not finds(keys, "after", Field.CODE)


def test_an_end_tag_without_a_start_tag_hides_no_code() -> None:
    keys = keys_of(None, "x</pre></code><pre><code>within</code></pre> after")
    assert finds(keys, "within", Field.CODE)
    assert not finds(keys, "after", Field.CODE)


def test_typographic_signs_end_a_word() -> None:
    keys = keys_of(None, "<p>“quoted” one—two\u00a0three naïve</p>")
    for token in ("quoted", "one", "two", "three", "naïve"):
        assert finds(keys, token)


def test_title_code_and_text_have_separate_fields() -> None:
    keys = keys_of("title word", '<p>text <code>inline</code></p><pre class="lang-sql"><code>block</code></pre>')
    assert finds(keys, "title", Field.TITLE)
    assert not finds(keys, "text", Field.TITLE)
    assert finds(keys, "block", Field.CODE)
    assert not finds(keys, "inline", Field.CODE)
    assert finds(keys, "lang-sql")
    assert not finds(keys, "lang", Field.CODE)


def test_symbols_are_read_only_in_code() -> None:
    code = keys_of(None, "<p>a</p><pre><code>p-&gt;next = (x);</code></pre>")
    prose = keys_of(None, "<p>p-&gt;next = (x);</p>")
    symbols = {key for key in code if key & 15 == Field.SYMBOL}
    assert len(symbols) == 4
    assert not {key for key in prose if key & 15 == Field.SYMBOL}


def test_a_symbol_has_one_key_in_every_spelling() -> None:
    decoded = keys_of(None, "<pre><code>p-&gt;next &amp;&amp; &#x7b; &#48; &nbsp; &lt;</code></pre>")
    assert decoded == keys_of(None, "<pre><code>p->next && { 0   < </code></pre>")


def test_the_features_of_a_post_do_not_depend_on_its_neighbours() -> None:
    """This holds also when a neighbour ends inside code, inside a tag, or inside an entity."""
    titles = ["One", None, "Two words", "", "Three"] * 50
    bodies = ["<p>x <pre><code>open", None, "<p>plain text</p>", "<p unclosed", "end &eacute"] * 50
    bodies[7] = "é" * 300_000  # starts its own batch
    together: dict[int, list[int]] = {}
    first = 0
    for batch in occurrences(pa.array(titles), pa.array(bodies)):
        for post in range(batch.posts):
            together[first + post] = sorted(of_post(batch, post))
        first += batch.posts
    assert first == len(titles)
    for number, (title, body) in enumerate(zip(titles, bodies, strict=True)):
        (alone,) = occurrences(pa.array([title], pa.string()), pa.array([body], pa.string()))
        assert sorted(alone.keys.tolist()) == together[number]


@pytest.mark.parametrize(
    "kind", ["string", "large_string", "binary", "large_binary", "dictionary", "chunked", "sliced"]
)
def test_every_arrow_type_gives_the_same_features(kind: str) -> None:
    texts = ["<p>first &amp; C#</p>", None, "", "<p>last</p>"]
    array = pa.array(texts)
    shaped = {
        "string": lambda: array,
        "large_string": lambda: array.cast(pa.large_string()),
        "binary": lambda: array.cast(pa.binary()),
        "large_binary": lambda: array.cast(pa.large_binary()),
        "dictionary": lambda: array.dictionary_encode(),
        "chunked": lambda: pa.chunked_array([array.slice(0, 2), array.slice(2)]),
        "sliced": lambda: pa.array(["other", *texts, "more"]).slice(1, 4),
    }[kind]()
    (expected,) = occurrences(array, array)
    (batch,) = occurrences(shaped, shaped)
    assert batch.posts == 4
    assert [of_post(batch, post) for post in range(4)] == [of_post(expected, post) for post in range(4)]


def test_without_posts_there_are_no_batches() -> None:
    assert list(occurrences(pa.array([], pa.string()), pa.array([], pa.string()))) == []
    (batch,) = occurrences(pa.nulls(3), pa.nulls(3))
    assert (batch.posts, len(batch.keys)) == (3, 0)


def test_arrays_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="1 titles but 2 bodies"):
        list(occurrences(pa.nulls(1), pa.nulls(2)))


@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xfe<p>broken \xc3( utf-8 \xe2\x80",
        b"<<<<>>>><p>a < b</p></p></code></pre><code",
        b"&&&;;&#;&#x;&#99999999;&#0;&nosuch;" * 3,
        b"<p>" + b"x" * 500 + b" c++++ ++ # . .. .- -.",
        bytes(range(256)) * 4,
        b"\xc2",
        b"+",
        b"<",
        b"&",
    ],
)
def test_broken_input_does_not_hide_the_posts_after_it(body: bytes) -> None:
    batches = list(occurrences(pa.array([body, b"fine"]), pa.array([body, b"<p>fine</p>"])))
    assert finds(set(of_post(batches[-1], batches[-1].posts - 1)), "fine")


@pytest.mark.parametrize("piece", HOSTILE)
def test_a_hostile_megabyte_never_exceeds_the_room_for_features(piece: bytes) -> None:
    """The loop that writes them checks no bound. `python -m bench hostile` measures its time."""
    size = 1 << 20
    (found,) = occurrences(pa.array([piece * (size // len(piece))]), pa.array([piece * (size // len(piece))]))
    assert 0 <= len(found.keys) == found.bounds[-1]
    assert len(found.keys) <= _KEYS_PER_TITLE_BYTE * MAX_TITLE_BYTES + _KEYS_PER_BODY_BYTE * MAX_BODY_BYTES


def test_only_the_beginning_of_a_long_text_is_read() -> None:
    filler = "x " * MAX_BODY_BYTES
    keys = keys_of("first " + "y " * MAX_TITLE_BYTES + "hidden", "seen " + filler + "beyond")
    assert finds(keys, "first", Field.TITLE)
    assert finds(keys, "seen")
    assert not finds(keys, "hidden", Field.TITLE)
    assert not finds(keys, "beyond")


def test_keys_are_the_same_in_every_process() -> None:
    """Stored models depend on this."""
    assert key_of("python", Field.ALL) == 0xA473277082ACEDE0
    assert key_of("internationalization", Field.TITLE) == 0xE876543229FA9181
