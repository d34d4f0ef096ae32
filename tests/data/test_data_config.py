"""data_config: wrong values are named before anything is read."""

import pytest

from audiosep_jax.data.data_config import DataConfig, num_segment_samples
from audiosep_jax.errors import InputError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("source", "esc-50"),
        ("train_folds", ()),
        ("valid_folds", ("5",)),
        ("num_synthetic_clips", 0),
        ("segment_seconds", 0),
        ("segment_seconds", float("nan")),
        ("min_seconds", -1.0),
        ("max_bad_share", 1.5),
        ("max_bad_share", "5%"),
        ("cache_megabytes", -1),
        ("num_threads", -2),
        ("num_threads", 1.5),
        ("num_workers", True),
        ("prefetch_batches", 0),
        ("prefetch_megabytes", 0),
        ("sources", ("manifest",)),
        ("weights", (1.0, 2.0)),
    ],
)
def test_config_refuses_by_name(name, value):
    with pytest.raises(InputError, match=rf"^{name}(\[0\])?="):
        DataConfig(**{name: value})


def test_config_keeps_validation_held_out():
    with pytest.raises(InputError, match=r"^valid_folds=\(4, 5\) and train_folds share fold 4$"):
        DataConfig(source="esc50", train_folds=(1, 4), valid_folds=(4, 5))
    with pytest.raises(InputError, match=r"^valid_folds=\(4, 5\) and train_folds share fold 4$"):
        DataConfig(roots=("a",), sources=("esc50",), train_folds=(1, 4), valid_folds=(4, 5))


def test_several_data_sets():
    config = DataConfig(source="folders", roots=("a", "b"), weights=(1.0, 2.0))
    assert config.kinds == ("folders", "folders")
    with pytest.raises(InputError, match=r"^weights\[1\]=0\.0 must be greater than 0$"):
        DataConfig(roots=("a", "b"), weights=(1.0, 0.0))
    with pytest.raises(
        InputError, match=r"^sources\[0\]='esc' must be 'synthetic', .* or 'prepared'$"
    ):
        DataConfig(roots=("a", "b"), sources=("esc", "folders"))
    with pytest.raises(InputError, match=r"^root='a' and roots=\('b', 'c'\) are both given"):
        DataConfig(root="a", roots=("b", "c"))


def test_segments_have_a_sample_at_least():
    assert num_segment_samples(DataConfig(segment_seconds=0.01), 10) == 1
    assert num_segment_samples(DataConfig(segment_seconds=2.5), 32000) == 80000
