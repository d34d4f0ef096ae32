"""Each data set, in its true layout and with wrong rows in it, gives its recordings."""

import json

import prepared_examples as examples
import pytest

from audiosep_jax.errors import InputError
from audiosep_jax.preparing import datasets
from audiosep_jax.preparing.recordings import Skipped, expected, find

UP_TO_10 = (0.0, 10.5)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def audio(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def rows(items, root):
    """(id, split, captions, seconds, file below root) of recordings; (id, reason) of the rest."""
    found, skipped = [], []
    for item in items:
        if isinstance(item, Skipped):
            skipped.append((item.id, item.reason))
            continue
        file = find(item)
        place = file.relative_to(root).as_posix() if file else None
        found.append((item.id, item.split, item.captions, item.seconds, place))
    return found, skipped


def test_audioset(tmp_path):
    head = "# Segments csv created Sun Mar  5\n# num_ytids=2\n"
    head += "# YTID, start_seconds, end_seconds, positive_labels\n"
    write(
        tmp_path / "balanced_train_segments.csv",
        head + '--4gqARaEJE, 0.000, 10.000, "/m/068hy,/m/07q6cd_"\n'
        '-BfyqOv3yAQ, 30.000, 37.000, "/m/09x0r,/m/none"\n'
        'none, 0.000, 10.000, "/m/none"\n'
        'back, 10.000, 0.000, "/m/09x0r"\n'
        "half, 10.000\n"
        'endless, 0.000, inf, "/m/09x0r"\n'
        'gone, 20.000, 30.000, "/m/09x0r"\n',
    )
    write(tmp_path / "eval_segments.csv", head + 'abc, 5.500, 15.500, "/m/09x0r"\n')
    labels = [
        ("/m/068hy", "Domestic animals, pets"),
        ("/m/07q6cd_", "Squeak"),
        ("/m/09x0r", "Speech"),
    ]
    ontology = [{"id": mid, "name": name, "child_ids": []} for mid, name in labels]
    write(tmp_path / "ontology.json", json.dumps(ontology))
    audio(
        tmp_path,
        *("audio/balanced_train_segments/Y--4gqARaEJE.wav", "audio/-BfyqOv3yAQ_30000_37000.flac"),
        "audio/eval_segments/abc_5500_15500.flac",
    )
    expected_rows = [
        (
            *("--4gqARaEJE", "train", ("Domestic animals, pets, Squeak",), (9.5, 10.5)),
            "audio/balanced_train_segments/Y--4gqARaEJE.wav",
        ),
        ("-BfyqOv3yAQ", "train", ("Speech",), (6.5, 7.5), "audio/-BfyqOv3yAQ_30000_37000.flac"),
        ("gone", "train", ("Speech",), (9.5, 10.5), None),
        ("abc", "test", ("Speech",), (9.5, 10.5), "audio/eval_segments/abc_5500_15500.flac"),
    ]
    found, skipped = rows(datasets.audioset(tmp_path), tmp_path)
    assert found == expected_rows
    assert [id_ for id_, _ in skipped] == [
        "none",
        "balanced_train_segments.csv line 7",
        "balanced_train_segments.csv line 8",
        "balanced_train_segments.csv line 9",
    ]
    assert "no label of the ontology: /m/none" in skipped[0][1]
    # The other file of labels, as YouTube-8M's page of AudioSet has it, says the same.
    (tmp_path / "ontology.json").unlink()
    table = "index,mid,display_name\n" + "".join(f'0,{mid},"{name}"\n' for mid, name in labels)
    write(tmp_path / "class_labels_indices.csv", table)
    assert rows(datasets.audioset(tmp_path), tmp_path)[0] == expected_rows


def test_vggsound(tmp_path):
    write(
        tmp_path / "vggsound.csv",
        "---g-f_I2yQ,1,people marching,test\n"
        '--0PQM4-hqg,30,"waterfall, burbling",train\n'
        "--0PQM4-hqg,x,waterfall burbling,train\n"
        "--0PQM4-hqg,30\n"
        "--0PQM4-hqg,40,waterfall burbling,valid\n",
    )
    audio(tmp_path, "audio/---g-f_I2yQ_000001.wav", "audio/--0PQM4-hqg_30000_40000.flac")
    found, skipped = rows(datasets.vggsound(tmp_path), tmp_path)
    assert found == [
        (
            *("---g-f_I2yQ_000001", "test", ("people marching",), UP_TO_10),
            "audio/---g-f_I2yQ_000001.wav",
        ),
        (
            *("--0PQM4-hqg_000030", "train", ("waterfall, burbling",), UP_TO_10),
            "audio/--0PQM4-hqg_30000_40000.flac",
        ),
    ]
    assert [id_ for id_, _ in skipped] == [f"vggsound.csv line {n}" for n in (3, 4, 5)]
    assert "'valid' is neither train nor test" in skipped[2][1]


def test_audiocaps(tmp_path):
    head = "audiocap_id,youtube_id,start_time,caption\n"
    write(
        tmp_path / "train.csv",
        head + "91139,r1nicOVtvkQ,130,A woman talks nearby as water pours\n"
        "58146,-VyWU8cQjpo,x,no start\n"
        "58147,-VyWU8cQjpo,30,\n"
        "58148\n",
    )
    write(
        tmp_path / "val.csv",
        head + "1,abc,0,Rain falls\n2,abc,0,It rains\n3,def,10,A dog\n4,abc,0,Rain falls\n",
    )
    write(tmp_path / "test.csv", head + "9,ghi,70,Bells\n")
    audio(
        tmp_path,
        *("audio/train/r1nicOVtvkQ_130.wav", "audio/val/Yabc.wav", "audio/val/3.flac"),
        "audio/test/ghi.ogg",
    )
    found, skipped = rows(datasets.audiocaps(tmp_path), tmp_path)
    assert found == [
        (
            *("r1nicOVtvkQ_130", "train", ("A woman talks nearby as water pours",), UP_TO_10),
            "audio/train/r1nicOVtvkQ_130.wav",
        ),
        ("abc_0", "valid", ("Rain falls", "It rains"), UP_TO_10, "audio/val/Yabc.wav"),
        ("def_10", "valid", ("A dog",), UP_TO_10, "audio/val/3.flac"),
        ("ghi_70", "test", ("Bells",), UP_TO_10, "audio/test/ghi.ogg"),
    ]
    assert [id_ for id_, _ in skipped] == [f"train.csv line {n}" for n in (3, 4, 5)]


def test_clotho(tmp_path):
    head = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n"
    write(
        tmp_path / "clotho_captions_development.csv",
        head
        + 'Distorted AM, noise.wav,A b.,C d.,"E, f.",G h.,I j.\n'.replace(
            "Distorted AM, noise.wav", '"Distorted AM, noise.wav"'
        )
        + "two.wav,A.,A.,,,B.\nempty.wav,,,,,\n,A,B,C,D,E\n",
    )
    for name in ("validation", "evaluation"):
        write(tmp_path / f"clotho_captions_{name}.csv", head + f"{name}.wav,1,2,3,4,5\n")
    columns = "file_name,keywords,sound_id,sound_link,start_end_samples,manufacturer,license\n"
    row = '"Distorted AM, noise.wav",a;b,1,x,"[1024, 845524]",Andr\xe9,y\ntwo.wav,c,2,x,,z,y\n'
    path = tmp_path / "clotho_metadata_development.csv"
    path.write_text(columns + row, encoding="latin-1")
    audio(
        tmp_path, "development/Distorted AM, noise.wav", "development/two.wav",
        "clotho_audio_validation/validation/validation.wav", "evaluation/evaluation.wav",
    )  # fmt: skip
    found, skipped = rows(datasets.clotho(tmp_path), tmp_path)
    five = ("1", "2", "3", "4", "5")
    assert found == [
        (
            *("Distorted AM, noise.wav", "train", ("A b.", "C d.", "E, f.", "G h.", "I j.")),
            *(expected(844500 / 44100), "development/Distorted AM, noise.wav"),
        ),
        ("two.wav", "train", ("A.", "B."), None, "development/two.wav"),
        (
            *("validation.wav", "valid", five, None),
            "clotho_audio_validation/validation/validation.wav",
        ),
        ("evaluation.wav", "test", five, None, "evaluation/evaluation.wav"),
    ]
    assert [id_ for id_, _ in skipped] == [
        "clotho_captions_development.csv line 4",
        "clotho_captions_development.csv line 5",
    ]


def test_wavcaps(tmp_path):
    folder = tmp_path / "json_files"
    as_rows = [
        {"id": "Yb0RFKhbpFJA.wav", "caption": "Wind  blows.", "duration": 10.0},
        {"id": "Ybarred.wav", "caption": "Bells.", "duration": 10.0},
        {"id": "Ynone.wav", "duration": 10.0},
        "Ytext.wav",
        {"id": "Yempty.wav", "caption": " "},
    ]
    content = {"num_captions_per_audio": 1, "data": as_rows}
    write(folder / "AudioSet_SL" / "as_final.json", json.dumps(content))
    bells = [
        {"title": "Bell", "id": "2218", "caption": "A bell.", "duration": 1.5698125},
        {"id": "2", "caption": "A bell.", "duration": float("inf")},
        {"id": "Ybarred", "caption": "Not of AudioSet.", "duration": None},
    ]
    write(folder / "SoundBible" / "sb_final.json", json.dumps(bells))
    barred = {"AudioSet": ["Ybarred.wav"], "FreeSound": ["1"]}
    write(folder / "blacklist" / "blacklist_exclude_test_ac.json", json.dumps(barred))
    audio(tmp_path, "waveforms/AudioSet_SL_flac/Yb0RFKhbpFJA.flac", "SoundBible_flac/2218.flac")
    found, skipped = rows(datasets.wavcaps(tmp_path), tmp_path)
    assert found == [
        (
            *("AudioSet_SL/Yb0RFKhbpFJA", "train", ("Wind blows.",), (9.5, 10.5)),
            "waveforms/AudioSet_SL_flac/Yb0RFKhbpFJA.flac",
        ),
        ("SoundBible/2218", "train", ("A bell.",), (1.07, 2.07), "SoundBible_flac/2218.flac"),
        ("SoundBible/2", "train", ("A bell.",), None, None),
        ("SoundBible/Ybarred", "train", ("Not of AudioSet.",), None, None),
    ]
    assert [id_ for id_, _ in skipped] == [
        "AudioSet_SL/Ybarred",
        "as_final.json row 3",
        "as_final.json row 4",
        "AudioSet_SL/Yempty",
    ]
    assert "blacklist" in skipped[0][1]


def test_fsd50k(tmp_path):
    truth = tmp_path / "FSD50K.ground_truth"
    write(
        truth / "vocabulary.csv",
        "0,Accelerating_and_revving_and_vroom,/m/1\n1,Acoustic_guitar,/m/2\n",
    )
    write(
        truth / "dev.csv",
        'fname,labels,mids,split\n64760,"Acoustic_guitar,Accelerating_and_revving_and_vroom","a,b",train\n'
        '63430,"Acoustic_guitar,Unknown",/m/2,val\n1,Unknown,/m/9,train\n2,Acoustic_guitar,/m/2,dev\n,,,\n',
    )
    write(truth / "eval.csv", "fname,labels,mids\n37199,Acoustic_guitar,/m/2\n")
    audio(tmp_path, "FSD50K.dev_audio/64760.wav", "FSD50K.eval_audio/37199.wav")
    found, skipped = rows(datasets.fsd50k(tmp_path), tmp_path)
    both, up_to_30 = "Acoustic guitar, Accelerating and revving and vroom", (0.0, 30.6)
    assert found == [
        ("64760", "train", (both,), up_to_30, "FSD50K.dev_audio/64760.wav"),
        ("63430", "valid", ("Acoustic guitar",), up_to_30, None),
        ("37199", "test", ("Acoustic guitar",), up_to_30, "FSD50K.eval_audio/37199.wav"),
    ]
    assert [id_ for id_, _ in skipped] == ["1", "dev.csv line 5"]


def test_music(tmp_path):
    solo = {"videos": {"acoustic_guitar": ["5g5d2XNnTAU", 3, "V8CZXE0QQOk"], "tuba": ["x"]}}
    duet = {"version": 1.0, "videos": {"saxophone acoustic_guitar": ["ywH4K8mQ-1s", ""]}}
    write(tmp_path / "MUSIC_solo_videos.json", json.dumps(solo))
    write(tmp_path / "MUSIC_duet_videos.json", json.dumps(duet))
    audio(tmp_path, "audio/acoustic_guitar/5g5d2XNnTAU.mp3", "audio/Yx.wav")
    found, skipped = rows(datasets.music(tmp_path), tmp_path)
    pair = "saxophone and acoustic guitar"
    assert found == [
        ("ywH4K8mQ-1s", "train", (pair,), None, None),
        *[
            (
                "5g5d2XNnTAU",
                "train",
                ("acoustic guitar",),
                None,
                "audio/acoustic_guitar/5g5d2XNnTAU.mp3",
            ),
            ("V8CZXE0QQOk", "train", ("acoustic guitar",), None, None),
        ],
        ("x", "train", ("tuba",), None, "audio/Yx.wav"),
    ]
    assert [reason for _, reason in skipped] == ["no video: ''", "no video: 3"]


def test_voicebank_demand(tmp_path):
    for kind in ("clean", "noisy"):
        audio(
            tmp_path, f"{kind}_trainset_28spk_wav/p226_001.wav", f"{kind}_testset_wav/p232_001.wav"
        )
    audio(tmp_path, "clean_testset_wav/p232_002.wav", "noisy_testset_wav/p232_003.wav")
    write(tmp_path / "trainset_28spk_txt" / "p226_001.txt", "Please call\nStella.\n")
    found, skipped = rows(datasets.voicebank_demand(tmp_path), tmp_path)
    speech, noisy = (datasets.SPEECH,), (datasets.NOISY_SPEECH,)
    said = (*speech, "a person says: Please call Stella.")
    assert found == [
        ("p226_001", "train", said, None, "clean_trainset_28spk_wav/p226_001.wav"),
        ("p226_001", "train_noisy", noisy, None, "noisy_trainset_28spk_wav/p226_001.wav"),
        ("p232_001", "test", speech, None, "clean_testset_wav/p232_001.wav"),
        ("p232_001", "test_noisy", noisy, None, "noisy_testset_wav/p232_001.wav"),
        ("p232_002", "test", speech, None, "clean_testset_wav/p232_002.wav"),
        ("p232_002", "test_noisy", noisy, None, None),
    ]
    assert skipped == [("p232_003", "has no clean recording")]


def test_esc50_holds_folds_out(tmp_path):
    table = "filename,fold,target,category\n1-a.wav,1,0,dog\n5-b.wav,5,1,chirping_birds\n"
    write(tmp_path / "meta" / "esc50.csv", table)
    audio(tmp_path, "audio/1-a.wav")
    dog = ("1-a.wav", "train", ("dog",), None, "audio/1-a.wav")
    bird = ("5-b.wav", "valid", ("chirping birds",), None, None)
    assert rows(datasets.esc50(tmp_path, (5,)), tmp_path) == ([dog, bird], [])
    turned = datasets.esc50(tmp_path, (1,))
    assert [row[:2] for row in rows(turned, tmp_path)[0]] == [
        ("5-b.wav", "train"),
        ("1-a.wav", "valid"),
    ]
    write(tmp_path / "meta" / "esc50.csv", table + "x.wav,one,0,dog\n")
    with pytest.raises(InputError, match="line 4 has fold 'one'"):
        list(datasets.esc50(tmp_path, (5,)))


def test_manifest_joins_the_captions_of_a_file(tmp_path):
    data = [("a/b.wav", "dog"), ("c.wav", "cat"), ("a/b.wav", ["puppy", "dog"])]
    content = {"data": [{"wav": wav, "caption": caption} for wav, caption in data]}
    write(tmp_path / "list.json", json.dumps(content))
    audio(tmp_path, "a/b.wav")
    items = datasets.DATASETS["manifest"].read(tmp_path / "list.json")
    assert rows(items, tmp_path)[0] == [
        ("a/b.wav", "train", ("dog", "puppy"), None, "a/b.wav"),
        ("c.wav", "train", ("cat",), None, None),
    ]


def test_pictures_of_a_manifest_are_not_lost_in_silence(tmp_path):
    row = {"wav": "a.wav", "caption": "dog", "image": "list.json"}
    write(tmp_path / "list.json", json.dumps({"data": [row]}))
    with pytest.raises(InputError, match='prepared records hold no "image"'):
        list(datasets.DATASETS["manifest"].read(tmp_path / "list.json"))


def test_folders_and_their_validation_set(tmp_path):
    audio(tmp_path, "t/big_dog/1.wav", "v/rain/2.flac")
    items = datasets.DATASETS["folders"].read(tmp_path / "t", tmp_path / "v")
    assert rows(items, tmp_path)[0] == [
        ("big_dog/1.wav", "train", ("big dog",), None, "t/big_dog/1.wav"),
        ("rain/2.flac", "valid", ("rain",), None, "v/rain/2.flac"),
    ]


def test_synthetic_clips_are_those_of_training(tmp_path):
    from audiosep_jax.data.sources import DataConfig, build_source

    items = list(datasets.synthetic(20))
    assert [item.split for item in items] == ["train"] * 20 + ["valid"] * 2
    for split, item in (("train", items[7]), ("valid", items[21])):
        config = DataConfig(source="synthetic", num_synthetic_clips=20)
        source = build_source(config, split, examples.RATE_HZ)
        seed, index = item.synthetic
        assert (seed, index) == (source.seed, 7 if split == "train" else 1)
        assert (item.id, item.captions) == (source.name(index), source.captions[index])
        assert item.places == ()


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("audioset", "class_labels_indices.csv"),
        ("vggsound", "vggsound.csv"),
        ("audiocaps", "train.csv"),
        ("clotho", "clotho_captions_development.csv"),
        ("wavcaps", "json_files"),
        ("fsd50k", "vocabulary.csv"),
        ("music", "MUSIC_solo_videos.json"),
        ("voicebank_demand", "clean_trainset_28spk_wav"),
    ],
)
def test_an_empty_folder_is_refused(tmp_path, source, named):
    with pytest.raises(InputError) as caught:
        list(datasets.DATASETS[source].read(root=tmp_path))
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tables_that_are_none_are_refused(tmp_path):
    write(tmp_path / "train.csv", "youtube_id,start\n")
    with pytest.raises(InputError, match="no column 'audiocap_id'"):
        list(datasets.audiocaps(tmp_path))
    (tmp_path / "train.csv").write_bytes(b"audiocap_id,youtube_id,start_time,caption\n1,\xff,2,x\n")
    with pytest.raises(InputError, match="is not text in UTF-8"):
        list(datasets.audiocaps(tmp_path))


