"""audiosep separate: the files it writes, and one line on stderr for everything that cannot be."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image
from tiny_models import write_clap, write_clip, write_voice
from tiny_run import edit_about, save_run, tiny_config

from audiosep_jax.audio import files as audio_files
from audiosep_jax.encoders import make_encoder
from audiosep_jax.encoders.encoder import TextConfig
from audiosep_jax.encoders.ge2e import VoiceEncoder
from audiosep_jax.separation import command as separate
from audiosep_jax.separation.separator import Separator
from audiosep_jax.separation.stream import SeparationStream

SCRIPT = Path(__file__).resolve().parents[2] / "separate.py"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    save_run(folder)
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def noise(num_channels, num_samples, scale=0.2):
    return (scale * np.random.default_rng(0).standard_normal((num_channels, num_samples))).astype(
        np.float32
    )


def recording(path, num_channels=1, num_samples=500, rate_hz=8000, scale=0.2, **options):
    audio_CS = noise(num_channels, num_samples, scale)
    soundfile.write(path, audio_CS.T, rate_hz, subtype=options.pop("subtype", "FLOAT"), **options)
    return path


def command(workdir, *arguments, text="rain", recording="in.wav"):
    return [str(recording), "--text", text, "--checkpoint", str(workdir), *map(str, arguments)]


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# ---------------------------------------------------------------------- what is written


AS_THE_LIBRARY = ("--stereo", "channels", "--above_nyquist", "drop")


@pytest.mark.parametrize(
    ("num_channels", "num_samples", "rate_hz"),
    [(1, 1, 8000), (2, 501, 44100), (6, 64, 48000), (1, 7, 22050), (1, 500, 8000)],
)
def test_writes_what_the_library_returns(
    here, workdir, capfdbinary, num_channels, num_samples, rate_hz
):
    audio_CS, _ = audio_files.read(recording("in.wav", num_channels, num_samples, rate_hz))
    assert separate.main(command(workdir, *AS_THE_LIBRARY)) == 0
    out, err = capfdbinary.readouterr()
    assert out == b"separated/in - rain.wav\n"
    assert re.fullmatch(rb"rain: presence [01]\.\d\d, (at [0-9., -]+ s|nowhere)\n", err)
    info = soundfile.info("separated/in - rain.wav")
    assert (info.format, info.subtype) == ("WAV", "FLOAT")
    written_CS, written_hz = audio_files.read("separated/in - rain.wav")
    assert written_hz == rate_hz
    expected_CS = Separator.load(workdir).separate(audio_CS, rate_hz, "rain")
    np.testing.assert_allclose(written_CS, expected_CS, rtol=0, atol=1e-6)


def test_loud_is_neither_clipped_nor_wrapped(here, workdir):
    recording("quiet.wav", scale=0.2)
    recording("loud.wav", scale=200)
    for name in ("quiet.wav", "loud.wav"):
        assert separate.main(command(workdir, "--output", ".", recording=name)) == 0
    loud_CS, _ = audio_files.read("loud - rain.wav")
    expected_CS = Separator.load(workdir).separate(noise(1, 500, 200), 8000, "rain")
    assert np.abs(loud_CS).max() > 2
    np.testing.assert_allclose(loud_CS, expected_CS, rtol=1e-4, atol=1e-3)


def test_each_text_gives_its_file_in_the_format_of_the_input(here, workdir, capfd):
    audio_CS, _ = audio_files.read(recording("in.flac", subtype="PCM_24"))
    arguments = command(workdir, "--text", "a dog", "--text", "rain", recording="in.flac")
    assert separate.main(arguments) == 0
    names = ["in - rain.flac", "in - a dog.flac", "in - rain (2).flac"]
    assert capfd.readouterr().out.splitlines() == [f"separated/{name}" for name in names]
    expected_NCS = Separator.load(workdir).separate(audio_CS, 8000, ["rain", "a dog", "rain"])
    for name, expected_CS in zip(names, expected_NCS, strict=True):
        assert soundfile.info(f"separated/{name}").subtype == "PCM_24"
        np.testing.assert_allclose(
            audio_files.read(f"separated/{name}")[0], expected_CS, rtol=0, atol=1e-6
        )


def test_options_reach_the_result(here, workdir, capfd):
    """Residual, format, plot and JSON of one run, each by what it holds."""
    audio_CS, _ = audio_files.read(recording("in.wav", 2, 3000, scale=0.02, subtype="PCM_16"))
    options = ["--residual", "--plot", "svg", "--json", "new/found.json", "--not", "hum"]
    options += ["--output_format", "flac", "--subtype", "PCM_24"]
    assert separate.main(command(workdir, *options, "--text", "wind")) == 0
    names = [f"in - {name}.flac" for name in ("rain", "wind", "residual")] + ["in.svg"]
    assert capfd.readouterr().out.splitlines() == [f"separated/{name}" for name in names]
    assert sorted(files(here / "separated")) == sorted(names)
    sounds = [audio_files.read(f"separated/{name}")[0] for name in names[:3]]
    np.testing.assert_array_equal(sum(sounds), audio_CS)
    titles = (here / "separated/in.svg").read_text()
    assert [f"<!-- {x} -->" in titles for x in ("mixture", "rain", "wind", "residual")] == [
        True
    ] * 4
    (found,) = json.loads((here / "new/found.json").read_text())
    assert (found["input"], found["seconds"], found["channels"]) == ("in.wav", 0.375, 2)
    for result, sound_CS in zip(found["results"], sounds, strict=False):
        share = (sound_CS.astype(float) ** 2).sum() / (audio_CS.astype(float) ** 2).sum()
        assert result["energy_share"] == pytest.approx(share, rel=1e-3)
        assert 0 < result["presence"] <= 1
    assert found["results"][1]["output"] == "separated/in - wind.flac"


def test_not_changes_the_result_as_the_library_does(here, workdir):
    audio_CS, _ = audio_files.read(recording("in.wav", 1, 900))
    separator = Separator.load(workdir)
    assert separate.main(command(workdir, "--not", "hum", "--output", "not")) == 0
    without_CS, _ = audio_files.read("not/in - rain.wav")
    rain_E, hum_E = separator.embed_text(["rain", "hum"])
    stream = separator.stream(8000, rain_E[None], unwanted_ME=hum_E[None])
    expected_NCS = np.concatenate([stream.feed(audio_CS), stream.finish()], axis=-1)
    np.testing.assert_allclose(without_CS, expected_NCS[0], rtol=0, atol=1e-6)
    once_CS = separator.separate(audio_CS, 8000, "rain")
    assert 0.001 < (without_CS**2).sum() / (once_CS**2).sum() < 0.999


def test_during_silences_the_results_outside(here, workdir, capfd):
    """Rows of a list have their own spans, or those of the option."""
    audio_CS, _ = audio_files.read(recording("in.wav", 1, 4000))
    lines = ["file,query,during", "in.wav,rain,0-0.1;0.4-", "in.wav,rain,0.3-0.4", "in.wav,wind,"]
    (here / "list.csv").write_text("\n".join(lines))
    arguments = ["list.csv", "--checkpoint", str(workdir), "--during", "0.1-0.2", "--resume"]
    assert separate.main([*arguments, *AS_THE_LIBRARY, "--json", "found.json"]) == 0
    names = ["in - rain", "in - rain (2)", "in - wind"]
    assert capfd.readouterr().out.splitlines() == [f"separated/{name}.wav" for name in names]
    during_N = [[(0, 0.1), (0.4, 9)], [(0.3, 0.4)], [(0.1, 0.2)]]
    separator = Separator.load(workdir)
    condition_NE = separator.embed_text(["rain", "rain", "wind"])
    expected_NCS = separator.separate_conditions(audio_CS, 8000, condition_NE, during_N=during_N)
    for name, expected_CS in zip(names, expected_NCS, strict=True):
        written_CS = audio_files.read(f"separated/{name}.wav")[0]
        np.testing.assert_allclose(written_CS, expected_CS, rtol=0, atol=1e-6)
    (found,) = json.loads((here / "found.json").read_text())
    (span,) = found["results"][1]["active"]  # in tenths of a second, which hold the fades too
    assert 0.2 <= span[0] < span[1] <= 0.5
    (here / "list.csv").write_text("\n".join(lines).replace("0.3-", "0.2-"))
    assert separate.main([*arguments, *AS_THE_LIBRARY]) == 0  # other spans are other results
    assert np.abs(audio_files.read("separated/in - rain (2).wav")[0][:, 1600:2300]).max() > 0
    (here / "list.csv").write_text("file,query,during\nin.wav,rain,4-3")
    capfd.readouterr()
    refused(capfd, here, arguments, "list.csv: line 2: the span 4-3 s must start at 0 or later")


def test_weighted_queries_are_one(here, workdir, capfd):
    audio_CS, _ = audio_files.read(recording("in.wav"))
    separator = Separator.load(workdir)
    arguments = ["in.wav", "--checkpoint", str(workdir)]
    arguments += ["--text", "rain", "--weight", "3", "--text", "wind", "--weight", "1"]
    assert separate.main(arguments) == 0
    assert capfd.readouterr().out == "separated/in - 3 rain + 1 wind.wav\n"
    blend_E = separator.embed_text(["rain", "wind"]).T @ [3, 1]
    condition_NE = (blend_E / np.linalg.norm(blend_E))[None]
    expected_NCS = separator.separate_conditions(audio_CS, 8000, condition_NE)
    written_CS, _ = audio_files.read("separated/in - 3 rain + 1 wind.wav")
    np.testing.assert_allclose(written_CS, expected_NCS[0], rtol=0, atol=1e-6)


def test_a_sound_as_a_query(here, capfd):
    """Through CLAP's audio tower, equal to its embedding given as numbers."""
    config = tiny_config()
    write_clap(here / "clap", projection_dim=config.model.condition_features)
    config.text.encoder, config.text.model = "clap", str(here / "clap")
    about = make_encoder(TextConfig(encoder="clap", model=str(here / "clap"))).fingerprint
    save_run(here / "run", config=config, text_fingerprint=about)
    recording("in.wav")
    recording("bark.flac", 2, 9000, 16000, subtype="PCM_16")
    arguments = ["in.wav", "--checkpoint", "run", "--audio_query", "bark.flac"]
    assert separate.main(arguments) == 0
    assert capfd.readouterr().out == "separated/in - bark.wav\n"
    np.save("bark.npy", Separator.load("run").embed_audio(*audio_files.read("bark.flac")))
    arguments = ["in.wav", "--checkpoint", "run", "--embedding", "bark.npy", "--output", "other"]
    assert separate.main(arguments) == 0
    as_numbers_CS, _ = audio_files.read("other/in - bark.wav")
    np.testing.assert_allclose(
        audio_files.read("separated/in - bark.wav")[0], as_numbers_CS, rtol=0, atol=1e-7
    )
    assert np.abs(as_numbers_CS).max() > 0


