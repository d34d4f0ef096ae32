"""pipeline: every batch is a function of (seed, step), whoever computes it."""

import collections
import dataclasses
import functools
import threading

import numpy as np
import pytest
from tones import (
    MIXING,
    SERIAL,
    S,
    Tones,
    assert_same,
    batches,
    conditions_of,
    targets,
    tone_numbers,
    tones,
)

from audiosep_jax.data.augment import AugmentConfig
from audiosep_jax.data.batches import ClipSampler
from audiosep_jax.data.captions import Captions
from audiosep_jax.data.mixing import MixingConfig
from audiosep_jax.data.pipeline import target_recordings, train_batches
from audiosep_jax.data.sources import DataConfig, WeightedSources, build_source
from audiosep_jax.errors import InputError

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


def test_a_batch_that_hosts_cannot_share_is_refused():
    with pytest.raises(InputError, match="batch_size 6"):
        batches(tones(4), 1, batch_size=6, process_count=4)


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
    with pytest.raises(InputError, match=r"is left to draw; 20 .* tone/\d+: is out of tune"):
        batches(source, 1, data=data)


def test_a_small_set_of_bad_clips_is_fatal_too():
    with pytest.raises(InputError, match="no clip is left to draw; 3 were unusable"):
        batches(tones(3, bad=frozenset(range(3))), 1)
    with pytest.raises(InputError, match="without the captions 'tone 00' is left"):
        batches(tones(3, bad=frozenset({1, 2})), 1)


@pytest.mark.slow
def test_a_third_of_bad_clips_ends_no_stream():
    bad = frozenset(np.random.default_rng(0).permutation(200)[:60].tolist())
    small = dataclasses.replace(SERIAL, segment_seconds=0.05)
    drawn = batches(tones(200, bad=bad), 200, data=small, batch_size=96)
    assert len(drawn) == 200


def test_one_clip_a_batch():
    source = tones(12)
    single = batches(source, 8, batch_size=1, first_step=4)
    (whole,) = batches(source, 1, batch_size=8, seed=0, first_step=0)
    assert single[0]["mixture"].shape == (1, 64)
    ahead = batches(source, 12, batch_size=1)
    np.testing.assert_array_equal(ahead[3]["mixture"][0], whole["mixture"][3])
    np.testing.assert_array_equal(ahead[4]["mixture"], single[0]["mixture"])


@pytest.mark.parametrize(("num_threads", "num_workers"), [(0, 0), (2, 0), (1, 1)])
def test_batches_are_placed_ahead_of_time_in_a_thread(num_threads, num_workers):
    source, main = tones(8), threading.get_ident()
    data = dataclasses.replace(SERIAL, num_threads=num_threads, num_workers=num_workers)
    where = []

    def place(batch):
        where.append(threading.get_ident())
        return batch | {"placed": True}

    stream = train_batches(
        *(source, conditions_of(source), MIXING, data),
        **{"seed": 0, "batch_size": 4, "first_step": 0, "place": place},
    )
    drawn = [next(stream) for _ in range(3)]
    stream.close()
    assert all(batch.pop("placed") for batch in drawn)
    assert_same(drawn, batches(source, 3))
    assert (main in where) == (num_threads == 0)
    assert threading.active_count() < 20


# ------------------------------------------------------------------------------- data sets


def weighted():
    """Clips 0 to 499 with a quarter of the stream, 500 to 1499 with the rest."""
    return WeightedSources([tones(500), tones(1000)], weights=(1, 3))


def stream_of_targets(source, count, first=0, step=1):
    rows = target_recordings(ClipSampler(source), 7)[first::step]
    return np.array([rows[position] for position in range(count)])


def test_data_sets_are_mixed_by_weight_in_no_fixed_pattern():
    for first, step in ((0, 1), (0, 2), (1, 2), (3, 4)):
        assert abs(np.mean(stream_of_targets(weighted(), 1000, first, step) >= 500) - 0.75) < 0.05


def test_each_data_set_goes_through_epochs_of_its_own():
    # A window of 4096 positions holds 1024 and 3072 targets.
    counts = np.bincount(stream_of_targets(weighted(), 4096), minlength=1500)
    assert counts.sum() == 4096
    assert set(counts[:500]) == {2, 3}
    assert set(counts[500:]) == {3, 4}


