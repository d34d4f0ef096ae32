"""The scripts that make the small model's corpus and the lists that it is evaluated with."""

import csv
import importlib
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiosep_jax.data.clips import manifest_clips

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
RATE_HZ = 16000


@pytest.fixture
def corpus(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("small_corpus")


@pytest.fixture
def lists(corpus):
    return importlib.import_module("small_lists")


def tone(seconds, gain=0.5, hz=440):
    return (gain * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE_HZ)) / RATE_HZ)).astype(
        np.float32
    )


def silence(seconds):
    return np.zeros(round(seconds * RATE_HZ), np.float32)


# ---------------------------------------------------------------------------- trimming


def test_trim_removes_silence_and_keeps_pauses(corpus):
    first, second = tone(1.0), tone(0.5, hz=300)
    audio_S = np.concatenate([silence(2), first, silence(0.2), second, silence(3), first])
    trimmed_S = corpus.trim(audio_S)
    # The pause of 0.2 s stays, that of 3 s becomes 0.3 s, and 0.15 s stay at each end.
    assert len(trimmed_S) == pytest.approx((1 + 0.2 + 0.5 + 0.3 + 1 + 0.15) * RATE_HZ, abs=1600)
    begin = round(0.15 * RATE_HZ)
    inside = slice(begin + 400, begin + RATE_HZ - 400)
    assert np.abs(trimmed_S[inside]).max() == pytest.approx(0.5, abs=1e-3)
    assert np.sum(trimmed_S**2) == pytest.approx(np.sum(audio_S**2), rel=0.01)


@pytest.mark.parametrize(("gain_db", "is_kept"), [(-40, True), (-50, False)])
def test_trim_threshold_is_45_db_below_the_loudest(corpus, gain_db, is_kept):
    faint = tone(1, gain=0.5 * 10 ** (gain_db / 20))
    trimmed_S = corpus.trim(np.concatenate([tone(1), silence(1), faint]))
    assert (len(trimmed_S) > 1.5 * RATE_HZ) == is_kept


def test_trim_of_silence_is_empty(corpus):
    assert len(corpus.trim(silence(1))) == 0


def test_level_is_bounded_by_the_peak(corpus):
    assert np.sqrt(np.mean(corpus.levelled(tone(1)) ** 2)) == pytest.approx(10 ** (-22 / 20), 1e-3)
    click_S = silence(1)
    click_S[100] = 0.01
    assert corpus.levelled(click_S).max() == pytest.approx(0.9, 1e-3)


# ----------------------------------------------------------------------------- phrases


def test_phrases_depend_on_instrument_and_number_alone(corpus):
    for one in corpus.instruments():
        assert corpus.phrase(one, 3) == corpus.phrase(one, 3)
    violin = next(one for one in corpus.instruments() if one.name == "violin")
    assert corpus.phrase(violin, 0)[2] != corpus.phrase(violin, 3)[2]


def test_phrases_stay_in_the_compass_and_fill_their_time(corpus):
    for one in corpus.instruments():
        for number in range(4):
            bank, program, notes = corpus.phrase(one, number)
            assert (bank, program) in one.programs
            assert {note.key for note in notes} <= set(one.keys)
            assert all(0 <= note.start_seconds < corpus.PHRASE_SECONDS for note in notes)
            assert all(1 <= note.velocity <= 127 for note in notes)
            assert max(note.start_seconds for note in notes) > corpus.PHRASE_SECONDS / 3


def test_chords_sound_together_where_the_instrument_can(corpus):
    def starts(name):
        one = next(x for x in corpus.instruments() if x.name == name)
        return [
            [note.start_seconds for note in corpus.phrase(one, number)[2]] for number in range(8)
        ]

    assert all(len(set(times)) == len(times) for times in starts("violin"))
    assert any(len(set(times)) < len(times) for times in starts("piano"))


def test_notes_of_real_instruments_are_played_at_the_pitch_of_the_key(corpus):
    assert [corpus.key_of(name) for name in ("A4", "C4", "Ds2", "As3")] == [69, 60, 39, 58]
    recorded = {69: tone(2, hz=440), 60: tone(2, hz=261.63)}
    notes = [corpus.Note(0.5, 0.9, 71, 127), corpus.Note(2.0, 0.9, 61, 64)]
    audio_S = corpus.played(notes, recorded)
    for begin, hz, gain in ((0.5, 493.88, 1.0), (2.0, 277.18, 64 / 127)):
        second_S = audio_S[round(begin * RATE_HZ) :][:RATE_HZ]
        spectrum_F = np.abs(np.fft.rfft(second_S * np.hanning(RATE_HZ)))
        assert spectrum_F.argmax() == pytest.approx(hz, abs=1)
        assert np.abs(second_S).max() == pytest.approx(0.5 * gain, rel=0.01)
    assert not audio_S[: round(0.5 * RATE_HZ)].any()
    assert not audio_S[round(3.1 * RATE_HZ) :].any()


