"""pipeline: every batch is a function of (seed, step), whoever computes it."""

import collections
import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from audiosep_jax.audio_io import AudioError
from audiosep_jax.data import mixing as mixing_lib
from audiosep_jax.data.data_config import DataConfig
from audiosep_jax.data.mixing import MixingConfig
from audiosep_jax.data.pipeline import BadClips, train_batches, validation_set
from audiosep_jax.data.sources import build_source
from audiosep_jax.errors import InputError

S = 64  # samples in a segment, one second of them
SERIAL = DataConfig(segment_seconds=1.0, num_threads=0)
MIXING = MixingConfig()


@dataclasses.dataclass(frozen=True)
class Tones:
    """Clip k is a faint sine in bin k + 1 of every segment, so that a mixture shows its parts."""

    all_captions: tuple[tuple[str, ...], ...]
    bad: frozenset[int] = frozenset()
    silent: frozenset[int] = frozenset()
    sample_rate_hz: int = S

    def __len__(self):
        return len(self.all_captions)

    def captions(self, index):
        return self.all_captions[index]

    def name(self, index):
        return f"tone/{index}"

    def load(self, index):
        if index in self.bad:
            raise AudioError(f"tone/{index}: is out of tune")
        amplitude = 0.0 if index in self.silent else 0.01
        phase_S = 2 * np.pi * (index + 1) * np.arange(3 * S // 2) / S
        return (amplitude * np.sin(phase_S)).astype(np.float32)


def tones(num_clips, **options):
    return Tones(tuple((f"tone {k:02d}",) for k in range(num_clips)), **options)


def conditions_of(source):
    """One-hot, so that a batch shows which caption was drawn."""
    captions = sorted({c for index in range(len(source)) for c in source.captions(index)})
    return dict(zip(captions, np.eye(len(captions), dtype=np.float32), strict=True))


def tone_numbers(audio_BS):
    return np.argmax(np.abs(np.fft.rfft(audio_BS, axis=-1)), axis=-1) - 1


def batches(source, num_steps, *, data=SERIAL, mixing=MIXING, **options):
    options = {"seed": 0, "batch_size": 4, "first_step": 0} | options
    stream = train_batches(source, conditions_of(source), mixing, data, **options)
    try:
        return [
            {key: np.array(value) for key, value in batch.items()}
            for batch in itertools.islice(stream, num_steps)
        ]
    finally:
        stream.close()


def targets(rows):
    return np.concatenate([tone_numbers(batch["target"]) for batch in rows])


def assert_same(actual, expected):
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert one.keys() == other.keys() == {"mixture", "target", "condition", "bad_clips"}
        for key in one:
            np.testing.assert_array_equal(one[key], other[key], err_msg=key)


# ---------------------------------------------------------------------------- determinism


def test_resumes_at_any_step():
    source = tones(12, bad=frozenset({3, 7}))
    whole = batches(source, 8)
    for first_step in (1, 3, 7):
        assert_same(batches(source, 8 - first_step, first_step=first_step), whole[first_step:])


@pytest.mark.parametrize("num_hosts", [1, 2, 4])
def test_hosts_share_one_stream(num_hosts):
    source = tones(12, bad=frozenset({3, 7}))
    whole = batches(source, 5, batch_size=8, first_step=2)
    hosts = [
        batches(source, 5, batch_size=8, first_step=2, process_index=p, process_count=num_hosts)
        for p in range(num_hosts)
    ]
    for step, expected in enumerate(whole):
        assert all(len(host[step]["mixture"]) == 8 // num_hosts for host in hosts)
        for key, rows in expected.items():
            woven = np.stack([host[step][key] for host in hosts], axis=1).reshape(rows.shape)
            np.testing.assert_array_equal(woven, rows)


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_threads_change_nothing(num_threads):
    source = tones(12, bad=frozenset({3}))
    data = dataclasses.replace(SERIAL, num_threads=num_threads)
    assert_same(batches(source, 12, data=data), batches(source, 12))


def test_worker_processes_change_nothing():
    source = tones(12, bad=frozenset({3}))
    data = dataclasses.replace(SERIAL, num_workers=1, num_threads=1)
    assert_same(batches(source, 6, data=data, first_step=1), batches(source, 6, first_step=1))


def test_real_clips_and_threads(shared):
    root = str(shared / "data" / "esc10")
    data = DataConfig(source="esc50", root=root, train_folds=(1,), valid_folds=(4,))
    source = build_source(data, "train", 8000)
    serial = dataclasses.replace(data, num_threads=0)
    threaded = batches(source, 3, data=data)
    assert_same(threaded, batches(source, 3, data=serial))
    for batch in threaded:
        assert batch["mixture"].shape == (4, 40000)
        assert np.abs(batch["mixture"]).max() <= 1
        assert (batch["bad_clips"] == -1).all()


def test_seeds_and_epochs_differ():
    source = tones(10)
    epochs = {
        (seed, epoch): tuple(
            targets(batches(source, 5, seed=seed, first_step=5 * epoch, batch_size=2))
        )
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(set(epochs.values())) == 9  # 9 of 3.6 million orders: none may repeat another


def test_seeds_differ_in_gains_and_not_in_order_alone():
    def noise_energies(seed):
        (batch,) = batches(tones(30), 1, seed=seed, batch_size=400)
        rest_BS = batch["mixture"] - batch["target"]
        return np.mean(np.square(rest_BS), axis=1)

    # Row by row 1 pair of 21 gains agrees by chance, whatever the order of the clips.
    same = np.isclose(noise_energies(0), noise_energies(1), rtol=1e-3)
    assert 0.01 < same.mean() < 0.12


def test_every_clip_is_the_target_once_an_epoch():
    # Batches of 4 out of 10 cross the ends of epochs.
    drawn = targets(batches(tones(10), 10)).reshape(4, 10)
    np.testing.assert_array_equal(np.sort(drawn), np.tile(np.arange(10), (4, 1)))


# ------------------------------------------------------------------------------- contents


def test_rows_hold_target_interferer_and_condition():
    source = tones(30)  # as many as there are bins
    gains_db, pairs = [], set()
    for batch in batches(source, 100):
        target_B = tone_numbers(batch["target"])
        rest_BS = batch["mixture"] - batch["target"]
        interferer_B = tone_numbers(rest_BS)
        np.testing.assert_array_equal(np.argmax(batch["condition"], axis=1), target_B)
        energies = [np.mean(np.float64(x) ** 2, axis=1) for x in (rest_BS, batch["target"])]
        gains_db.extend(10 * np.log10(energies[0] / energies[1]))
        pairs.update(zip(target_B, interferer_B, strict=True))
    assert all(one != other for one, other in pairs)
    assert len(pairs) > 250  # 400 draws from 870
    np.testing.assert_allclose(gains_db, np.round(gains_db), atol=1e-3)
    assert set(np.round(gains_db)) == set(range(-10, 11))


def test_any_number_of_interferers():
    mixing = MixingConfig(max_mix_num=4, min_gain_db=0, max_gain_db=0)
    counts = collections.Counter()
    for batch in batches(tones(30), 50, mixing=mixing):
        spectra = np.abs(np.fft.rfft(batch["mixture"] - batch["target"], axis=-1))
        counts.update((spectra > 0.1 * spectra.max(axis=1, keepdims=True)).sum(axis=1).tolist())
    # Twice the same interferer is drawn now and then, hence no exact thirds.
    assert set(counts) == {1, 2, 3}
    assert min(counts.values()) > 40


def test_captions_are_drawn_evenly():
    source = Tones((("a", "b", "c"), ("d",)) * 10)
    drawn = collections.Counter()
    for batch in batches(source, 150):
        drawn.update(np.argmax(batch["condition"], axis=1).tolist())
    assert drawn[3] == 300  # d
    assert all(60 < drawn[k] < 140 for k in range(3))


def test_no_mixture_of_two_clips_that_one_sentence_describes():
    # 0 and 1 share a caption but for case and spaces; so do 1 and 2, by another caption.
    source = Tones((("A dog",), ("a  dog ", "bark"), ("Bark", "woof"), ("cat",)))
    pairs = set()
    for batch in batches(source, 30):
        rest_BS = batch["mixture"] - batch["target"]
        numbers = tone_numbers(batch["target"]), tone_numbers(rest_BS)
        pairs.update(zip(*(n.tolist() for n in numbers), strict=True))
    assert pairs == {(0, 2), (0, 3), (1, 3), (2, 0), (2, 3), (3, 0), (3, 1), (3, 2)}


def test_a_rare_partner_is_found():
    source = Tones((("common",),) * 2000 + (("rare",),))
    small = dataclasses.replace(SERIAL, segment_seconds=0.1)
    for batch in batches(source, 3, data=small, batch_size=16):
        assert not np.array_equal(batch["mixture"], batch["target"])


def test_a_clip_without_partner_is_named():
    with pytest.raises(InputError, match=r"another caption to mix with tone/0 \('dog'\)"):
        batches(Tones((("dog",), ("Dog",), ("dog", "cat"))), 1)
    with pytest.raises(InputError, match="no clips"):
        batches(Tones(()), 1)


def test_what_cannot_work_is_refused_at_once():
    source = tones(4)
    with pytest.raises(InputError, match="batch_size 6"):
        batches(source, 1, batch_size=6, process_count=4)
    table = {caption: np.zeros(1) for caption in list(conditions_of(source))[:3]}
    with pytest.raises(ValueError, match="'tone 03'"):
        train_batches(source, table, MIXING, SERIAL, seed=0, batch_size=2, first_step=0)


# ------------------------------------------------------------------------------ bad clips


def test_bad_clips_are_replaced_and_reported():
    bad = frozenset({2, 5})
    reported = set()
    for batch in batches(tones(10, bad=bad), 20):
        numbers = tone_numbers(batch["target"]), tone_numbers(batch["mixture"] - batch["target"])
        assert not bad & set(np.concatenate(numbers).tolist())
        np.testing.assert_array_equal(np.argmax(batch["condition"], axis=1), numbers[0])
        reported |= set(batch["bad_clips"].ravel().tolist())
    assert reported == bad | {-1}


def test_every_bad_target_is_reported_in_its_own_row():
    rows = batches(tones(10, bad=frozenset({2})), 5, batch_size=2)
    good = targets(batches(tones(10), 5, batch_size=2))
    bad_NM = np.concatenate([batch["bad_clips"] for batch in rows])
    assert bad_NM[list(good).index(2), 0] == 2


@pytest.mark.parametrize(("num_threads", "num_workers"), [(0, 0), (2, 0), (1, 1)])
def test_nothing_but_bad_clips_is_fatal(num_threads, num_workers):
    source = tones(20, bad=frozenset(range(20)))
    data = dataclasses.replace(SERIAL, num_threads=num_threads, num_workers=num_workers)
    with pytest.raises(InputError, match=r"8 clips drawn .* tone/\d+: is out of tune"):
        batches(source, 1, data=data)


def test_a_small_set_of_bad_clips_is_fatal_too():
    with pytest.raises(InputError, match="no clip is left to draw; 3 were unusable"):
        batches(tones(3, bad=frozenset(range(3))), 1)
    with pytest.raises(InputError, match="without the captions 'tone 00' is left"):
        batches(tones(3, bad=frozenset({1, 2})), 1)


def test_bad_clips_are_named_once_until_there_are_too_many():
    source = tones(10, bad=frozenset({2, 5, 7}))
    skipped = BadClips(source, max_bad_share=0.2)
    assert skipped.update(np.full((4, 3), -1)) == []
    assert skipped.update(np.array([[-1, 5], [5, -1]])) == ["skipping tone/5: is out of tune"]
    assert skipped.update(np.array([[5, 2]])) == ["skipping tone/2: is out of tune"]
    assert skipped.update(np.array([[5, 2]])) == []
    with pytest.raises(InputError, match=r"3 of 10 clips \(30\.0%\).*max_bad_share=0\.2.*tone/7"):
        skipped.update(np.array([[7, -1]]))


def test_a_clip_that_is_good_again_is_still_counted():
    skipped = BadClips(tones(10), max_bad_share=0.05)
    with pytest.raises(InputError, match="1 of 10"):
        skipped.update(np.array([[3]]))


# ----------------------------------------------------------------------------- validation


def validate(source, **options):
    options = {"seed": 0, "num_mixtures": 30} | options
    return validation_set(source, conditions_of(source), MIXING, SERIAL, **options)


@pytest.mark.parametrize("gain_db", [-15, 0, 6])
def test_validation_mixtures_have_the_snr_asked_for(gain_db):
    fixed = validate(tones(10), gain_db=gain_db)
    rest_NS = fixed["mixture"].astype(np.float64) - fixed["target"]
    for target_S, rest_S in zip(fixed["target"], rest_NS, strict=True):
        ratio = mixing_lib.energy(target_S) / mixing_lib.energy(rest_S)
        assert 10 * np.log10(ratio) == pytest.approx(gain_db, abs=1e-3)


def test_validation_rows_fit_together():
    fixed = validate(tones(10))
    target_N = tone_numbers(fixed["target"])
    interferer_N = tone_numbers(fixed["mixture"] - fixed["target"])
    wrong_N = np.argmax(fixed["wrong_condition"], axis=1)
    np.testing.assert_array_equal(np.argmax(fixed["condition"], axis=1), target_N)
    assert fixed["caption"] == [f"tone {k:02d}" for k in target_N]
    assert fixed["source_id"] == [f"tone/{k}" for k in target_N]
    assert (np.bincount(target_N, minlength=10) == 3).all()  # 30 mixtures of 10 clips
    assert len(set(wrong_N)) > 5
    for three in zip(target_N, interferer_N, wrong_N, strict=True):
        assert len(set(three)) == 3


def test_validation_depends_on_its_seed_alone():
    first, again, other = (validate(tones(10), seed=seed) for seed in (3, 3, 4))
    for key in first:
        np.testing.assert_array_equal(first[key], again[key], err_msg=key)
    assert not np.array_equal(first["mixture"], other["mixture"])
    # A longer set begins with the shorter one while it stays within one round of the clips.
    np.testing.assert_array_equal(
        validate(tones(10), num_mixtures=4)["target"],
        validate(tones(10), num_mixtures=8)["target"][:4],
    )


def test_validation_of_two_captions_takes_the_interferers_as_the_wrong_one():
    fixed = validate(tones(2))
    np.testing.assert_array_equal(fixed["wrong_condition"], 1 - fixed["condition"])


def test_validation_leaves_out_bad_and_silent_clips():
    fixed = validate(tones(10, bad=frozenset({1, 4}), silent=frozenset({6})))
    rest_NS = fixed["mixture"] - fixed["target"]
    used = np.concatenate([tone_numbers(fixed["target"]), tone_numbers(rest_NS)])
    assert set(used) == set(range(10)) - {1, 4, 6}
    assert fixed["bad_clips"] == [1, 4]
    with pytest.raises(InputError, match="silent"):
        validate(tones(3, silent=frozenset(range(3))))


# ------------------------------------------------------------------------------ processes


WORKER_SCRIPT = """
import sys, time
sys.path[:0] = {paths!r}
from test_pipeline import SERIAL, MIXING, conditions_of, tones
from audiosep_jax.data import pipeline
import dataclasses, multiprocessing

if __name__ == "__main__":
    source, data = tones(4), dataclasses.replace(SERIAL, num_workers=1, num_threads=1)
    stream = pipeline.train_batches(
        source, conditions_of(source), MIXING, data, seed=0, batch_size=2, first_step=0
    )
    next(stream)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(60)
"""


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")
def test_workers_end_when_their_parent_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    script.write_text(WORKER_SCRIPT.format(paths=paths))
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    try:
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert workers
        assert all(map(is_running, workers))
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()  # not read to its end, which an orphan would hold open
    deadline = time.monotonic() + 30
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.2)
    orphans = [pid for pid in workers if is_running(pid)]
    for pid in orphans:
        os.kill(pid, signal.SIGKILL)
    assert not orphans
