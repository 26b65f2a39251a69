"""The topic model: its results, its storage, and the refusal of invalid files."""

import hashlib
import io
import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import sparse

from classify.learn.fit import fit
from classify.model.files import ARRAYS, CALIBRATION, MANIFEST, version_of
from classify.model.model import TopicModel
from classify.model.quantify import Behaviour
from classify.model.text import Field, occurrences
from shared.errors import ModelError
from tests.keys import key_of
from tests.places import PROJECT
from tests.topic_posts import questions

STARTER = PROJECT / "classify" / "starter"


@cache
def small_model() -> TopicModel:
    return fit(questions(600), topics=4)[0]


def with_manifest(files: dict[str, bytes], **changes: object) -> dict[str, bytes]:
    return {**files, MANIFEST: json.dumps({**json.loads(files[MANIFEST]), **changes}).encode()}


def with_arrays(files: dict[str, bytes], name: str, content: bytes) -> dict[str, bytes]:
    """A model with a changed file, whose checksum and version match the change."""
    changed, manifest = {**files, name: content}, json.loads(files[MANIFEST])
    version = version_of(manifest["topics"], {name: changed[name] for name in (ARRAYS, CALIBRATION)})
    return with_manifest(
        changed, version=version, sha256={**manifest["sha256"], name: hashlib.sha256(content).hexdigest()}
    )


def test_a_stored_model_is_read_back_unchanged(tmp_path: Path) -> None:
    model = small_model()
    model.save(tmp_path / "model")
    loaded = TopicModel.load(tmp_path / "model")
    posts = questions(100, seed=1)
    assert loaded.topics == (*("python", "c#", "sql", "css"), "other")
    assert (loaded.version, loaded.trained_on) == (model.version, model.trained_on)
    assert loaded.to_files() == model.to_files()
    assert (loaded.score(posts["Title"], posts["Body"]) == model.score(posts["Title"], posts["Body"])).all()


@pytest.mark.parametrize("name", [MANIFEST, ARRAYS, CALIBRATION])
def test_a_missing_file_is_named(name: str) -> None:
    files = small_model().to_files()
    del files[name]
    with pytest.raises(ModelError, match=name):
        TopicModel.from_files(files)


@pytest.mark.parametrize("name", [ARRAYS, CALIBRATION])
def test_a_damaged_file_is_named(name: str) -> None:
    files = small_model().to_files()
    middle = len(files[name]) // 2
    flipped = files[name][:middle] + bytes([files[name][middle] ^ 1]) + files[name][middle + 1 :]
    with pytest.raises(ModelError, match=f"{name} does not match"):
        TopicModel.from_files({**files, name: flipped})


def test_another_format_or_a_missing_manifest_is_refused() -> None:
    files = small_model().to_files()
    with pytest.raises(ModelError, match="format 3"):
        TopicModel.from_files(with_manifest(files, format=3))
    for manifest in (b"", b"[]", b"{}", b"\xff", b"null"):
        with pytest.raises(ModelError, match="manifest"):
            TopicModel.from_files({**files, MANIFEST: manifest})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"topics": ["c#", "python", "sql", "css", "other"]}, "its topics and arrays make topics4-"),
        ({"version": "topics4-0123456789ab"}, "model.json names topics4-0123456789ab"),
        ({"topics": ["sql", "sql", "sql", "css", "other"]}, "only 3 of 5 topics are distinct"),
        ({"topics": ["python", "c#", "sql", "css", "none"]}, "`other` last"),
        ({"topics": [1, 2, 3, 4, "other"]}, "topics.0"),
        ({"topics": "topic"}, "topics: "),
        ({"topics": ["\ud800", "c#", "sql", "css", "other"]}, "Invalid JSON"),
        ({"trained_on": None}, "trained_on: "),
        ({"trained_on": {"date": 20261122, "questions": 5}}, "trained_on.date: "),
        ({"trained_on": {"date": "2026-11-22", "questions": -5}}, "trained_on.questions: "),
        ({"trained_on": {"date": "2026-11-22", "questions": "many"}}, "trained_on.questions: "),
        ({"format": True}, "format: "),
    ],
)
def test_a_manifest_of_other_arrays_is_refused(changes: dict[str, object], words: str) -> None:
    files = small_model().to_files()
    with pytest.raises(ModelError, match=words):
        TopicModel.from_files(with_manifest(files, **changes))