def test_a_picture_as_a_query(here, capfd):
    """Whole, its region, and both as one query, equal to their embeddings from the library."""
    config = tiny_config()
    write_clip(here / "clip", projection_dim=config.model.condition_features)
    config.text.encoder, config.text.model = "clip", str(here / "clip")
    about = make_encoder(TextConfig(encoder="clip", model=str(here / "clip"))).fingerprint
    save_run(here / "run", config=config, text_fingerprint=about)
    recording("in.wav")
    dog_HWC = np.random.default_rng(0).integers(0, 256, (240, 300, 3), np.uint8)
    Image.fromarray(dog_HWC).save("dog.png")
    arguments = ["in.wav", "--checkpoint", "run", "--image", "dog.png", "--image", "dog.png"]
    assert separate.main([*arguments, "--region", "30,0,270,240"]) == 0
    weights = ["--weight", "1", "--image", "dog.png", "--region", "30,0,270,240", "--weight", "2"]
    assert separate.main([*arguments[:5], *weights]) == 0
    names = ["dog", "dog (2)", "1 dog + 2 dog"]
    assert capfd.readouterr().out == "".join(f"separated/in - {name}.wav\n" for name in names)
    separator = Separator.load("run")
    part = Image.fromarray(dog_HWC[:, 30:])
    whole_E, part_E = (separator.embed_image(x)[0] for x in ("dog.png", part))
    assert np.abs(whole_E - part_E).max() > 1e-3
    blend_E = (whole_E + 2 * part_E) / np.linalg.norm(whole_E + 2 * part_E)
    audio_CS, rate_hz = audio_files.read("in.wav")
    expected = separator.separate_conditions(
        audio_CS, rate_hz, np.stack([whole_E, part_E, blend_E])
    )
    for name, expected_CS in zip(names, expected, strict=True):
        written_CS, _ = audio_files.read(f"separated/in - {name}.wav")
        np.testing.assert_allclose(written_CS, expected_CS, rtol=0, atol=1e-6)


