"""mixing: the published recipe in closed form."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from audiosep_jax.data import mixing
from audiosep_jax.data.mixing import MixingConfig
from audiosep_jax.errors import InputError

S = 1000
# Small enough that no mixture peaks above 1, unless a test wants that.
QUIET = 0.01


def noise(seed, num_samples=S, scale=QUIET):
    return (scale * np.random.default_rng(seed).standard_normal(num_samples)).astype(np.float32)


def snr_db(target_S, mixture_S):
    rest_S = mixture_S.astype(np.float64) - target_S
    return 10 * np.log10(mixing.energy(target_S) / mixing.energy(rest_S))


def match_energy(audio_S, reference_S):
    """`audio_S` at the energy of the reference, as `mix` brings it there."""
    energies = mixing.energy(audio_S), mixing.energy(reference_S)
    return audio_S * audio_S.dtype.type(mixing.match_ratio(*energies, 0.02, 50.0))


clips = st_numpy.arrays(
    np.float32, st.integers(1, 50), elements=st.floats(-4, 4, width=32, allow_subnormal=False)
)


@given(clips, st.integers(1, 80), st.integers(0, 2**32 - 1))
@settings(max_examples=80, deadline=None)
def test_crop_or_pad_takes_a_stretch_or_pads_behind(audio_S, num_samples, seed):
    result_S = mixing.crop_or_pad(audio_S, num_samples, np.random.default_rng(seed))
    assert result_S.shape == (num_samples,)
    if num_samples >= len(audio_S):
        np.testing.assert_array_equal(result_S[: len(audio_S)], audio_S)
        assert not result_S[len(audio_S) :].any()
    else:
        starts = range(len(audio_S) - num_samples + 1)
        assert any(np.array_equal(result_S, audio_S[s : s + num_samples]) for s in starts)


def test_every_crop_is_equally_likely():
    rng = np.random.default_rng(0)
    starts = [mixing.crop_or_pad(np.arange(10), 7, rng)[0] for _ in range(4000)]
    counts = np.bincount(starts, minlength=4)
    assert len(counts) == 4
    assert abs(counts - 1000).max() < 150  # 5 standard deviations


def test_of_several_crops_one_that_is_no_pause_is_taken():
    audio_S = np.concatenate([0.05 * np.ones(900), np.ones(50), 0.2 * np.ones(50)])
    taken = [
        mixing.crop_or_pad(audio_S, 20, np.random.default_rng(seed), num_crops=64)
        for seed in range(400)
    ]
    powers = np.array([np.square(crop_S).mean() for crop_S in taken])
    # With 64 crops one is nearly always in the loud part; those 26 dB below it are left out.
    assert np.mean(powers > 0.01) > 0.95
    assert 0.1 < np.mean(powers < 0.05) < 0.7  # those 14 dB below it are not


def test_crops_of_other_lengths_start_where_the_crop_would():
    for seed in range(20):
        rng, other = np.random.default_rng(seed), np.random.default_rng(seed)
        start = mixing.crop_or_pad(np.arange(50), 20, rng)[0]
        longer_S = mixing.crop_or_pad(np.arange(50), 20, other, length=30)
        np.testing.assert_array_equal(longer_S, min(start, 20) + np.arange(30))
        assert rng.integers(1 << 40) == other.integers(1 << 40)
    padded_S = mixing.crop_or_pad(np.arange(1, 26), 20, rng, length=30)
    np.testing.assert_array_equal(padded_S, [*range(1, 26), *[0] * 5])


def test_match_energy_in_closed_form():
    audio_S, reference_S = np.float32([3, -3, 3, -3]), np.float32([1, 0, 0, 1])
    expected_S = audio_S * np.sqrt(0.5) / 3
    np.testing.assert_allclose(match_energy(audio_S, reference_S), expected_S, rtol=1e-6)


@pytest.mark.parametrize(("scale", "ratio"), [(1e-3, 50), (1 / 49, 49), (49, 1 / 49), (1e3, 0.02)])
def test_match_energy_clamps_the_ratio(scale, ratio):
    reference_S = noise(0)
    matched_S = match_energy(reference_S * np.float32(scale), reference_S)
    np.testing.assert_allclose(matched_S, reference_S * scale * ratio, rtol=1e-5)


def test_match_energy_is_defined_for_silence():
    silence_S, audio_S = np.zeros(S, np.float32), noise(0, scale=1)
    np.testing.assert_array_equal(match_energy(silence_S, audio_S), silence_S)
    np.testing.assert_array_equal(match_energy(silence_S, silence_S), silence_S)
    # The original's floor under the reference (1e-10) and its clamp apply.
    np.testing.assert_allclose(match_energy(audio_S, silence_S), audio_S * 0.02, rtol=1e-6)
    faint_S = audio_S * np.float32(1e-5 / np.sqrt(mixing.energy(audio_S)))
    np.testing.assert_allclose(match_energy(faint_S, silence_S), faint_S, rtol=1e-5)


@given(clips, clips)
@settings(max_examples=80, deadline=None)
def test_match_energy_is_finite_and_matches_within_the_clamp(audio_S, reference_S):
    matched_S = match_energy(audio_S, reference_S)
    assert matched_S.dtype == np.float32
    assert np.isfinite(matched_S).all()
    before, wanted = mixing.energy(audio_S), max(mixing.energy(reference_S), 1e-10)
    if before and 0.02**2 < wanted / before < 50**2:
        assert mixing.energy(matched_S) == pytest.approx(wanted, rel=1e-4)


def test_gains_are_every_whole_decibel():
    rng, config = np.random.default_rng(0), MixingConfig(min_gain_db=-3, max_gain_db=2)
    mixtures = [mixing.mix(noise(1), [noise(2)], config, rng) for _ in range(100)]
    gains_db = [-snr_db(target_S, mixture_S) for mixture_S, target_S in mixtures]
    np.testing.assert_allclose(gains_db, np.round(gains_db), atol=1e-3)
    assert set(np.round(gains_db)) == {-3, -2, -1, 0, 1, 2}


@pytest.mark.parametrize("seed", range(10))
def test_mixture_of_two_has_the_gain_drawn_last(seed):
    target_S, config = noise(1), MixingConfig()
    mixture_S, kept_S = mixing.mix(target_S, [noise(2)], config, np.random.default_rng(seed))
    # The second energy match undoes the first gain, as in the original.
    rng = np.random.default_rng(seed)
    _, last_db = rng.integers(-10, 10, endpoint=True), rng.integers(-10, 10, endpoint=True)
    assert snr_db(kept_S, mixture_S) == pytest.approx(-last_db, abs=1e-3)
    np.testing.assert_array_equal(kept_S, target_S)


def test_mixture_of_three_in_closed_form():
    target_S, first_S, second_S = noise(1), noise(2, scale=0.1), noise(3, scale=0.001)
    config = MixingConfig(max_mix_num=3)
    mixture_S, _ = mixing.mix(target_S, [first_S, second_S], config, np.random.default_rng(4))

    gains = 10 ** (np.random.default_rng(4).integers(-10, 10, 3, endpoint=True) / 20)
    rms = [np.sqrt(np.mean(np.float64(x) ** 2)) for x in (target_S, first_S, second_S)]
    noise_S = rms[0] * (gains[0] * first_S / rms[1] + gains[1] * second_S / rms[2])
    noise_S *= gains[2] * rms[0] / np.sqrt(np.mean(noise_S**2))
    np.testing.assert_allclose(mixture_S, target_S + noise_S, rtol=0, atol=1e-7)


def test_config_reaches_the_mixture():
    loud_S, faint_S = noise(1), noise(2, scale=1e-5)
    config = MixingConfig(min_gain_db=0, max_gain_db=0, max_match_ratio=10.0)
    mixture_S, _ = mixing.mix(loud_S, [faint_S], config, np.random.default_rng(0))
    # Clamped at 10, once for the interferer and once for the sum.
    np.testing.assert_allclose(mixture_S, loud_S + 100 * faint_S, rtol=0, atol=1e-8)


def test_mix_declips_mixture_and_target_alike():
    loud_S, config = noise(1, scale=0.6), MixingConfig(declipped_peak=0.8)
    mixture_S, target_S = mixing.mix(loud_S, [noise(2)], config, np.random.default_rng(0))
    assert np.abs(mixture_S).max() == pytest.approx(0.8, rel=1e-6)
    scale = target_S[0] / loud_S[0]
    assert 0 < scale < 0.8
    np.testing.assert_allclose(target_S, loud_S * scale, rtol=1e-5)
    assert snr_db(target_S, mixture_S) == pytest.approx(
        np.round(snr_db(target_S, mixture_S)), abs=1e-3
    )


def test_declip_leaves_a_peak_of_one_alone():
    mixture_S, target_S = np.float32([1, -1, 0.5]), np.float32([0.5, 0, 0])
    for result_S, before_S in zip(
        mixing.declip(mixture_S, target_S), (mixture_S, target_S), strict=True
    ):
        np.testing.assert_array_equal(result_S, before_S)
    for result_S, before_S in zip(
        mixing.declip(-3 * mixture_S, target_S), (mixture_S, target_S), strict=True
    ):
        scale = -0.9 if before_S is mixture_S else 0.3
        np.testing.assert_allclose(result_S, before_S * scale, rtol=1e-6)


def test_energy_is_the_mean_square_at_any_length():
    for num_samples in (1, 5000, 8192, 20000):
        audio_S = noise(0, num_samples, scale=1)
        expected = np.mean(np.square(audio_S, dtype=np.float64))
        assert mixing.energy(audio_S) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("num_interferers", [1, 3])
def test_snr_range_is_kept_evenly_and_beyond_the_match_ratio(num_interferers):
    config = MixingConfig(max_mix_num=4, snr_db=(-5.0, 15.0))
    target_S = noise(0)
    interferers_KS = [noise(k, scale=10.0**-k) for k in range(2, 2 + num_interferers)]
    interferers_KS[0] = noise(9, scale=1e-6)  # a ratio of 10,000
    found_db = [
        snr_db(*mixing.mix(target_S, interferers_KS, config, np.random.default_rng(k))[::-1])
        for k in range(300)
    ]
    assert -5 <= min(found_db) < -4.5
    assert 14.5 < max(found_db) <= 15
    assert np.mean(found_db) == pytest.approx(5, abs=1.2)


def test_target_rms_range_sets_the_level_of_the_mixture():
    config = MixingConfig(target_rms_db=(-40.0, -30.0), min_gain_db=0, max_gain_db=0)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        mixture_S, target_S = mixing.mix(noise(1), [noise(2)], config, rng)
        wanted_db = np.random.default_rng(seed).uniform(-40, -30)
        assert 10 * np.log10(mixing.energy(target_S)) == pytest.approx(wanted_db, abs=1e-3)
        assert snr_db(target_S, mixture_S) == pytest.approx(0, abs=1e-2)
    silence_S = np.zeros(S, np.float32)
    assert not mixing.mix(silence_S, [silence_S], config, np.random.default_rng(0))[0].any()


def test_a_mixture_of_nothing_else_is_the_target():
    mixture_S, target_S = mixing.mix(noise(1), [], MixingConfig(), np.random.default_rng(0))
    np.testing.assert_array_equal(mixture_S, noise(1))
    np.testing.assert_array_equal(target_S, noise(1))


def test_mixing_leaves_its_arguments_alone():
    clips_KS = [noise(k, scale=0.9) for k in range(3)]
    for audio_S in clips_KS:
        audio_S.flags.writeable = False
    mixing.mix(clips_KS[0], clips_KS[1:], MixingConfig(), np.random.default_rng(0))


@pytest.mark.parametrize("wanted_db", [-15, 0, 7])
def test_mix_at_snr_is_exact_beyond_the_clamp(wanted_db):
    mixture_S, target_S = mixing.mix_at_snr(noise(1), noise(2, scale=1e-5), wanted_db)
    assert snr_db(target_S, mixture_S) == pytest.approx(wanted_db, abs=1e-3)


def test_caption_key_ignores_case_and_spaces():
    assert mixing.caption_key("  A  Dog\tbarks ") == mixing.caption_key("a dog barks")
    assert mixing.caption_key("a dog barks") != mixing.caption_key("a dog bark")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_mix_num", 1),
        ("max_mix_num", 2.5),
        ("min_gain_db", 11),
        ("min_gain_db", -0.5),
        ("max_gain_db", 1000),
        ("min_match_ratio", 0.0),
        ("max_match_ratio", 0.01),
        ("declipped_peak", 1.5),
        ("snr_db", (5.0,)),
        ("snr_db", (5.0, -5.0)),
        ("snr_db", 5.0),
        ("target_rms_db", (-20.0, 3.0)),
    ],
)
def test_config_refuses_by_name(name, value):
    with pytest.raises(InputError, match=f"{name}=.* must|must .* {name}="):
        MixingConfig(**{name: value})


def test_several_queries_need_mixtures_of_two_clips():
    with pytest.raises(InputError, match="num_queries=2 needs max_mix_num=2"):
        MixingConfig(num_queries=2, max_mix_num=3)