@pytest.mark.parametrize("trained_on", [{}, {"posts": ["a.parquet"], "questions": 5}])
def test_the_description_of_the_training_posts_may_have_any_form(trained_on: dict[str, object]) -> None:
    files = with_manifest(small_model().to_files(), trained_on=trained_on)
    assert TopicModel.from_files(files).trained_on == trained_on


def test_a_loaded_model_has_the_version_of_its_manifest() -> None:
    """Also if this version of the code would write the same arrays as other bytes."""
    files = small_model().to_files()
    with np.load(io.BytesIO(files[CALIBRATION])) as arrays:
        repacked = io.BytesIO()
        np.savez(repacked, **{name: arrays[name] for name in reversed(arrays.files)})
    changed = with_arrays(files, CALIBRATION, repacked.getvalue())
    loaded = TopicModel.from_files(changed)
    assert loaded.version == json.loads(changed[MANIFEST])["version"] != small_model().version


def with_array(files: dict[str, bytes], file: str, name: str, change: Callable[[Any], Any]) -> dict[str, bytes]:
    changed = io.BytesIO()
    with np.load(io.BytesIO(files[file])) as arrays:
        np.savez(changed, **{key: change(arrays[key]) if key == name else arrays[key] for key in arrays.files})
    return with_arrays(files, file, changed.getvalue())


ARRAY_NAMES = [
    (ARRAYS, "keys", "instead of"),
    (ARRAYS, "feature_weights", "feature weights"),
    (ARRAYS, "mean_lengths", "mean lengths"),
    (ARRAYS, "weights", "weights"),
    (ARRAYS, "biases", "biases"),
    (CALIBRATION, "curve", "curve"),
    (CALIBRATION, "interactions", "interactions"),
    (CALIBRATION, "within", "calibration"),
]


@pytest.mark.parametrize(("file", "name", "words"), ARRAY_NAMES)
def test_arrays_that_would_make_a_loop_read_out_of_bounds_are_refused(file: str, name: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        TopicModel.from_files(with_array(small_model().to_files(), file, name, lambda array: array[:-1]))


@pytest.mark.parametrize(("file", "name", "words"), ARRAY_NAMES[1:])
def test_arrays_with_nan_are_refused(file: str, name: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        TopicModel.from_files(with_array(small_model().to_files(), file, name, lambda array: array * np.nan))


def _instead(value: object, _: object) -> Any:
    return np.array(value)


def said_of(prior: object = None, posts: object = None) -> dict[str, bytes]:
    """The files of a model with another prior or another number of posts."""
    files = small_model().to_files()
    for name, value in (("prior", prior), ("posts", posts)):
        if value is not None:
            files = with_array(files, CALIBRATION, name, partial(_instead, value))
    return files


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prior": list("abcde")}, "calibration: prior: <U1"),
        ({"prior": [1 + 2j] * 5}, "calibration: prior: complex128"),
        ({"prior": np.array(["2026"] * 5, "M8[D]")}, "calibration: prior: datetime64"),
        ({"prior": [-1.0, 0.5, 0.5, 0.5, 0.5]}, "calibration: invalid shares .lowest -1.0"),
        ({"prior": [0.0] * 5}, "invalid shares .lowest 0.0, sum 0.0"),
        ({"prior": [0.3] * 5}, "sum 1.5"),
        ({"prior": 1.0}, "calibration: 1 topics in a model of 5"),
        ({"posts": 0}, r"number of posts \(0\)"),
        ({"posts": -5}, r"number of posts \(-5\)"),
        ({"posts": [5]}, "calibration: posts"),
        ({"posts": "x"}, "calibration: posts: <U1"),
        ({"posts": float("nan")}, "calibration: posts: float64"),
        ({"posts": float("inf")}, "calibration: posts: float64"),
    ],
)
def test_an_impossible_calibration_is_refused(changes: dict[str, object], words: str) -> None:
    files = said_of(**changes)
    with pytest.raises(ModelError, match=words):
        TopicModel.from_files(files)
    with pytest.raises(ModelError, match=words):
        Behaviour.from_files(files[MANIFEST], files[CALIBRATION])


def zipped(change: Callable[[bytearray], None]) -> dict[str, bytes]:
    """A model whose compressed calibration is changed."""
    files, packed = small_model().to_files(), io.BytesIO()
    with np.load(io.BytesIO(files[CALIBRATION])) as arrays:
        np.savez_compressed(packed, **arrays)
    content = bytearray(packed.getvalue())
    change(content)
    return with_arrays(files, CALIBRATION, bytes(content))


def of_an_unknown_method(content: bytearray) -> None:
    content[content.index(b"PK\1\2") + 10] = 77