def test_a_voice_as_a_query(here, capfd):
    config = tiny_config()
    config.model.condition_features, config.data.source = 256, "speakers"
    config.text.encoder, config.text.model = "voice", str(write_voice(here / "voice.pt"))
    encoder = VoiceEncoder(config.text.model)
    save_run(here / "run", config=config, text_fingerprint=encoder.fingerprint)
    recording("in.wav")
    recording("alice.flac", 2, 9000, 16000, subtype="PCM_16")
    arguments = ["in.wav", "--checkpoint", "run"]
    assert separate.main([*arguments, "--voice", "alice.flac"]) == 0
    assert capfd.readouterr().out == "separated/in - alice.wav\n"
    condition_NE = encoder([audio_files.read_mono("alice.flac")])
    expected_NCS = Separator.load("run").separate_conditions(
        *audio_files.read("in.wav"), condition_NE, above_nyquist="keep"
    )
    written_CS, _ = audio_files.read("separated/in - alice.wav")
    np.testing.assert_allclose(written_CS, expected_NCS[0], rtol=0, atol=1e-6)
    assert np.abs(written_CS).max() > 0
    assert separate.main([*arguments, "--text", "rain"]) == 2
    assert "kind text needs weights trained with" in capfd.readouterr().err
    write_voice(here / "voice.pt", num_hidden=5)
    assert separate.main([*arguments, "--voice", "alice.flac", "--overwrite"]) == 2
    assert "weights were trained with the text encoder voice-" in capfd.readouterr().err


