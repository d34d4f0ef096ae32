"""Lists of mixtures: files, queries, and mistakes in them."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from evaluation_examples import write_list

from audiosep_jax.errors import InputError
from audiosep_jax.evaluation.lists import items_of, list_fingerprint, path_of, read_list
from audiosep_jax.evaluation.protocols import PROTOCOLS
from audiosep_jax.files import Row

AUDIO, NOISE = Path("audio"), Path("noise")
# First row of each list: (id, query, class, rendered target, rendered mixture, target, noises).
FIRST = {
    "audioset": (
        *("class_id=0,index=000,source", "Speech", "Speech"),
        "class_id=0/class_id=0,index=000,source.wav",
        "class_id=0/class_id=0,index=000,mixture.wav",
        *(None, ()),
    ),
    "vggsound": (
        *("-JUBdOr8Hes_000030+++37Vxf0Wz-3o_000001", "playing accordion", "playing accordion"),
        "data/s0_wav/-JUBdOr8Hes_000030+++37Vxf0Wz-3o_000001.wav",
        "data/mix_wav/-JUBdOr8Hes_000030+++37Vxf0Wz-3o_000001.wav",
        "data/s0_wav/-JUBdOr8Hes_000030+++37Vxf0Wz-3o_000001.wav",
        ("data/s1_wav/-JUBdOr8Hes_000030+++37Vxf0Wz-3o_000001.wav",),
    ),
    "audiocaps": (
        *("0", *["Constant rattling noise and sharp vibrations"] * 2),
        *("segment-0.wav", "mixture-0.wav", "Y7fmOlUlwoNg.wav", ("Y-aYumc8KoXg.wav",)),
    ),
    "clotho": (
        *("0", *["A machine whines and squeals while rhythmically punching or stamping."] * 2),
        *("segment-0.wav", "mixture-0.wav", "Santa Motor.wav"),
        (
            "09-07-14_2338_Foz, fisherman next to the river.wav",
            "radiater-machine air and hum.wav",
        ),
    ),
    "music": (
        *("0", "accordion", "accordion", "segment-0.wav", "mixture-0.wav"),
        *("Y1mCi6eWXVbg_0.wav", ("YX4UWEifacwI_6.wav",)),
    ),
    "esc50": (
        *("0", "dog", "dog", "segment-0.wav", "mixture-0.wav"),
        *("1-100032-A-0.wav", ("5-207836-D-29.wav",)),
    ),
}


def of_list(name, rows, audio=AUDIO, **options):
    return items_of(PROTOCOLS[name], rows, audio, NOISE, **options)


@pytest.mark.parametrize("name", FIRST)
def test_published_lists_are_read(shared, tmp_path, name):
    protocol = PROTOCOLS[name]
    rows = read_list(protocol, shared / "data" / "audiosep_eval" / f"{name}_eval.csv", AUDIO)
    assert len(rows) == protocol.count
    number, query, label, rendered_target, rendered_mixture, target, noises = FIRST[name]
    audio = tmp_path / "x"
    (audio / rendered_mixture).parent.mkdir(parents=True)
    (audio / rendered_mixture).touch()
    items = of_list(name, rows, audio)
    first = items[0]
    assert (first.row, first.id, first.query, first.label) == (0, number, query, label)
    assert first.files == (audio / rendered_target, audio / rendered_mixture)
    assert (first.noises, first.snr_db) == ((), None)
    assert len({item.mixture for item in items}) == protocol.count
    assert len({item.id for item in items}) == protocol.count
    if target is None:
        return
    pair = of_list(name, rows, snr_db=3.0)[0]
    assert pair.files == (AUDIO / target, *(NOISE / path for path in noises))
    assert (pair.mixture, pair.snr_db) == (None, 3.0)
    assert of_list(name, rows)[0].snr_db == 0
    clips = (target, *noises) if name != "vggsound" else tuple(number.split("+++"))
    assert pair.clips == first.clips == clips
    if name == "vggsound":  # 100 targets, ten noises each
        assert len({item.clips[0] for item in items}) == 100
        assert first.noise_query == rows[0].cells["s1_text"]


def test_classes_are_those_of_the_benchmarks(shared):
    folder = shared / "data" / "audiosep_eval"
    counts = {}
    for name in ("audioset", "music"):
        items = of_list(name, read_list(PROTOCOLS[name], folder / f"{name}_eval.csv", AUDIO))
        counts[name] = np.unique([item.label for item in items], return_counts=True)[1]
    assert counts["audioset"].tolist() == [10] * 527
    assert len(counts["music"]) == 10


def test_dcase_list_goes_by_position(tmp_path):
    path = write_list(tmp_path / "x.csv", "abcd", [("s1", "n1", "-15", "a dog barks")])
    protocol = PROTOCOLS["dcase2024"]
    item = items_of(protocol, read_list(protocol, path, AUDIO), AUDIO, NOISE)[0]
    assert item.files == (AUDIO / "s1.wav", NOISE / "n1.wav")
    assert (item.snr_db, item.query, item.mixture) == (-15, "a dog barks", None)
    path = write_list(tmp_path / "x.csv", "abcd", [("s1", "n1", "loud", "a dog barks")])
    with pytest.raises(
        InputError, match="line 2 of the list has snr='loud', not a number from -200 to 200"
    ):
        items_of(protocol, read_list(protocol, path, AUDIO), AUDIO, NOISE)
    path = write_list(tmp_path / "x.csv", "abc", [("s1", "n1", "a dog barks")])
    with pytest.raises(InputError, match="has 3 columns, not, in order, source, noise, snr"):
        read_list(protocol, path, AUDIO)


def test_voicebank_lists_its_folder(tmp_path):
    clean = tmp_path / "clean_testset_wav"
    clean.mkdir()
    protocol = PROTOCOLS["voicebank_demand"]
    with pytest.raises(InputError, match=r"holds no \.wav file"):
        read_list(protocol, None, tmp_path)
    for name in ("p257_002.wav", "p232_001.wav", "notes.txt"):
        (clean / name).touch()
    items = items_of(protocol, read_list(protocol, None, tmp_path), AUDIO, AUDIO, query="a voice")
    assert [item.id for item in items] == ["p232_001", "p257_002"]
    assert items[1].files == tuple(
        AUDIO / f"{kind}_testset_wav" / "p257_002.wav" for kind in ("clean", "noisy")
    )
    assert {item.query for item in items} == {"a voice"}


def test_auto_takes_rendered_mixtures_where_they_are(tmp_path):
    cells = {"caption": "x", "src_wav": "a", "noise_wav": "b"}
    rows = [Row(n + 2, {"idx": str(n)} | cells) for n in range(3)]
    protocol = PROTOCOLS["esc50"]
    assert items_of(protocol, rows, tmp_path, tmp_path)[2].mixture is None
    (tmp_path / "mixture-1.wav").touch()
    items = items_of(protocol, rows, tmp_path, tmp_path)
    assert [item.mixture for item in items] == [tmp_path / f"mixture-{n}.wav" for n in range(3)]


def own(row, **options):
    row = Row(2, {"target": "t.wav", "query": "dog", "noise": "n.wav"} | row)
    return items_of(PROTOCOLS["mixtures"], [row], AUDIO, NOISE, **options)[0]


def test_own_list():
    item = own({"snr": "-5", "class": "animal", "target_start": "1.5", "noise_query": "rain"})
    assert item.files == (AUDIO / "t.wav", NOISE / "n.wav")
    assert (item.id, item.label, item.snr_db) == ("0", "animal", -5)
    assert (item.target_start_seconds, item.noise_start_seconds, item.seconds) == (1.5, 0, None)
    assert item.noise_query == "rain"
    assert own({}).snr_db is None
    assert own({}, snr_db=7.0).snr_db == 7
    assert own({"snr": "-5"}, snr_db=7.0).snr_db == -5
    assert own({}).label == "dog"
    given = own({"noise": "", "mixture": "m.wav", "snr": "3", "id": "k"})
    assert given.files == (AUDIO / "t.wav", AUDIO / "m.wav")
    assert (given.id, given.snr_db) == ("k", None)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_lists_of_spreadsheets_are_read(tmp_path, separator):
    lines = ["Target,Query,NOISE,snr", "a\\t.wav, dog ,b\\n.wav,-5", " , , , ", "t.wav,rain,n.wav,"]
    path = tmp_path / "list.csv"
    text = "\r\n".join(line.replace(",", separator) for line in lines)
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    protocol = PROTOCOLS["mixtures"]
    items = items_of(protocol, read_list(protocol, path, AUDIO), AUDIO, NOISE)
    assert [(x.query, x.snr_db, x.line) for x in items] == [("dog", -5, 2), ("rain", None, 4)]
    assert items[0].files == (AUDIO / "a" / "t.wav", NOISE / "b" / "n.wav")


def test_messages_count_the_lines_of_the_file(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text('target,query,noise\n\nt.wav,"dog\nand cat",n.wav\n\nt.wav,,n.wav\n')
    protocol = PROTOCOLS["mixtures"]
    with pytest.raises(InputError, match="line 6 of the list has no query"):
        items_of(protocol, read_list(protocol, path, AUDIO), AUDIO, NOISE)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"noise": ""}, "not a target and either a noise or a mixture"),
        ({"mixture": "m.wav"}, "not a target and either a noise or a mixture"),
        ({"target": ""}, "not a target and"),
        ({"query": " "}, "line 2 of the list has no query"),
        ({"snr": "nan"}, "has snr='nan', not a number from -200 to 200"),
        ({"snr": "-1000"}, "has snr='-1000', not a number from -200"),
        ({"target_start": "-1"}, "has target_start='-1', not a number from 0"),
        ({"seconds": "0"}, "has seconds='0', not a number from 0.001"),
    ],
)
def test_mistakes_in_an_own_list_are_named(row, message):
    with pytest.raises(InputError, match=message):
        own(row)


def test_query_may_come_from_another_column_or_be_one_for_all():
    row = {"labels": "Dog"}
    assert own(row, query_column="labels").query == "Dog"
    assert own(row, query="a pet").query == "a pet"
    with pytest.raises(InputError, match="no column 'wishes' of queries, only target, query"):
        own(row, query_column="wishes")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; its first line must name the columns"),
        ("idx,caption,src_wav,noise_wav\n", "lists no mixture"),
        ("idx,caption,src_wav\n0,a,b\n", "has no column 'noise_wav'; its first line names idx"),
        ("idx,caption,src_wav,noise_wav\n0,a,b,c\n\n1,a,b\n", "line 4 has 3 cells where"),
        ("idx,caption,src_wav,noise_wav,caption\n", "names the column 'caption' twice"),
        ('idx,caption,src_wav,noise_wav\n0,a,b,"c\n1,a,b,c\n', "is not CSV"),
    ],
)
def test_unusable_lists_are_refused(tmp_path, text, message):
    path = tmp_path / "list.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_list(PROTOCOLS["esc50"], path, AUDIO)
    with pytest.raises(InputError, match="cannot be read"):
        read_list(PROTOCOLS["esc50"], tmp_path, AUDIO)


def test_templates():
    row = {"idx": "7", "idx2": "8", "src_wav": "evaluation/data/a.b.wav", "x (2)": "y"}
    assert path_of("{idx}-{idx2}/{src_wav.name}/{x (2)}", row) == "7-8/a.b.wav/y"
    assert path_of("{src_wav.stem}", row) == "a.b"


def test_fingerprint_tells_lists_apart_wherever_their_files_lie():
    item = own({"snr": "3"})
    same = dataclasses.replace(item, target=Path("elsewhere/t.wav"))
    assert list_fingerprint([item]) == list_fingerprint([same])
    changes = {"query": "cat", "snr_db": 4.0, "noises": (Path("o.wav"),), "id": "9", "seconds": 2}
    others = [dataclasses.replace(item, **{key: value}) for key, value in changes.items()]
    assert len({list_fingerprint([x]) for x in [item, *others]}) == len(changes) + 1
