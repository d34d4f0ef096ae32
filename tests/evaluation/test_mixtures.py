"""Mixtures of a list: their samples, the files they are rendered to, and lists made at random."""

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
from evaluation_examples import CLASSES, RATE_HZ, write_clips, write_list

from audiosep_jax.audio import files as audio_files
from audiosep_jax.audio.files import AudioError
from audiosep_jax.data.clips import Clip
from audiosep_jax.errors import InputError
from audiosep_jax.evaluation.lists import Item, items_of, read_list
from audiosep_jax.evaluation.mixtures import clips_of, load, make_pairs, render, seconds_of
from audiosep_jax.evaluation.protocols import PROTOCOLS


def item(folder, noises=("clip1.wav",), **changes):
    basic = Item(0, "0", "dog", "dog", folder / "clip0.wav", None)
    basic = dataclasses.replace(basic, noises=tuple(folder / name for name in noises))
    return dataclasses.replace(basic, **changes)


def power(x):
    return np.mean(np.square(x, dtype=np.float64))


@pytest.mark.parametrize("snr_db", [-15, 0, 7.5])
def test_pair_is_mixed_at_its_snr(tmp_path, snr_db):
    clips = write_clips(tmp_path, 2)
    made = load(item(tmp_path, snr_db=snr_db), RATE_HZ)
    noise_S = made.mixture_S - made.target_S
    assert 10 * np.log10(power(made.target_S) / power(noise_S)) == pytest.approx(snr_db, abs=1e-4)
    # Which of the two is the target: they share nothing but a scale.
    assert np.corrcoef(made.target_S, clips["clip0.wav"])[0, 1] > 0.999999
    assert np.corrcoef(noise_S, clips["clip1.wav"])[0, 1] > 0.999999


def test_loud_mixture_is_brought_below_one(tmp_path):
    clips = write_clips(tmp_path, 2)
    for name, audio_S in clips.items():
        audio_files.write(tmp_path / name, 30 * audio_S[None], RATE_HZ)
    made = load(item(tmp_path, snr_db=0), RATE_HZ)
    assert np.abs(made.mixture_S).max() == pytest.approx(0.9)
    noise_S = made.mixture_S - made.target_S
    assert power(made.target_S) / power(noise_S) == pytest.approx(1, abs=1e-4)


def test_without_snr_the_noise_is_added_as_it_is(tmp_path):
    clips = write_clips(tmp_path, 2)
    made = load(item(tmp_path), RATE_HZ)
    np.testing.assert_array_equal(made.target_S, clips["clip0.wav"])
    np.testing.assert_array_equal(made.mixture_S, clips["clip0.wav"] + clips["clip1.wav"])


def test_two_noises_are_equally_loud(tmp_path):
    clips = write_clips(tmp_path, 3)
    made = load(item(tmp_path, ("clip1.wav", "clip2.wav"), snr_db=3.0), RATE_HZ)
    noise_S = made.mixture_S - made.target_S
    assert 10 * np.log10(power(made.target_S) / power(noise_S)) == pytest.approx(3, abs=1e-4)
    basis = np.stack(
        [clips[f"clip{n}.wav"] / np.sqrt(power(clips[f"clip{n}.wav"])) for n in (1, 2)]
    )
    shares = np.linalg.lstsq(basis.T, noise_S, rcond=None)[0]
    assert shares[0] == pytest.approx(shares[1], rel=1e-4)


def test_given_mixture_is_read_in_step_with_its_target(tmp_path):
    clips = write_clips(tmp_path, 2)
    mixture_S = clips["clip0.wav"] + clips["clip1.wav"]
    audio_files.write(tmp_path / "mix.wav", mixture_S[None], RATE_HZ)
    whole = item(tmp_path, (), mixture=tmp_path / "mix.wav")
    made = load(whole, RATE_HZ)
    np.testing.assert_array_equal(made.target_S, clips["clip0.wav"])
    np.testing.assert_array_equal(made.mixture_S, mixture_S)
    part = dataclasses.replace(whole, target_start_seconds=0.05, seconds=0.1)
    made = load(part, RATE_HZ)
    np.testing.assert_array_equal(made.target_S, clips["clip0.wav"][400:1200])
    np.testing.assert_array_equal(made.mixture_S, mixture_S[400:1200])
    assert seconds_of(part) == 0.1