# ---------------------------------------------------------------------- folders and lists


def folder_of(here):
    """Three recordings in folders, one of them bad, and what is none."""
    (here / "in/b/c").mkdir(parents=True)
    recording(here / "in/one.wav")
    recording(here / "in/b/one.flac", 2, 600, subtype="PCM_16")
    (here / "in/b/c/bad.wav").write_bytes(b"RIFF")
    (here / "in/notes.txt").write_text("no recording")
    (here / "in/.hidden.wav").write_bytes(b"")


def test_a_folder_is_mirrored_and_one_bad_file_stops_nothing(here, workdir, capfd):
    folder_of(here)
    assert separate.main(command(workdir, recording="in")) == 1
    out, err = capfd.readouterr()
    results = ["separated/b/one - rain.flac", "separated/one - rain.wav"]
    assert sorted(out.splitlines()) == results
    assert err.splitlines()[-2].startswith("error: in/b/c/bad.wav: ")
    assert err.splitlines()[-1] == "1 of 3 recordings were not separated"
    assert files(here / "separated") == [
        "b",
        "b/one - rain.flac",
        "one - rain.wav",
        "separated.jsonl",
    ]
    alone = ["--output", "alone"]
    assert separate.main(command(workdir, *alone, recording="in/b/one.flac")) == 0
    np.testing.assert_array_equal(
        audio_files.read("alone/one - rain.flac")[0], audio_files.read(results[0])[0]
    )


def test_resume_does_what_is_missing_or_changed(here, workdir, capfd):
    folder_of(here)

    def done(*options):
        capfd.readouterr()
        assert separate.main(command(workdir, "--resume", *options, recording="in")) == 1
        out, err = capfd.readouterr()
        count = re.search(r"(\d) of 3 recordings are done already", err)
        return sorted(Path(line).name for line in out.splitlines()), count and int(count[1])

    both = ["one - rain.flac", "one - rain.wav"]
    assert done() == (both, None)
    assert done() == ([], 2)
    (here / "separated/one - rain.wav").unlink()
    assert done() == (["one - rain.wav"], 1)
    with (here / "separated/one - rain.wav").open("ab") as file:
        file.truncate(100)
    assert done() == (["one - rain.wav"], 1)
    recording(here / "in/one.wav", num_samples=501)
    assert done() == (["one - rain.wav"], 1)
    assert done("--subtype", "PCM_24") == (both, None)
    with (here / "separated/separated.jsonl").open("ab") as file:
        file.write(b'{"key": "torn')
    (here / "in/one.wav").touch()
    assert done("--subtype", "PCM_24") == (["one - rain.wav"], 1)
    assert done("--subtype", "PCM_24") == ([], 2)


def test_resume_does_again_what_other_options_wrote_over(here, workdir):
    recording(here / "in.wav")
    arguments = command(workdir, "--resume")
    assert separate.main(arguments) == 0
    first = (here / "separated/in - rain.wav").read_bytes()
    for other in (["--resume", "--not", "hum"], ["--overwrite", "--not", "wind"]):
        assert separate.main(command(workdir, *other)) == 0
        assert (here / "separated/in - rain.wav").read_bytes() != first
        assert separate.main(arguments) == 0
        assert (here / "separated/in - rain.wav").read_bytes() == first


def test_resume_of_a_list_that_names_another_place(here, workdir, capfd):
    recording(here / "a.wav")
    for place in ("x", "y"):
        (here / "list.csv").write_text(f"file,query,output\na.wav,rain,{place}/r\n")
        assert separate.main(["list.csv", "--checkpoint", str(workdir), "--resume"]) == 0
        assert capfd.readouterr().out == f"separated/{place}/r.wav\n"


def test_a_list_writes_over_no_recording(here, workdir, capfd):
    """Also not over one that another row names."""
    for name in ("a.wav", "b.wav"):
        recording(here / name)
    (here / "list.csv").write_text("file,query,output\na.wav,rain,b\nb.wav,wind,c\n")
    before = (here / "b.wav").read_bytes()
    assert separate.main(["list.csv", "--checkpoint", str(workdir), "--output", "."]) == 1
    out, err = capfd.readouterr()
    assert out == "c.wav\n"
    assert "error: b.wav: is an input; choose another output\n" in err
    assert (here / "b.wav").read_bytes() == before


