"""Mixtures of speakers, of which each is asked for by another recording of him."""

import csv
import json

import numpy as np
import pytest
from evaluation_examples import (
    ENROLMENTS,
    LIBRIMIX,
    MIXTURE_IDS,
    RATE_HZ,
    slow_si_sdr,
    write_librimix,
    write_list,
)
from tiny_run import save_run, tiny_config

from audiosep_jax.audio import files as audio_files
from audiosep_jax.encoders.ge2e import VoiceEncoder
from audiosep_jax.errors import InputError
from audiosep_jax.evaluation.command import main
from audiosep_jax.evaluation.lists import items_of, read_list
from audiosep_jax.evaluation.protocols import PROTOCOLS
from audiosep_jax.separation.separator import Separator


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return write_librimix(tmp_path_factory.mktemp("librimix"))


def items(place, enrolments="map_mixture2enrollment", protocol="libri2mix"):
    protocol, audio = PROTOCOLS[protocol], place / LIBRIMIX
    listed = place / enrolments if protocol.kind == "voice" else None
    rows = read_list(protocol, place / "mixture_test_mix_clean.csv", audio, listed)
    return items_of(protocol, rows, audio, audio)


def test_both_sources_are_targets_asked_by_the_listed_recordings(place):
    found, audio = items(place), place / LIBRIMIX
    assert [x.id for x in found] == [f"{name}_s{k}" for name in MIXTURE_IDS for k in (1, 2)]
    assert [x.target for x in found] == [audio / x.id[-2:] / f"{x.id[:-3]}.wav" for x in found]
    assert [x.mixture for x in found] == [audio / "mix_clean" / f"{x.id[:-3]}.wav" for x in found]
    asked = [*(f"{name}.wav" for name in ENROLMENTS[:-1]), ENROLMENTS[-1]]
    assert [x.query for x in found] == [str(audio / name) for name in asked]
    assert [x.clips for x in found] == [(name,) for name in MIXTURE_IDS for _ in (1, 2)]
    assert found[5].files == (found[5].target, found[5].mixture, audio / "other/x.wav")
    assert found[1].rendered == tuple(f"{x}-{found[1].id}.wav" for x in ("segment", "mixture"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            f"{MIXTURE_IDS[0]} 1-1-1 s1/x\n",
            "line 2 of the list has 1 enrolments, not one for each source",
        ),
        (
            f"{MIXTURE_IDS[0]} s1/x\n",
            "bad: line 1 has 2 words, not a mixture, an utterance and a recording",
        ),
    ],
)
def test_unusable_enrolments_are_named(place, text, message):
    (place / "bad").write_text(text)
    with pytest.raises(InputError, match=message):
        items(place, "bad")


def evaluate(place, output, *words, run="voice"):
    paths = {"--audio": place / LIBRIMIX, "--output": output, "--checkpoint": place / "runs" / run}
    options = [str(x) for pair in paths.items() for x in pair]
    return main([*words, *options, "--no_figures", "--num_threads", "2"])


def drawn_by_loudness(_, sounds):
    """A random vector for each sound: random weights give all voices the same one."""
    seeds = [round(1e4 * float(np.abs(audio_S).mean())) for audio_S, _ in sounds]
    rows_NE = [np.random.default_rng(seed).standard_normal(256) for seed in seeds]
    return np.array([8 * row_E / np.linalg.norm(row_E) for row_E in rows_NE], np.float32)


@pytest.mark.slow
def test_scores_are_those_of_voice_queries(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(VoiceEncoder, "__call__", drawn_by_loudness)
    list_words = ("--metadata", str(place / "mixture_test_mix_clean.csv"))
    words = (
        "--protocol",
        "libri2mix",
        *list_words,
        "--enrolments",
        str(place / "map_mixture2enrollment"),
    )
    assert evaluate(place, tmp_path / "out", *words) == 0
    separator, gains = Separator.load(place / "runs/voice"), []
    for item in items(place):
        mixture_S, target_S = (audio_files.read_mono(x)[0] for x in (item.mixture, item.target))
        voice_NE = separator.embed("voice", [audio_files.read_mono(item.query)])
        estimate_S = separator.separate_conditions(mixture_S, RATE_HZ, voice_NE)[0]
        gains.append(slow_si_sdr(target_S, estimate_S) - slow_si_sdr(target_S, mixture_S))
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert found["scores"]["si_sdri"]["mean"] == pytest.approx(np.mean(gains), abs=0.01)
    assert abs(found["scores"]["query_gap"]["mean"]) > 0.1
    assert found["classes"].keys() == {"1", "2"}

    # The same, as a list of one's own.
    rows = [(x.id, x.target, x.mixture, x.query) for x in items(place)]
    own = write_list(tmp_path / "own.csv", ("id", "target", "mixture", "query"), rows)
    words = ("--protocol", "mixtures", "--metadata", str(own))
    assert evaluate(place, tmp_path / "own", *words, "--query_kind", "voice") == 0
    again = json.loads((tmp_path / "own/results.json").read_text())
    mean = found["scores"]["si_sdri"]["mean"]
    assert again["scores"]["si_sdri"]["mean"] == pytest.approx(mean, abs=1e-4)

    assert evaluate(place, tmp_path / "no", "--protocol", "libri2mix", *list_words) == 2
    assert "--protocol libri2mix needs --enrolments" in capsys.readouterr().err


@pytest.mark.slow
def test_blind_scores_are_those_of_the_best_assignment(place, tmp_path):
    config = tiny_config()
    config.model.slots, config.text.encoder = 2, "none"
    save_run(place / "runs/blind", config=config, text_fingerprint="")
    list_words = ("--metadata", str(place / "mixture_test_mix_clean.csv"))
    words = ("--protocol", "libri2mix_blind", *list_words)
    assert evaluate(place, tmp_path / "out", *words, run="blind") == 0
    separator, found = (
        Separator.load(place / "runs/blind"),
        items(place, protocol="libri2mix_blind"),
    )
    expected = []
    for first, second in zip(found[::2], found[1::2], strict=True):
        assert first.mixture == second.mixture
        mixture_S, *targets = (
            audio_files.read_mono(x)[0] for x in (first.mixture, first.target, second.target)
        )
        parts_2S = separator.separate_conditions(mixture_S, RATE_HZ, separator.slots(2))
        gains_22 = [
            [slow_si_sdr(x, part_S) - slow_si_sdr(x, mixture_S) for part_S in parts_2S]
            for x in targets
        ]
        (a, b), (c, d) = gains_22
        expected += [(a, d), (b, c)][b + c > a + d]
    with (tmp_path / "out/results.csv").open(newline="") as file:
        gains = [float(row["si_sdri"]) for row in csv.DictReader(file)]
    np.testing.assert_allclose(gains, expected, atol=0.01)