def test_a_package_without_notes_is_named(corpus, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tonejs-instrument-bass-electric-mp3: no notes"):
        next(corpus.sampled_clips(tmp_path, tmp_path / "out"))


def read_midi(content):
    """Yield (seconds, message) of a file with one track and messages of two and three bytes."""
    assert content[:4] == b"MThd"
    assert struct.unpack(">IHHH", content[4:14]) == (6, 0, 1, 480)
    assert struct.unpack(">I", content[18:22]) == (len(content) - 22,)
    place, ticks = 22, 0
    while content[place : place + 4] != b"" and place < len(content):
        delta = 0
        while True:
            delta, more, place = delta << 7 | content[place] & 127, content[place] >> 7, place + 1
            if not more:
                break
        ticks += delta
        num_bytes = 2 if content[place] >> 4 == 0xC else 3
        yield ticks / 960, content[place : place + num_bytes]
        place += num_bytes


def test_midi_holds_the_notes_at_their_times(corpus):
    notes = [corpus.Note(0.0, 0.5, 60, 100), corpus.Note(1.0, 0.25, 64, 90)]
    messages = list(read_midi(corpus.midi([(8, 40, notes), (128, 16, notes)])))
    assert (0, bytes((0xB0, 0, 8))) in messages
    assert (0, bytes((0xC0, 40))) in messages
    assert (7, bytes((0xC9, 16))) in messages  # drums are on channel 10
    pressed = [(seconds, m) for seconds, m in messages if m[0] >> 4 == 9]
    assert pressed == [
        (0.1, bytes((0x90, 60, 100))),
        (1.1, bytes((0x90, 64, 90))),
        (7.1, bytes((0x99, 60, 100))),
        (8.1, bytes((0x99, 64, 90))),
    ]
    assert (0.6, bytes((0x80, 60, 0))) in messages
    assert messages[-1] == (14, b"\xff\x2f\x00")


# ------------------------------------------------------------------------------- words


def test_kept_back_wordings_are_in_no_training_caption(corpus):
    seen = {text.lower() for words in corpus.wordings().values() for text in words.seen}
    for name, words in corpus.wordings().items():
        assert words.seen[0] == name
        assert len(words.seen) >= 6
        assert not seen & {text.lower() for text in (*words.unseen, *words.unseen_synonyms)}


def test_synonyms_of_sounds_share_no_word_with_training(corpus):
    for name in corpus.table()["sounds"]:
        words = corpus.wordings()[name]
        taught = set(" ".join(words.seen).split()) - {"a", "the", "of", "with"}
        for synonym in words.unseen_synonyms:
            assert not taught & set(synonym.split()), (name, synonym)


def test_every_class_that_is_named_exists(corpus, lists):
    named = {x for group in corpus.table()["alike"] for x in group}
    named |= {*corpus.table()["loops"], *lists.CLASS_OF.values()}
    assert named <= set(corpus.wordings())


# ---------------------------------------------------------------- licences and folders


@pytest.mark.parametrize("licence", ["GPL", "CC-Sampling+", "Free Art License 1.2", ""])
def test_a_licence_that_does_not_allow_training_is_refused(corpus, tmp_path, licence):
    origin = corpus.Origin("somewhere", "someone", licence)
    with pytest.raises(ValueError, match=r"dog\.ogg: the licence .* does not allow training"):
        corpus.make_clip(tmp_path, "dog.ogg", tone(1), "dog", origin)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def data(tmp_path):
    """Folder `data` with two clips of each fold, voices, a loop, and recordings for evaluation."""
    root = tmp_path / "data"
    rows, entries = ["filename,fold,category"], []
    for fold in range(1, 6):
        for number, category in enumerate(("dog", "rain")):
            name, licence = f"{fold}-{number}00-A", "CC-BY" if fold > 1 else "CC0"
            rows.append(f"{name}-{number}.wav,{fold},{category}")
            entries.append(f"- **[{name}.ogg](x)**: [y](z) by *me{fold}* ([{licence}](w))")
            put(root / "esc10" / "audio" / f"{name}-{number}.wav", tone(1, hz=300 + 100 * fold))
    (root / "esc10" / "meta").mkdir()
    (root / "esc10" / "meta" / "esc50.csv").write_text("\n".join(rows))
    (root / "esc10" / "ATTRIBUTION.md").write_text("\n".join(entries))
    for voice in ("en", "es", "fr", "it", "ru"):
        for number in range(24):
            folder = root / "real" / "speech" / f"asterisk-{voice}"
            put(folder / f"p{number:02}.ogg", tone(2.5, hz=200 + 10 * number))
    put(root / "real" / "loops" / "bd_808.ogg", tone(0.2))
    put(root / "real" / "loops" / "unknown.ogg", tone(0.2))
    for name in ("violin", "trumpet", "horn", "trombone"):
        put(root / "real" / "instruments" / f"{name}.ogg", tone(5.5))
    return root


def put(path, audio_S):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".ogg":
        soundfile.write(path, audio_S, RATE_HZ, "VORBIS", format="OGG")
    else:
        soundfile.write(path, audio_S, RATE_HZ)


def test_corpus_holds_the_training_folds_and_voices_only(corpus, data, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "synthetic_clips", lambda output: [])
    monkeypatch.setattr(corpus, "instrument_clips", lambda output: [])
    monkeypatch.setitem(corpus.table(), "sampled", {"horns": "french horn"})
    put(tmp_path / "npm" / "horns" / "A3.mp3", tone(2, hz=220))
    output = tmp_path / "corpus"
    corpus.main(data, tmp_path / "npm", output)
    train, valid = (manifest_clips(output / f"{name}.json") for name in ("train", "valid"))
    names = [clip.path.relative_to(output).as_posix() for clip in train]
    sounds = [f"sounds/{fold}-{k}00-A-{k}.ogg" for fold in (1, 2, 3) for k in (0, 1)]
    assert [name for name in names if name.startswith("sounds")] == sounds
    assert {name[:10] for name in names} - {name[:10] for name in sounds} == {
        "speech/en_",
        "speech/es_",
        "speech/fr_",
        "loops/bd_8",
        "instrument",
    }
    in_valid = {clip.path.name for clip in valid}
    assert {name for name in in_valid if name[0].isdigit()} == {"4-000-A-0.ogg", "4-100-A-1.ogg"}
    assert {name[:3] for name in in_valid if name[0].isalpha()} == {"it_", "fre"}
    assert "a dog barking" in train[0].captions
    licences = list(csv.DictReader((output / "LICENCES.csv").open()))
    assert {row["wav"] for row in licences} == {
        *names,
        *(f"{x.path.parent.name}/{x.path.name}" for x in valid),
    }
    row = next(row for row in licences if row["wav"] == "sounds/2-000-A-0.ogg")
    assert (row["author"], row["licence"]) == ("me2", "CC-BY")
    kick_S, rate_hz = soundfile.read(output / "loops" / "bd_808.ogg")
    assert rate_hz == RATE_HZ
    assert len(kick_S) > 1.0 * RATE_HZ  # a stroke of 0.2 s became a rhythm


def test_lists_name_held_out_sounds(lists, data, tmp_path):
    output = tmp_path / "lists"
    lists.main(data, output)
    for name, rows in (("esc10", 500), ("speech", 80), ("instruments", 48)):
        table = list(csv.DictReader((output / f"{name}.csv").open()))
        assert len(table) == rows
        for row in table:
            assert (output / row["target"]).is_file()
            assert (output / row["noise"]).is_file()
            assert row["query"] != row["noise_query"]
            assert float(row["snr"]) == 0
    pairs = {(row["query"], row["noise_query"]) for row in table}
    assert ("violin", "french horn") in pairs
    assert not {("french horn", "trombone"), ("trombone", "french horn")} & pairs
    esc10 = list(csv.DictReader((output / "esc10.csv").open()))
    assert {row["target"][:8] for row in esc10} == {"audio/4-"}
    assert {(row["query"], row["synonym_1"]) for row in esc10} == {
        ("dog", "hound"),
        ("rain", "drizzle"),
    }
    assert {row["class"] for row in csv.DictReader((output / "speech.csv").open())} == {"it", "ru"}