def test_long_names_of_one_beginning_stay_apart(here, workdir):
    names = [f"{'x' * 95}{number}" for number in (1, 2)]
    (here / "in").mkdir()
    for name in names:
        recording(here / "in" / f"{name}.wav")
    assert separate.main(command(workdir, "--plot", recording="in")) == 0
    written = [Path(name).suffix for name in files(here / "separated")]
    assert sorted(written) == [".jsonl", ".png", ".png", ".wav", ".wav"]


def test_a_list_of_files_and_queries(here, workdir, capfd):
    folder_of(here)
    rows = [
        "file,query,output",
        "one.wav,rain,",
        'one.wav,"rain, hail",x/storm.wav',
        "b/one.flac,dog,",
    ]
    (here / "in/list.csv").write_text("\n".join(rows))
    assert separate.main(["in/list.csv", "--checkpoint", str(workdir), "--output", "out"]) == 0
    names = ["b/one - dog.flac", "one - rain.wav", "x/storm.wav"]
    assert sorted(capfd.readouterr().out.splitlines()) == [f"out/{name}" for name in names]
    audio_CS, _ = audio_files.read("in/one.wav")
    expected_CS = Separator.load(workdir).separate(audio_CS, 8000, "rain, hail")
    np.testing.assert_allclose(audio_files.read("out/x/storm.wav")[0], expected_CS, atol=1e-6)


def test_processes_share_the_work_without_overlap(here, workdir, capfd):
    folder_of(here)
    written = []
    for number in (0, 1, 2):
        separate.main(command(workdir, "--shard", f"{number}/3", recording="in"))
        written.append(capfd.readouterr().out.splitlines())
    assert sorted(map(len, written)) == [0, 1, 1]
    assert len(files(here / "separated")) == 3 + 2  # with a folder; the share that failed has none
    assert separate.main(command(workdir, "--resume", recording="in")) == 1
    assert "2 of 3 recordings are done already" in capfd.readouterr().err


def test_processes_that_share_the_work_tell_their_own_part(here, workdir):
    folder_of(here)
    told = []
    for number in (0, 1, 2):
        options = ["--shard", f"{number}/3", "--json", "found.json"]
        separate.main(command(workdir, *options, recording="in"))
        told += json.loads((here / f"found.{number}-of-3.json").read_text())
    assert sorted(x["input"] for x in told) == ["b/one.flac", "one.wav"]
    assert not (here / "found.json").exists()


def test_an_interrupt_leaves_nothing_that_looks_finished(here, workdir, capfd, monkeypatch):
    folder_of(here)

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(SeparationStream, "finish", interrupted)
    assert separate.main(command(workdir, recording="in")) == 130
    assert capfd.readouterr().err.splitlines() == [
        "in: left out are files of other kinds: 1, such as in/notes.txt",
        "stopped; --resume continues with the recordings that are left",
    ]
    assert not (here / "separated").exists()


def test_a_query_without_a_known_word_is_warned_of(here, capfd):
    recording(here / "in.wav")
    save_run(here / "run", words=["a", "dog", "rain"])
    Separator.load(here / "run").save_pretrained(here / "saved")
    for folder in ("run", "saved"):
        queries = ["--text", "....", "--text", "un chien", "--text", "Rain!"]
        arguments = ["in.wav", *queries, "--checkpoint", folder, "--output", f"of {folder}"]
        assert separate.main(arguments) == 0
        warnings = [x for x in capfd.readouterr().err.splitlines() if x.startswith("warning")]
        told = "no word of it was in training, so its result means little"
        assert warnings == [f"warning: --text {x}: {told}" for x in ("....", "un chien")]


# ---------------------------------------------------------------------- nothing is replaced


def test_a_result_replaces_no_other(here, workdir, capfd):
    """Recordings of one name in two folders, or with two suffixes, have results of their own."""
    for folder in ("a", "b"):
        (here / folder).mkdir()
        recording(here / folder / "take.wav", num_samples=300 + 10 * len(folder))
    recording(here / "b" / "take.flac", subtype="PCM_16")
    assert separate.main(command(workdir, recording="a/take.wav")) == 0
    capfd.readouterr()
    first = (here / "separated/take - rain.wav").read_bytes()
    words = "separated/take - rain.wav: exists already; --overwrite replaces it"
    refused(capfd, here, command(workdir, recording="b/take.wav"), words)
    refused(capfd, here, command(workdir, "--resume", recording="b/take.wav"), words)
    assert separate.main(command(workdir, recording="b/take.flac")) == 0  # another name
    assert (here / "separated/take - rain.wav").read_bytes() == first
    assert separate.main(command(workdir, "--overwrite", recording="b/take.wav")) == 0
    capfd.readouterr()