def encrypted(content: bytearray) -> None:
    content[content.index(b"PK\1\2") + 8] |= 1
    content[6] |= 1


def of_bytes_that_do_not_unpack(content: bytearray) -> None:
    content[100:200] = b"\xff" * 100


@pytest.mark.parametrize("change", [of_an_unknown_method, encrypted, of_bytes_that_do_not_unpack])
def test_a_zip_that_cannot_be_unpacked_is_refused(change: Callable[[bytearray], None]) -> None:
    files = zipped(change)
    with pytest.raises(ModelError, match=f"{CALIBRATION} does not hold plain arrays"):
        TopicModel.from_files(files)
    with pytest.raises(ModelError, match=f"{CALIBRATION} does not hold plain arrays"):
        Behaviour.from_files(files[MANIFEST], files[CALIBRATION])


def test_damage_in_the_headers_of_arrays_raises_only_a_model_error() -> None:
    files, random, refused = small_model().to_files(), np.random.default_rng(0), 0
    stored, whole = files[CALIBRATION], TopicModel.from_files(files).behaviour
    heads = [at for at in range(len(stored)) if stored[at : at + 2] in (b"PK", b"\x93N", b"{'")]
    for _ in range(500):
        content = bytearray(stored)
        at = min(int(random.choice(heads)) + int(random.integers(120)), len(content) - 1)
        content[at] ^= int(random.integers(1, 256))
        try:
            loaded = TopicModel.from_files(with_arrays(files, CALIBRATION, bytes(content))).behaviour
        except ModelError:
            refused += 1
        else:
            assert (loaded.posts, loaded.prior.tolist()) == (whole.posts, whole.prior.tolist())
    assert refused > 300


def test_features_of_an_unknown_field_are_refused() -> None:
    with pytest.raises(ModelError, match="field above 7"):
        TopicModel.from_files(with_array(small_model().to_files(), ARRAYS, "keys", lambda keys: keys | np.uint64(15)))


