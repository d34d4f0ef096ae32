"""Which code ran: as told by a hash that every change of a source file changes."""

from audiosep_jax.training.code_version import PACKAGE, code_version, source_hash


def test_the_hash_follows_contents_and_names_of_sources_only(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.py").write_text("1")
    before = source_hash(tmp_path)
    (tmp_path / "notes.txt").write_text("1")
    assert source_hash(tmp_path) == before
    (tmp_path / "a" / "x.py").write_text("2")
    changed = source_hash(tmp_path)
    (tmp_path / "a" / "x.py").rename(tmp_path / "a" / "y.py")
    assert len({before, changed, source_hash(tmp_path)}) == 3


def test_this_package_is_told_by_its_version_and_sources():
    version = code_version()
    assert version["sources"] == source_hash(PACKAGE)
    assert set(version) == {"version", "commit", "sources"}