def test_a_folder_separated_again_replaces_nothing(here, workdir, capfd):
    folder_of(here)
    (here / "separated").mkdir()
    (here / "separated/one - rain.wav").write_bytes(b"mine")
    assert separate.main(command(workdir, recording="in")) == 1
    out, err = capfd.readouterr()
    assert out == "separated/b/one - rain.flac\n"
    assert "separated/one - rain.wav: exists already; --overwrite replaces it" in err
    assert (here / "separated/one - rain.wav").read_bytes() == b"mine"
    assert separate.main(command(workdir, "--resume", "--overwrite", recording="in")) == 1
    assert "1 of 3 recordings are done already" in capfd.readouterr().err
    assert (here / "separated/one - rain.wav").read_bytes() != b"mine"


def test_resume_replaces_no_result_of_another_folder(here, workdir, capfd):
    """Two folders with a recording of the same name, into one output folder."""
    for folder in ("a", "b"):
        (here / folder).mkdir()
        recording(here / folder / "take.wav", num_samples=300 + 10 * ord(folder))
    assert separate.main(command(workdir, "--resume", recording="a")) == 0
    capfd.readouterr()
    assert separate.main(command(workdir, "--resume", recording="b")) == 1
    assert "take - rain.wav: exists already" in capfd.readouterr().err


# ---------------------------------------------------------------------- several inputs, one file


def test_several_recordings_at_once(here, workdir, capfd):
    for folder in ("a", "b"):
        (here / folder).mkdir()
        recording(here / folder / "take.wav", scale=0.1 if folder == "a" else 0.2)
    arguments = ["a/take.wav", "b/take.wav", "--text", "rain", "--checkpoint", str(workdir)]
    assert separate.main(arguments) == 0
    out, err = capfd.readouterr()
    names = ["separated/take.wav - rain.wav", "separated/take.wav (2) - rain.wav"]
    assert out.splitlines() == names
    assert [line.partition(":")[0] for line in err.splitlines()] == ["a/take.wav", "b/take.wav"]
    for folder, name in zip("ab", names, strict=True):
        audio_CS, _ = audio_files.read(f"{folder}/take.wav")
        expected_CS = Separator.load(workdir).separate(audio_CS, 8000, "rain")
        np.testing.assert_allclose(audio_files.read(name)[0], expected_CS, rtol=0, atol=1e-6)
    refused(capfd, here, ["a/take.wav", "c.wav", *arguments[2:]], "c.wav: no such file or folder")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dog.wav", ("WAV", "FLOAT")),
        ("new/dog.flac", ("FLAC", "PCM_16")),
        ("Dog.OGG", ("OGG", "VORBIS")),
        ("dog.opus", ("OGG", "OPUS")),
        ("dog.aif", ("AIFF", "FLOAT")),
    ],
)
def test_output_may_name_the_file(here, workdir, capfd, name, expected):
    recording(here / "in.wav")
    assert separate.main(command(workdir, "--output", name)) == 0
    assert capfd.readouterr().out == f"{name}\n"
    info = soundfile.info(name)
    assert (info.format, info.subtype) == expected
    refused(capfd, here, command(workdir, "--output", name), f"{name}: exists already")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--text", "wind"], "--output dog.wav: names one file for 2 results; give a folder"),
        (["--residual"], "names one file for 2 results"),
        (["in.wav", "other.wav"], "names one file for 2 results"),
        (["--output", "dog.m4a"], "dog.m4a: cannot be written as .m4a; choose .wav, .flac"),
        (["--output_format", "flac"], "--output dog.wav: is no flac file"),
    ],
)
def test_output_that_names_a_file_in_vain(here, workdir, capfd, arguments, words):
    for name in ("in.wav", "other.wav"):
        recording(here / name)
    options = [] if "--output" in arguments else ["--output", "dog.wav"]
    inputs = [x for x in arguments if x in ("in.wav", "other.wav")]
    rest = [x for x in arguments if x not in inputs]
    base = [*(inputs or ["in.wav"]), "--text", "rain", "--checkpoint", str(workdir)]
    refused(capfd, here, [*base, *options, *rest], words)