def test_a_truncated_file_is_refused() -> None:
    files = small_model().to_files()
    for size in (0, 10, len(files[ARRAYS]) // 2, len(files[ARRAYS]) - 1):
        with pytest.raises(ModelError, match="plain arrays"):
            TopicModel.from_files(with_arrays(files, ARRAYS, files[ARRAYS][:size]))


def test_the_calibration_is_checked_also_when_it_is_read_alone() -> None:
    files = small_model().to_files()
    assert Behaviour.from_files(files[MANIFEST], files[CALIBRATION]).topics == small_model().topics
    for manifest in (files[MANIFEST].replace(b"sha256", b"md5"), b"[]", with_manifest(files, sha256=[])[MANIFEST]):
        with pytest.raises(ModelError, match="manifest is invalid"):
            Behaviour.from_files(manifest, files[CALIBRATION])
    with pytest.raises(ModelError, match="format 3"):
        Behaviour.from_files(with_manifest(files, format=3)[MANIFEST], files[CALIBRATION])


def test_arrays_of_pickled_objects_are_not_opened() -> None:
    pickled = io.BytesIO()
    np.savez(pickled, keys=np.array([print], dtype=object))
    with pytest.raises(ModelError, match="plain arrays"):
        TopicModel.from_files(with_arrays(small_model().to_files(), ARRAYS, pickled.getvalue()))
    with pytest.raises(ModelError, match="plain arrays"):
        TopicModel.from_files(with_arrays(small_model().to_files(), ARRAYS, b"no zip at all"))


def test_arrays_whose_shapes_do_not_match_are_refused() -> None:
    files = small_model().to_files()
    for changed in ({"weights": np.zeros((3, 4), np.float16)}, {"biases": None}, {"keys": np.zeros(2, np.uint64)}):
        with np.load(io.BytesIO(files[ARRAYS])) as stored:
            arrays = {name: stored[name] for name in stored.files} | changed
        buffer = io.BytesIO()
        np.savez(buffer, **{name: array for name, array in arrays.items() if array is not None})
        with pytest.raises(ModelError):
            TopicModel.from_files(with_arrays(files, ARRAYS, buffer.getvalue()))
    with pytest.raises(ModelError):
        TopicModel.from_files(with_manifest(files, topics=["python", "other"]))


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere"):
        TopicModel.load(tmp_path / "nowhere")


def test_the_results_of_a_classification_are_consistent() -> None:
    posts = questions(300, seed=2)
    said = small_model().classify(posts["Title"], posts["Body"])
    assert np.allclose(said.posteriors.sum(axis=1), 1, atol=1e-5)
    assert (said.topic == said.posteriors.argmax(axis=1)).all()
    assert (said.best == said.top[:, 0]).all()
    assert (np.diff(said.top_scores, axis=1) <= 1e-6).all()
    assert ((said.top_scores >= 0) & (said.top_scores <= 1)).all()
    assert ((said.overlap > 0) & (said.overlap <= 1)).all()
    assert (said.margin == small_model().score(posts["Title"], posts["Body"]).max(axis=1)).all()
    assert [array.dtype for array in (said.topic, said.best, said.top)] == [np.int32] * 3
    assert [array.dtype for array in (said.posteriors, said.top_scores, said.margin)] == [np.float32] * 3


def test_the_topic_of_a_post_does_not_depend_on_the_other_posts() -> None:
    posts = questions(40, seed=3)
    model = small_model()
    together = model.classify(posts["Title"], posts["Body"])
    for number in range(40):
        alone = model.classify(posts["Title"].slice(number, 1), posts["Body"].slice(number, 1))
        assert alone.topic[0] == together.topic[number]
        assert (alone.top[0] == together.top[number]).all()
        assert alone.margin[0] == together.margin[number]
        assert np.allclose(alone.posteriors[0], together.posteriors[number], atol=1e-6)


def test_posts_without_a_known_word_get_a_topic_with_a_low_score() -> None:
    nothing = small_model().classify(pa.nulls(2), pa.array([None, "\xff"]))
    assert np.isfinite(nothing.posteriors).all()
    assert (nothing.top_scores[:, 0] < 0.7).all()
    assert (nothing.overlap == 0).all()
    empty = small_model().classify(pa.nulls(0), pa.nulls(0))
    assert (len(empty.topic), empty.posteriors.shape, empty.top.shape) == (0, (0, 5), (0, 3))


def test_vectors_are_bm25_weights_normalised_to_length_1() -> None:
    vocabulary = small_model().vocabulary
    (batch,) = occurrences(pa.array(["", "python"]), pa.array(["<p>select select join zzz</p>", None]))
    features, bounds, values = vocabulary.vectors(batch)
    vectors = sparse.csr_matrix((values, features, bounds)).toarray()
    assert np.allclose(np.square(vectors).sum(axis=1), 1)
    column = {int(key): number for number, key in enumerate(vocabulary.keys)}
    twice, once = column[key_of("select", Field.ALL)], column[key_of("join", Field.ALL)]
    known = sum(
        float(count)
        for feature, count in zip(features[: bounds[1]], vocabulary.counts(batch)[2][: bounds[1]], strict=True)
        if vocabulary.keys[feature] & np.uint64(15) == Field.ALL
    )
    damping = 1.2 * (0.5 + 0.5 * known / vocabulary.mean_lengths[Field.ALL])
    expected = (vocabulary.weights[twice] * 2 / (2 + damping)) / (vocabulary.weights[once] * 1 / (1 + damping))
    assert vectors[0, twice] / vectors[0, once] == pytest.approx(expected, rel=1e-5)


def test_the_primary_topic_of_tags_is_the_most_frequent_one() -> None:
    tags = pa.array([["sql", "python"], ["css", "unknown"], ["unknown"], [], None, ["c#", "sql"]])
    assert small_model().primary_of_tags(tags).tolist() == [0, 3, 4, 4, -1, 1]
    assert small_model().primary_of_tags(tags.slice(4, 2)).tolist() == [-1, 1]
    assert small_model().primary_of_tags(tags.slice(0, 0)).tolist() == []


def test_the_starter_model_is_small_and_finds_obvious_topics() -> None:
    starter = TopicModel.load(STARTER)
    assert sum(file.stat().st_size for file in STARTER.iterdir()) <= 6_000_000
    assert starter.version in (STARTER / "card.md").read_text(encoding="utf-8")
    said = starter.classify(
        pa.array(["How do I merge two pandas data frames?", "Center a div", "NullPointerException in a servlet", ""]),
        pa.array(
            [
                "<p>I have two dataframes</p><pre><code>import pandas as pd\npd.merge(a, b)</code></pre>",
                "<p>margin: auto does not center the div in Firefox</p>",
                "<pre><code>public static void main(String[] args) { List&lt;String&gt; x; }</code></pre>",
                "<p>SELECT * FROM t LEFT JOIN u in MySQL</p>",
            ]
        ),
    )
    names = [{starter.topics[topic] for topic in top} for top in said.top]
    for topic, found in zip(("pandas", "css", "java", "mysql"), names, strict=True):
        assert topic in found