def test_equal_halves_do_not_alias_between_two_hosts():
    halves = WeightedSources([tones(400), tones(400)])
    for first in range(2):
        assert 0.4 < np.mean(stream_of_targets(halves, 500, first, 2) < 400) < 0.6


def test_hosts_share_one_stream_of_several_data_sets():
    source = weighted()
    whole = batches(source, 3, batch_size=8)
    hosts = [batches(source, 3, batch_size=8, process_index=p, process_count=2) for p in range(2)]
    for step, batch in enumerate(whole):
        woven = np.stack([host[step]["mixture"] for host in hosts], axis=1)
        np.testing.assert_array_equal(woven.reshape(batch["mixture"].shape), batch["mixture"])
    assert_same(batches(source, 1, batch_size=8, first_step=2), whole[2:])


# ---------------------------------------------------------------------------- augmentation


def augmented(source, num_steps, augment, **options):
    options = {"seed": 0, "batch_size": 4, "first_step": 0} | options
    stream = train_batches(source, conditions_of(source), MIXING, SERIAL, augment, **options)
    try:
        return [next(stream) for _ in range(num_steps)]
    finally:
        stream.close()


ALL = AugmentConfig(
    gain_probability=0.5,
    polarity_probability=0.5,
    reverb_probability=0.3,
    silence_probability=0.3,
    absent_probability=0.3,
)


def test_augmentation_is_a_function_of_the_position():
    source = tones(12)
    whole = augmented(source, 6, ALL)
    assert_same(augmented(source, 2, ALL, first_step=4), whole[4:])
    plain = batches(source, 6)
    same = [
        np.array_equal(one_S, other_S)
        for one, other in zip(whole, plain, strict=True)
        for one_S, other_S in zip(one["mixture"], other["mixture"], strict=True)
    ]
    assert 0 < sum(same) < 12  # some rows are left as they were


def test_augmentation_moves_no_clip():
    source = tones(30)
    changed = augmented(source, 10, AugmentConfig(polarity_probability=0.5))
    inverted = 0
    for one, other in zip(changed, batches(source, 10), strict=True):
        np.testing.assert_array_equal(np.abs(one["target"]), np.abs(other["target"]))
        np.testing.assert_array_equal(one["condition"], other["condition"])
        inverted += (one["target"][:, 1] != other["target"][:, 1]).sum()
    assert 10 < inverted < 30


def test_speed_changes_the_pitch_and_moves_no_clip():
    source = tones(20)
    config = AugmentConfig(speed_probability=1.0, speed=(0.5, 0.5))
    (changed,), (plain,) = augmented(source, 1, config), batches(source, 1)
    np.testing.assert_array_equal(changed["condition"], plain["condition"])
    tone = np.argmax(plain["condition"], axis=1)
    spectra = np.abs(np.fft.rfft(changed["target"][:, 8:-8] * np.hanning(S - 16)))
    np.testing.assert_allclose(np.argmax(spectra, axis=1) / (S - 16), (tone + 1) / 2 / S, atol=0.02)


def test_equalised_targets_differ_from_each_other():
    config = AugmentConfig(equalise_probability=0.5, equalise_db=(6.0, 6.0))
    (changed,) = augmented(tones(20), 1, config, batch_size=100)
    (plain,) = batches(tones(20), 1, batch_size=100)
    gain = np.linalg.norm(changed["target"], axis=1) / np.linalg.norm(plain["target"], axis=1)
    louder = np.isclose(gain, 10 ** (6 / 20), rtol=1e-2)
    assert (louder | np.isclose(gain, 1)).all()
    assert 35 < louder.sum() < 65


@pytest.mark.parametrize("num_queries", [1, 2])
def test_an_absent_target_is_silence_and_its_query_describes_no_clip_heard(num_queries):
    most = 4 if num_queries == 1 else 2
    source, mixing = tones(6), MixingConfig(max_mix_num=most, num_queries=num_queries)
    stream = train_batches(
        *(source, conditions_of(source), mixing, SERIAL, AugmentConfig(absent_probability=0.5)),
        **{"seed": 0, "batch_size": 100, "first_step": 0},
    )
    batch = next(stream)
    spectra = np.abs(np.fft.rfft(batch["mixture"], axis=-1))[:, 1:7]
    heard = spectra > 0.01 * spectra.max(axis=1, keepdims=True)
    absent = ~batch["target"].any(axis=1)
    condition_BKE = batch["condition"].reshape(100, num_queries**2, -1)
    query = np.argmax(condition_BKE[:, 0], axis=1)
    if num_queries > 1:
        assert (batch["member"][~absent] == [1, 0, -1, 0]).all()
        assert (batch["member"][absent] == [1, 0, 0, 0]).all()
    assert 30 < absent.sum() < 70
    rows = np.arange(100)
    assert not heard[rows, query][absent].any()
    assert heard[rows, query][~absent].all()
    assert (heard.sum(axis=1) > 1).all()