def test_a_gain_is_said(here, workdir, capfd):
    recording(here / "in.wav", scale=0.2)
    assert separate.main(command(workdir)) == 0
    assert "multiplied" not in capfd.readouterr().err
    recording(here / "loud.wav", scale=20, subtype="FLOAT")
    options = ["--subtype", "PCM_16", "--json", "found.json"]
    assert separate.main(command(workdir, *options, recording="loud.wav")) == 0
    (found,) = json.loads((here / "found.json").read_text())
    assert found["gain"] < 0.9
    line = (
        f"all results are multiplied by {found['gain']:.3g} so that none clips; "
        "--output_format wav --subtype FLOAT keeps their level"
    )
    assert capfd.readouterr().err.splitlines()[-1] == line


# ---------------------------------------------------------------------- mistakes


def refused(capfd, here, arguments, words):
    """One line on stderr that says `words`, exit code 2, and nothing written."""
    before = files(here)
    assert separate.main(arguments) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err
    assert files(here) == before


def broken_recordings(here):
    whole = recording(here / "whole.wav").read_bytes()
    (here / "empty.wav").write_bytes(b"")
    (here / "text.wav").write_text("Dear diary,\n" * 50)
    (here / "truncated.wav").write_bytes(whole[: len(whole) // 2])
    (here / "folder.wav").mkdir()
    (here / "two\nlines.wav").write_bytes(b"")
    recording(here / "zero.wav", num_samples=0)
    soundfile.write(here / "nan.wav", np.full(99, np.nan), 8000, subtype="FLOAT")
    soundfile.write(here / "infinite.wav", np.full(99, np.inf), 8000, subtype="FLOAT")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing.wav", "missing.wav: no such file"),
        ("empty.wav", "empty.wav: is empty"),
        ("text.wav", "text.wav: cannot be read as audio"),
        ("truncated.wav", "truncated.wav: is truncated"),
        ("folder.wav", "folder.wav: holds no recordings"),
        ("two\nlines.wav", "two lines.wav: is empty"),
        ("zero.wav", "zero.wav: contains no samples"),
        ("nan.wav", "nan.wav: contains NaN"),
        ("infinite.wav", "infinite.wav: contains NaN or infinite"),
        ("x" * 300, "cannot be opened"),
    ],
)
def test_unusable_recording(here, workdir, capfd, name, words):
    broken_recordings(here)
    refused(capfd, here, command(workdir, recording=name), words)


@pytest.mark.parametrize("text", ["", " \n\t", "\udc80"])
def test_unusable_text(here, workdir, capfd, text):
    recording(here / "in.wav")
    words = "is not valid text" if text.strip() else "--text: a query is empty"
    refused(capfd, here, command(workdir, text=text), words)
    refused(capfd, here, command(workdir, "--text", text), words)


def test_unusable_checkpoint(here, workdir, capfd):
    recording(here / "in.wav")
    refused(capfd, here, command("missing"), "--checkpoint missing: no such folder")
    refused(capfd, here, command("no/such/run"), "--checkpoint no/such/run: no such folder")
    refused(capfd, here, command("in.wav"), "in.wav: is neither a PyTorch checkpoint")
    (here / "empty").mkdir()
    refused(capfd, here, command("empty"), "empty: is no training workdir")
    (here / "empty" / "checkpoints").mkdir()
    refused(capfd, here, command("empty"), "holds no checkpoint yet")


def test_checkpoint_of_another_architecture(here, capfd):
    recording(here / "in.wav")
    config = tiny_config()
    save_run(here / "other", config=config)
    edit_about(here / "other", lambda about: about["config"]["model"].update(stem_channels=5))
    refused(capfd, here, command("other"), "is of another architecture")


@pytest.mark.parametrize("output", ["in.wav", "in.wav/below/it", "x" * 300, "/proc/nothing/here"])
def test_unusable_output(here, workdir, capfd, output):
    recording(here / "in.wav")
    refused(capfd, here, command(workdir, "--output", output), "")


def test_a_name_that_is_taken_by_a_folder_leaves_nothing_behind(here, workdir, capfd):
    """The first of two results is removed again where the second cannot be written."""
    recording(here / "in.wav")
    (here / "out" / "in - dog.wav").mkdir(parents=True)
    refused(
        capfd, here, command(workdir, "--text", "dog", "--output", "out"), "in - dog.wav: cannot"
    )


def test_a_failure_while_writing_removes_new_folders(here, workdir, capfd, monkeypatch):
    recording(here / "in.wav")

    def disk_full(self, audio_CS):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(soundfile.SoundFile, "write", disk_full)
    refused(capfd, here, command(workdir, "--output", "new/deep"), "No space left on device")


