"""captions: compact lists of strings that other processes map instead of copying."""

import pickle
import subprocess
import sys

import numpy as np
import pytest

from audiosep_jax.data.captions import Captions, Strings, shared

LISTS = [("a dog", "Woof"), ("rain",), ("A  dog", "thunder"), ("rain", "a dog")]


def test_strings_come_back_whatever_they_hold():
    texts = ["", "a", "é", "\udcff.wav", "犬", "two\nlines"]
    strings = Strings(texts)
    assert list(strings) == texts
    assert [strings[k] for k in range(len(strings))] == texts


def test_captions_are_those_of_each_clip_in_order():
    captions = Captions(LISTS)
    assert [captions[k] for k in range(4)] == LISTS
    assert list(captions.texts) == ["a dog", "Woof", "rain", "A  dog", "thunder"]
    assert list(captions.all_numbers()) == [captions.numbers(k) for k in range(4)]
    for index in (-1, 4):
        with pytest.raises(IndexError, match="of 4"):
            captions.numbers(index)


def test_keys_ignore_case_and_spaces():
    captions = Captions(LISTS)
    assert captions.keys(0) & captions.keys(2)
    assert not captions.keys(1) & captions.keys(2)
    assert captions.without(captions.keys(0)).tolist() == [1]
    assert captions.without(captions.keys(1) | captions.keys(2)).tolist() == []
    assert captions.name_of_keys(captions.keys(0)) == "a dog, woof"


def test_captions_of_several_sets_are_joined_and_repeated():
    joined = Captions.joined([Captions(LISTS[:1]), Captions(LISTS[1:])])
    assert [joined[k] for k in range(4)] == LISTS
    assert joined.keys(0) & joined.keys(2)
    repeated = joined.repeated([2, 1, 1, 3])
    assert [repeated[k] for k in range(7)] == [LISTS[k] for k in (0, 0, 1, 2, 3, 3, 3)]


def test_clips_of_one_class_share_a_key_without_sharing_a_caption():
    captions = Captions(LISTS, ["Dog", "", "", "dog"])
    assert len(captions.keys(0) & captions.keys(3)) == 2  # the caption and the class
    one, other = Captions([("woof",)], ["dog"]), Captions([("rain",), ("bark",)], ["", "DOG"])
    joined = Captions.joined([one, other]).repeated([1, 2, 1])
    assert list(joined.classes()) == ["dog", "", "", "dog"]
    assert joined.without(joined.keys(0)).tolist() == [1, 2]
    assert joined.name_of_keys(joined.keys(3)) == "bark, dog"
    assert list(joined.texts) == ["woof", "rain", "bark"]
    assert Captions([("woof",), ("bark",)], ["dog", "dog"]).lonely() == 0
    assert joined.lonely() is None


def test_captions_and_classes_of_a_group_exclude_each_other():
    captions = Captions([("rain",), ("drops",), ("waves",), ("dog",)], ["", "Water", "", ""])
    grouped = captions.grouped([("Rain", "water"), ("sea", "waves"), ("water", "waves")])
    allowed = [grouped.without(grouped.excluded(index)).tolist() for index in range(4)]
    assert allowed == [[2, 3], [3], [0, 3], [0, 1, 2]]
    assert captions.without(captions.excluded(0)).tolist() == [1, 2, 3]  # itself unchanged
    assert grouped.lonely() is None
    assert captions.grouped([("drops", "rain", "waves", "dog")]).lonely() == 0
    assert captions.unknown(["Rain", "sea", "water", "Foam"]) == ["sea", "Foam"]


SOUNDS = [(("a dog", "Woof"), ("rain",)), ("thunder", "a storm")]


def test_captions_of_several_sounds_are_kept_apart():
    captions = Captions(SOUNDS)
    assert captions[0] == ("a dog", "Woof", "rain")
    assert captions.sounds(0) == [[0, 1], [2]]
    assert captions.sounds(1) == [[3, 4]]
    assert captions.most_sounds() == (0, 2)
    assert Captions([]).most_sounds() == (0, 0)
    repeated = captions.repeated([1, 2])
    assert [repeated.sounds(k) for k in range(3)] == [[[0, 1], [2]], [[3, 4]], [[3, 4]]]
    joined = Captions.joined([Captions([("thunder",)]), captions])
    assert [joined.sounds(k) for k in range(3)] == [[[0]], [[1, 2], [3]], [[0, 4]]]


def test_large_arrays_are_mapped_from_a_file_by_another_process(tmp_path):
    captions = Captions([(f"sound {k} of a long list",) for k in range(40_000)])
    content = pickle.dumps(captions)
    assert len(content) < 2000
    path = tmp_path / "captions.pickle"
    path.write_bytes(content)
    script = f"import pickle; c = pickle.load(open({str(path)!r}, 'rb')); print(c[39_999], len(c))"
    found = subprocess.check_output([sys.executable, "-c", script], text=True)
    assert found == "('sound 39999 of a long list',) 40000\n"
    assert pickle.dumps(captions) == content  # one file, however often it is pickled


def test_small_arrays_are_pickled_by_value():
    array = pickle.loads(pickle.dumps(shared([1, 2, 3], np.int64)))
    np.testing.assert_array_equal(array, [1, 2, 3])