def test_noise_starts_where_told_and_again_when_it_ends(tmp_path):
    clips = write_clips(tmp_path, 2)
    made = load(item(tmp_path, noise_start_seconds=0.1), RATE_HZ)
    tail_S = clips["clip1.wav"][800:]
    noise_S = np.concatenate([tail_S, tail_S])
    np.testing.assert_array_equal(made.mixture_S, clips["clip0.wav"] + noise_S)


@pytest.mark.parametrize("rate_hz", [RATE_HZ, 16000, 11025])
def test_lengths_at_any_rate(tmp_path, rate_hz):
    write_clips(tmp_path, 2, 1601)
    one = item(tmp_path, snr_db=0)
    made = load(one, rate_hz)
    assert len(made.mixture_S) == len(made.target_S) == -(-1601 * rate_hz // RATE_HZ)
    assert seconds_of(one) == 0.201
    assert seconds_of(dataclasses.replace(one, seconds=0.3)) == 0


def test_files_that_will_not_do_are_named(tmp_path):
    clips = write_clips(tmp_path, 2)
    audio_files.write(tmp_path / "short.wav", clips["clip1.wav"][None, :-2], RATE_HZ)
    audio_files.write(tmp_path / "silent.wav", 0 * clips["clip1.wav"][None], RATE_HZ)
    cut = (tmp_path / "clip1.wav").read_bytes()[:-100]
    (tmp_path / "cut.wav").write_bytes(cut)
    short = item(tmp_path, (), mixture=tmp_path / "short.wav")
    cases = [
        (short, r"short\.wav: is short, 1598 samples, 1600 are needed to match .*clip0\.wav"),
        (item(tmp_path, (), mixture=tmp_path / "no.wav"), r"no\.wav: no such file"),
        (item(tmp_path, ("cut.wav",)), r"cut\.wav: is truncated"),
        (item(tmp_path, seconds=0.3), r"clip0\.wav: is 0\.2 s long, 0\.3 s are needed"),
        (item(tmp_path, noise_start_seconds=0.2), r"clip1\.wav: is 0\.2 s long, more than 0\.2"),
    ]
    for bad, message in cases:
        with pytest.raises(AudioError, match=message):
            load(bad, RATE_HZ)
    with pytest.raises(AudioError, match=r"silent\.wav: is silent"):
        load(item(tmp_path, ("silent.wav",), snr_db=0), RATE_HZ)
    swapped = dataclasses.replace(short, target=short.mixture, mixture=short.target)
    with pytest.raises(AudioError, match=r"short\.wav: is short"):
        load(swapped, RATE_HZ)


def test_fingerprint_is_of_content_and_mixing(tmp_path):
    write_clips(tmp_path, 3)
    one = item(tmp_path, snr_db=0)
    others = [item(tmp_path, snr_db=1), item(tmp_path, ("clip2.wav",), snr_db=0)]
    prints = [load(x, RATE_HZ).fingerprint for x in (one, *others)]
    assert len(set(prints)) == 3
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("clip0.wav", "clip1.wav"):
        (copy / name).write_bytes((tmp_path / name).read_bytes())
    assert load(item(copy, snr_db=0), RATE_HZ).fingerprint == prints[0]


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def render_own(tmp_path, output, **options):
    protocol = PROTOCOLS["mixtures"]
    rows = read_list(protocol, tmp_path / "list.csv", tmp_path)
    items = items_of(protocol, rows, tmp_path, tmp_path)
    options = {"num_threads": 2} | options
    render(items, output, RATE_HZ, **options)
    return items


def test_rendered_twice_or_by_two_processes_are_the_same_bytes(tmp_path):
    write_clips(tmp_path, 5)
    rows = [
        (f"m{n}", "dog", f"clip{n}.wav", f"clip{n + 1}.wav", snr, f"noise m{n}")
        for n, snr in enumerate(("-5", "", "7", "-5"))
    ]
    header = ("id", "query", "target", "noise", "snr", "noise_query")
    write_list(tmp_path / "list.csv", header, rows)
    items = render_own(tmp_path, tmp_path / "once")
    for n in (1, 0):
        render_own(tmp_path, tmp_path / "shared", shard=(n, 2), num_threads=1)
    once = contents(tmp_path / "once")
    assert len(once) == 10  # with the list of the mixtures, and the mark of the list rendered
    assert contents(tmp_path / "shared") == once
    # What is rendered is what is scored, and it can be read back.
    protocol = PROTOCOLS["mixtures"]
    folder = tmp_path / "once"
    again = items_of(protocol, read_list(protocol, folder / "mixtures.csv", folder), folder, folder)
    for made, back in zip(items, again, strict=True):
        np.testing.assert_array_equal(load(back, RATE_HZ).mixture_S, load(made, RATE_HZ).mixture_S)
        np.testing.assert_array_equal(load(back, RATE_HZ).target_S, load(made, RATE_HZ).target_S)
        assert (back.id, back.query, back.label) == (made.id, made.query, made.label)
        assert back.noise_query == made.noise_query == f"noise {made.id}"


def test_rendering_stays_inside_its_folder(tmp_path):
    write_clips(tmp_path, 2)
    table = "id,query,target,noise\n{},dog,clip0.wav,clip1.wav\n{},dog,clip0.wav,clip1.wav\n"
    for first, message in (
        ("/../../x", "line 2 of the list would be written outside"),
        ("b", "same id and file name"),
    ):
        (tmp_path / "list.csv").write_text(table.format(first, "b"))
        with pytest.raises(InputError, match=message):
            render_own(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rendering_replaces_nothing_of_another_list(tmp_path):
    write_clips(tmp_path, 3)
    table = "id,query,target,noise\n0,dog,clip0.wav,{}\n"
    (tmp_path / "list.csv").write_text(table.format("clip1.wav"))
    render_own(tmp_path, tmp_path / "out")
    before = contents(tmp_path / "out")
    render_own(tmp_path, tmp_path / "out")
    (tmp_path / "list.csv").write_text(table.format("clip2.wav"))
    with pytest.raises(InputError, match="holds mixtures of another list or sample rate"):
        render_own(tmp_path, tmp_path / "out")
    (tmp_path / "list.csv").write_text(table.format("out/mixture-0.wav"))
    with pytest.raises(InputError, match=r"out/mixture-0\.wav: would be replaced"):
        render_own(tmp_path, tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_random_pairs(tmp_path):
    clips = [Clip(tmp_path / "audio" / f"{n}.wav", (CLASSES[n % 3],)) for n in range(9)]
    path = tmp_path / "pairs.csv"
    for name in ("pairs.csv", "again.csv", "other.csv"):
        seed = 1 if name == "other.csv" else 0
        make_pairs(clips, tmp_path, tmp_path / name, num_pairs=20, snrs_db=(-5, 0), seed=seed)
    assert path.read_bytes() == (tmp_path / "again.csv").read_bytes()
    assert path.read_bytes() != (tmp_path / "other.csv").read_bytes()
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20
    assert set(np.unique([row["target"] for row in rows], return_counts=True)[1]) == {2, 3}
    captions = {f"audio/{n}.wav": CLASSES[n % 3] for n in range(9)}
    for number, row in enumerate(rows):
        assert row["query"] == captions[row["target"]] != captions[row["noise"]]
        assert (row["noise_query"], row["snr"]) == (
            captions[row["noise"]],
            "-5" if number % 2 == 0 else "0",
        )
    protocol = PROTOCOLS["mixtures"]
    items = items_of(protocol, read_list(protocol, path, tmp_path), tmp_path, tmp_path)
    assert items[3].snr_db == 0
    with pytest.raises(InputError, match="two different captions"):
        make_pairs(clips[::3], tmp_path, path, num_pairs=2, snrs_db=(0,), seed=0)


def test_clips_of_a_folder(tmp_path, shared):
    assert len(clips_of(shared / "data" / "esc10", [4])) == 80
    assert len(clips_of(shared / "data" / "esc10", [])) == 320
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "a.wav").touch()
    assert list(clips_of(tmp_path, [])) == [Clip(tmp_path / "dog" / "a.wav", ("dog",))]
    with pytest.raises(InputError, match="has no folds"):
        clips_of(tmp_path, [4])
    manifest = tmp_path / "m.json"
    manifest.write_text('{"data": [{"wav": "x.wav", "caption": "rain"}]}')
    assert list(clips_of(manifest, [])) == [Clip(Path(tmp_path / "x.wav"), ("rain",))]


def test_clips_have_no_pictures(tmp_path):
    manifest = tmp_path / "m.json"
    manifest.write_text(
        '{"data": [{"wav": "x.wav", "caption": "rain", "image": "m.json"},'
        ' {"wav": "y.wav", "image": "m.json"}]}'
    )
    assert list(clips_of(manifest, [])) == [Clip(Path(tmp_path / "x.wav"), ("rain",))]
