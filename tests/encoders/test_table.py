"""The store of caption embeddings: what is computed again, and what is never trusted."""

import contextlib

import numpy as np
import pytest

from audiosep_jax.encoders import table
from audiosep_jax.encoders.hashed import HashedEncoder
from audiosep_jax.encoders.table import caption_table
from audiosep_jax.errors import InputError

CAPTIONS = [f"sound {i}" for i in range(10)] + ["rain", "a dog", "rain", "Glocken läuten 🐕"]


class CountingEncoder:
    """A slow encoder's place taken by the hashed one; notes what it is asked for."""

    def __init__(self, fingerprint="clap-1", stop_after=None):
        self.fingerprint = fingerprint
        self.stop_after = stop_after
        self.asked = []

    def __call__(self, sentences):
        if self.stop_after is not None and len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        self.asked += sentences
        return HashedEncoder()(sentences)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(table, "CHUNK_CAPTIONS", 4)


def chunks(folder):
    return sorted(folder.rglob("*.npz"))


def full_chunk(folder):
    """A file of four captions."""
    return max(chunks(folder), key=lambda path: path.stat().st_size)


def assert_complete(found, captions=CAPTIONS):
    assert found.keys() == set(captions)
    for caption, vector_E in found.items():
        assert vector_E.dtype == np.float32
        np.testing.assert_array_equal(vector_E, HashedEncoder()([caption])[0])


def test_every_caption_is_computed_once_and_then_read(tmp_path):
    first, second = CountingEncoder(), CountingEncoder()
    assert_complete(caption_table(first, iter(CAPTIONS), tmp_path))
    assert sorted(first.asked) == sorted(set(CAPTIONS))
    assert_complete(caption_table(second, CAPTIONS[::-1], tmp_path))
    assert second.asked == []
    assert [path.suffix for path in (tmp_path / "clap-1").iterdir()] == [".npz"] * 4


def test_a_changed_caption_is_the_only_one_computed(tmp_path):
    caption_table(CountingEncoder(), CAPTIONS, tmp_path)
    encoder, changed = CountingEncoder(), [*CAPTIONS[1:], "sound 0, changed"]
    assert_complete(caption_table(encoder, changed, tmp_path), changed)
    assert encoder.asked == ["sound 0, changed"]


def test_another_encoder_has_a_store_of_its_own(tmp_path):
    caption_table(CountingEncoder("clap-1"), ["rain"], tmp_path)
    encoder = CountingEncoder("clap-2")
    caption_table(encoder, ["rain"], tmp_path)
    assert encoder.asked == ["rain"]
    assert {path.parent.name for path in chunks(tmp_path)} == {"clap-1", "clap-2"}


def test_what_was_computed_before_a_kill_is_kept(tmp_path):
    killed = CountingEncoder(stop_after=8)
    with pytest.raises(KeyboardInterrupt):
        caption_table(killed, CAPTIONS, tmp_path)
    encoder = CountingEncoder()
    assert_complete(caption_table(encoder, CAPTIONS, tmp_path))
    assert sorted(killed.asked + encoder.asked) == sorted(set(CAPTIONS))
    assert len(killed.asked) == 8


def test_a_kill_while_writing_leaves_nothing_that_is_read(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            caption_table(CountingEncoder(), CAPTIONS, tmp_path)
    assert chunks(tmp_path) == []
    (tmp_path / "clap-1" / "0123.partial").write_bytes(b"left by a kill that nothing can catch")
    assert_complete(caption_table(CountingEncoder(), CAPTIONS, tmp_path))


def test_damage_anywhere_in_a_file_never_reaches_the_table(tmp_path, capsys):
    caption_table(CountingEncoder(), CAPTIONS, tmp_path)
    victim = full_chunk(tmp_path)
    content = victim.read_bytes()
    _, embedding_NE = table._read_chunk(victim)
    numbers = content.index(embedding_NE.tobytes())
    rng = np.random.default_rng(0)
    places = [*rng.integers(numbers, numbers + embedding_NE.nbytes, 20), *rng.integers(0, 400, 20)]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        victim.write_bytes(damaged)
        encoder = CountingEncoder()
        assert_complete(caption_table(encoder, CAPTIONS, tmp_path))
        in_numbers = numbers <= place < numbers + embedding_NE.nbytes
        assert len(encoder.asked) == 4 or (not in_numbers and encoder.asked == [])
    assert "is damaged; its captions are embedded again" in capsys.readouterr().err


@pytest.mark.parametrize("size", [0, 1, 100, -1, -100])
def test_a_cut_file_is_replaced(tmp_path, size):
    caption_table(CountingEncoder(), CAPTIONS, tmp_path)
    victim = full_chunk(tmp_path)
    victim.write_bytes(victim.read_bytes()[:size])
    encoder = CountingEncoder()
    assert_complete(caption_table(encoder, CAPTIONS, tmp_path))
    assert len(encoder.asked) == 4
    assert_complete(caption_table(CountingEncoder(stop_after=0), CAPTIONS, tmp_path))


@pytest.mark.parametrize(
    "arrays",
    [
        {"captions": b'["rain"]', "embedding_NE": np.ones((2, 512), np.float32)},
        {"captions": b'["rain"]', "embedding_NE": np.ones((1, 512), np.float64)},
        {"captions": b'["rain"]', "embedding_NE": np.ones(512, np.float32)},
        {"captions": b"[7]", "embedding_NE": np.ones((1, 512), np.float32)},
        {"captions": b"7", "embedding_NE": np.ones((1, 512), np.float32)},
        {"captions": b"[", "embedding_NE": np.ones((1, 512), np.float32)},
        {"captions": b'["rain"]', "embedding_NE": np.array([["rain"]], object)},
        {"captions": b'["rain"]'},
    ],
)
def test_a_whole_file_of_something_else_is_not_trusted(tmp_path, arrays):
    store = tmp_path / "clap-1"
    store.mkdir()
    arrays["captions"] = np.frombuffer(arrays["captions"], np.uint8)
    np.savez(store / "other.npz", **arrays)
    assert_complete(caption_table(CountingEncoder(), ["rain"], tmp_path), ["rain"])
    assert not (store / "other.npz").exists()


def test_hashed_captions_need_no_store(tmp_path):
    assert_complete(caption_table(HashedEncoder(), CAPTIONS, tmp_path))
    assert caption_table(HashedEncoder(), [], tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


def test_the_store_lies_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AUDIOSEP_JAX_CACHE", str(tmp_path / "cache"))
    caption_table(CountingEncoder(), ["rain"])
    assert [path.parent for path in chunks(tmp_path)] == [tmp_path / "cache/captions/clap-1"]


def test_a_store_that_cannot_be_written_is_told_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setenv("AUDIOSEP_JAX_CACHE", str(tmp_path))
    (tmp_path / "clap-1").write_text("a file where the folder goes")
    encoder = CountingEncoder()
    with pytest.raises(InputError, match=r"clap-1: the folder cannot .*AUDIOSEP_JAX_CACHE"):
        caption_table(encoder, ["rain"], tmp_path)
    assert encoder.asked == []


def test_a_file_that_another_process_removed_is_passed_over(tmp_path, monkeypatch):
    caption_table(CountingEncoder(), ["rain"], tmp_path)
    (found,) = chunks(tmp_path)
    monkeypatch.setattr(table.Path, "glob", lambda *_: iter([found.with_name("gone.npz"), found]))
    embeddings = {}
    with contextlib.redirect_stderr(None):
        table.read_store(found.parent, {"rain"}, embeddings)
    assert_complete(embeddings, ["rain"])