class PausedTones(Tones):
    """Tones of two seconds, with a pause of six seconds behind them."""

    def load(self, index):
        return np.concatenate([np.tile(super().load(index)[:S], 2), np.zeros(6 * S, np.float32)])


def test_crops_avoid_pauses():
    source = PausedTones(tones(6).all_captions)
    (batch,) = batches(source, 1, batch_size=50)
    silent = ~batch["target"].any(axis=1)
    assert 20 < silent.sum() < 45
    mixing = MixingConfig(num_crops=30)
    (batch,) = batches(source, 1, batch_size=50, mixing=mixing)
    assert batch["target"].any(axis=1).all()
    assert (batch["mixture"] - batch["target"]).any(axis=1).all()


class AlikeTones(Tones):
    """The first three tones are of one group."""

    @functools.cached_property
    def captions(self):
        return Captions(self.all_captions).grouped([("tone 00", "tone 01", "tone 02")])


def test_sounds_of_one_group_are_not_mixed_nor_asked_for_beside_each_other():
    source, mixing = AlikeTones(tones(6).all_captions), MixingConfig(max_mix_num=3)
    stream = train_batches(
        *(source, conditions_of(source), mixing, SERIAL, AugmentConfig(absent_probability=0.3)),
        **{"seed": 0, "batch_size": 200, "first_step": 0},
    )
    batch = next(stream)
    spectra = np.abs(np.fft.rfft(batch["mixture"], axis=-1))[:, 1:7]
    heard = spectra > 0.01 * spectra.max(axis=1, keepdims=True)
    query = np.argmax(batch["condition"], axis=1)
    absent, grouped = ~batch["target"].any(axis=1), query < 3
    assert (heard[grouped & ~absent, :3].sum(axis=1) == 1).all()
    assert not heard[grouped & absent, :3].any()
    assert (grouped & absent).sum() > 5


def test_silence_as_the_interferer_leaves_the_target_alone():
    (batch,) = augmented(tones(12), 1, AugmentConfig(silence_probability=0.5), batch_size=100)
    alone = (batch["mixture"] == batch["target"]).all(axis=1)
    assert 30 < alone.sum() < 70
    assert batch["target"][alone].any(axis=1).all()


def test_a_query_for_what_is_absent_needs_a_third_caption():
    with pytest.raises(InputError, match="no clip without the captions 'tone 00, tone 01'"):
        augmented(tones(2), 1, AugmentConfig(absent_probability=1.0))


def test_each_sound_of_each_recording_is_asked_for():
    lists = [((f"low {k}", f"deep {k}"), (f"high {k}",)) for k in range(5)]
    source, mixing = Tones((*lists, ("single",))), dataclasses.replace(MIXING, num_queries=3)
    plain, first = batches(source, 6), set()
    for batch, one in zip(batches(source, 6, mixing=mixing), plain, strict=True):
        number_BK = batch["condition"].argmax(-1)
        texts = np.array(sorted(source.captions.texts))[number_BK]
        rest = batch["mixture"] - batch["target"]
        for audio, side in ((batch["target"], 1), (rest, -1)):
            own = [
                sorted(x[member == side]) for x, member in zip(texts, batch["member"], strict=True)
            ]
            for tone, words in zip(tone_numbers(audio), own, strict=True):
                expected = [[f"high {tone}", f"low {tone}"], [f"deep {tone}", f"high {tone}"]]
                assert words in ([["single"]] if tone == 5 else expected)
        first |= {x.split()[0] for x in texts[batch["member"][:, 1] == 1, 0]}
        assert one["condition"].ndim == 2
        assert "member" not in one
    assert first == {"low", "deep", "high"}  # in random order
    three = Tones(((("a",), ("b",), ("c",)), ("d",)))
    with pytest.raises(InputError, match=r"tone/0 has 3 sounds; set mixing.num_queries=3 or more"):
        batches(three, 1, mixing=dataclasses.replace(MIXING, num_queries=2))