def test_a_recording_that_fails_leaves_what_was_told_before(here, workdir, capfd):
    audio_CS = noise(1, 9000)
    audio_CS[0, 8999] = np.nan
    soundfile.write(here / "in.wav", audio_CS.T, 8000, subtype="FLOAT")
    (here / "found.json").write_text("[1]")
    refused(capfd, here, command(workdir, "--json", "found.json"), "found.json: exists already")
    options = ["--json", "found.json", "--overwrite"]
    refused(capfd, here, command(workdir, *options), "NaN")
    assert (here / "found.json").read_text() == "[1]"


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_the_input_is_never_overwritten(here, workdir, capfd, link):
    recording(here / "in.wav")
    link(here / "in.wav", here / "in - rain.wav")
    refused(capfd, here, command(workdir, "--output", "."), "in - rain.wav: ")
    refused(capfd, here, command(workdir, "--output", ".", "--overwrite"), "input; choose another")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required"),
        (["in.wav", "--checkpoint", "run"], "--text"),
        (["in.wav", "--text", "rain", "--checkpoint", "run", "--loud"], "--loud"),
        (["in.wav", "--weight", "2", "--text", "rain"], "must come after the query"),
        (["in.wav", "--text", "a", "--weight", "2", "--text", "b"], "--text b: has no --weight"),
        (["in.wav", "--text", "rain", "--weight", "nan"], "--weight"),
        (["in.wav", "--text", "rain", "--region", "0,0,9,9"], "after the picture that it belongs"),
        (["in.wav", "--image", "a.png", "--region", "0,0,0,9"], "--region: 0,0,0,9 must be X,Y,W"),
        (["in.wav", "--image", "text.jpg"], "--image text.jpg: no such file"),
        (["in.wav", "--text", "rain", "--not", ""], "--not: a query is empty"),
        (
            ["in.wav", "--text", "rain", "--during", "x"],
            "--during: 'x' must be START-END in seconds",
        ),
        (["in.wav", "--text", "rain", "--shard", "2/2"], "--shard: 2/2"),
        (["in.wav", "--text", "rain", "--tile_seconds", "nan"], "--tile_seconds: nan is not in"),
        (["in.wav", "--text", "rain", "--output", "/dev/null/x"], "--output"),
        (["in.wav", "--text", "rain", "--json", "/dev/null/x.json"], "--json"),
        (["in.wav", "--text", "rain", "--json", "in.wav"], "--json in.wav: must end in .json"),
        (["in.wav", "--text", "x", "--output_format", "mp3", "--subtype", "PCM_16"], "mp3 has no"),
    ],
)
def test_mistyped(here, capfd, arguments, words):
    refused(capfd, here, arguments, words)


# ---------------------------------------------------------------------- as a user runs it


def run(here, *arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        cwd=here,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parent)},
        check=False,
    )


def test_as_a_process(here, workdir):
    recording(here / "in.wav", num_channels=2)
    done = run(here, *command(workdir, "--output", "out", text="a dog 🐶"))
    assert (done.returncode, done.stdout) == (0, "out/in - a dog 🐶.wav\n")
    assert done.stderr.startswith("a dog 🐶: presence ")
    assert done.stderr.count("\n") == 1
    assert files(here) == ["in.wav", "out", "out/in - a dog 🐶.wav"]


def test_whoever_reads_the_paths_may_leave(here, workdir):
    folder_of(here)
    process = subprocess.Popen(
        [sys.executable, SCRIPT, *command(workdir, recording="in")],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    with process:
        told = process.stderr.read()
    assert process.returncode == 1  # of the recording that is bad
    assert "Traceback" not in told
    assert {"one - rain.wav", "b/one - rain.flac"} <= set(files(here / "separated"))


def test_sigterm_leaves_nothing_behind(here, workdir):
    recording(here / "in.wav", num_samples=4_000_000)
    with subprocess.Popen(
        [sys.executable, SCRIPT, *command(workdir, "--tile_seconds", "0.2", "--output", "out")],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parent)},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while not list(here.glob("out/.*.partial*")):
            assert process.poll() is None
            time.sleep(0.05)
        process.terminate()
        said = process.stderr.read()
    assert process.returncode == 143
    assert said == "stopped; --resume continues with the recordings that are left\n"
    assert files(here) == ["in.wav"]


def test_a_mistake_as_a_process(here, workdir):
    done = run(here, *command(workdir, recording="none.wav"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: none.wav: no such file\n"
    assert files(here) == []


def test_help_shows_an_example_without_loading_the_library():
    code = (
        f"import runpy, sys; sys.argv = ['separate.py', '--help']\n"
        f"try: runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        f"finally: assert not {{'jax', 'numpy', 'orbax'}} & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        'audiosep separate street.wav --text "a dog barking" --checkpoint runs/demo' in done.stdout
    )