SOUNDBIBLE = "json_files/SoundBible/sb_final.json"
BLACKLIST = "json_files/blacklist/blacklist_exclude_test_ac.json"


@pytest.mark.parametrize(
    ("source", "content", "message"),
    [
        ("music", {"MUSIC_solo_videos.json": "{"}, "is not JSON"),
        ("music", {"MUSIC_solo_videos.json": '{"videos": 5}'}, 'has no "videos" by instrument'),
        ("wavcaps", {SOUNDBIBLE: '{"rows": []}'}, "holds no list of recordings"),
        ("wavcaps", {SOUNDBIBLE: "5"}, "holds no list of recordings"),
        ("wavcaps", {SOUNDBIBLE: "[]", BLACKLIST: '["x"]'}, "holds a JSON list, not an object"),
        ("wavcaps", {SOUNDBIBLE: "[]", BLACKLIST: '{"FreeSound": 5}'}, "'FreeSound' is no list"),
        ("audioset", {"ontology.json": '{"id": "x"}', "eval_segments.csv": ""}, "is not a list of"),
    ],
)
def test_json_of_another_shape_is_refused(tmp_path, source, content, message):
    for name, text in content.items():
        write(tmp_path / name, text)
    with pytest.raises(InputError, match=message):
        list(datasets.DATASETS[source].read(tmp_path))
