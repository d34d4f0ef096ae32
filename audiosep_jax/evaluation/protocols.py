"""Benchmarks and baselines that can be evaluated: one table each.

A protocol states which files a list names, which query is used, at which sample rate the estimates
are scored, how the scores of all mixtures become one number, and what others report. A new
benchmark is one entry of `PROTOCOLS`; the help texts are made of the tables. This module imports
nothing heavy, since help texts must be fast.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

Aggregation = Literal["mean", "mean of class means", "mean of class medians"]
Scores = Mapping[str, float]

SDR_DEFINITION = (
    "SDR = 10 log10(mean(ref^2) / mean((est - ref)^2)), both floored at 1e-10; "
    "SDRi = SDR(estimate) - SDR(mixture); SI-SDR without mean removal, not an improvement"
)

BASELINES = {
    "mixture": "the mixture itself: SDRi 0",
    "silence": "zeros: SDR 0",
    "irm": "ideal ratio mask, computed from the target",
    "icm": "ideal complex mask, computed from the target: the upper bound of the network's mask",
    "random_query": "the network with the query of another sound",
}


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Layout, queries and scoring of one benchmark; the defaults are those of AudioSep's lists.

    `rendered` and `pair` are templates of paths, in which `{column}` is replaced by a column of the
    list: (target, mixture) of mixtures that exist as files, and (target, noise, ...) of clips that
    have to be mixed.
    """

    name: str
    title: str
    count: int | None  # mixtures in the whole benchmark
    query_kind: str = "text label"
    kind: str = "text"  # of the queries, a key of `encoders.KINDS`; files are below the targets'
    columns: tuple[str, ...] = ("idx", "caption", "src_wav", "noise_wav")  # required in the list
    id: str = "{idx}"  # template of a mixture's name; empty for the column `id`
    query: str = "caption"  # column of the query
    label: str = "caption"  # column of the class; empty if captions make no classes
    rendered: tuple[str, str] | None = ("segment-{idx}.wav", "mixture-{idx}.wav")
    pair: tuple[str, ...] = ("{src_wav}", "{noise_wav}")
    aggregation: Aggregation = "mean"
    sample_rate_hz: int | None = 32000  # of scoring; None stands for the model's
    snr: str = ""  # column of the SNR; empty if the published list has none
    folder: str = ""  # whose files are listed if there is no list
    default_query: str = ""
    speech: bool = False  # score PESQ, STOI and segmental SNR
    noise_query: str = ""  # column of the query that describes the noise
    clips: str = ""  # column with the names of target and noise, joined by "+++"
    sources: tuple[str, ...] = ()  # columns of targets, if a line lists all of a mixture
    by_position: bool = False  # columns are found by their order, not by their names
    own: bool = False  # a user's list, with the columns of docs/evaluation.md
    absence: bool = False  # present against absent sounds, instead of SDR
    definition: str = SDR_DEFINITION
    published: Mapping[str, Scores] = dataclasses.field(default_factory=dict)  # dB by system


def _audiosep(sdri: float, si_sdr: float) -> dict[str, Scores]:
    """Scores of the released checkpoint in "Separate Anything You Describe" (Liu et al.)."""
    return {"AudioSep": {"sdri": sdri, "si_sdr": si_sdr}}


def _speakers(name: str, title: str) -> tuple[Protocol, Protocol]:
    """Mixtures of two speakers, who are asked for by recordings, or found without a query."""
    asked = Protocol(
        name,
        title,
        6000,  # both speakers of 3,000 mixtures
        query_kind="another recording of the speaker",
        kind="voice",
        columns=("mixture_ID", "mixture_path", "source_1_path", "source_2_path"),
        sources=("source_1_path", "source_2_path"),
        id="{mixture_ID}_s{source}",
        query="enrolment",
        label="source",
        rendered=("{target}", "{mixture_path}"),
        pair=(),
        clips="mixture_ID",
        sample_rate_hz=8000,
    )
    blind = dataclasses.replace(
        asked,
        name=f"{name}_blind",
        title=f"{title}, blind",
        query_kind="none, the best assignment",
        kind="blind",
    )
    return asked, blind


_ALL = (
    Protocol(
        "audioset",
        "AudioSet",
        5270,  # 527 classes, 10 each
        aggregation="mean of class medians",
        id="{src_wav.stem}",
        rendered=("class_id={idx}/{src_wav.name}", "class_id={idx}/{noise_wav.name}"),
        pair=(),
        published=_audiosep(7.74, 6.90),
    ),
    Protocol(
        "vggsound",
        "VGGSound",
        1000,
        columns=("file_id", "mix_wav", "s0_wav", "s0_text", "s1_wav", "s1_text"),
        id="{file_id}",
        query="s0_text",
        label="s0_text",
        rendered=("{s0_wav}", "{mix_wav}"),
        pair=("{s0_wav}", "{s1_wav}"),
        noise_query="s1_text",
        clips="file_id",  # 100 targets, each in ten mixtures
        published=_audiosep(9.14, 9.04),
    ),
    Protocol(
        "audiocaps",
        "AudioCaps",
        4820,  # 964 clips, 5 captions each
        query_kind="caption",
        columns=("idx", "caption", "labels", "src_wav", "noise_wav"),
        label="",
        published=_audiosep(8.22, 7.19),
    ),
    Protocol(
        "clotho",
        "Clotho",
        5225,  # 1,045 clips, 5 captions each
        query_kind="caption",
        columns=("idx", "caption", "src_wav", "noise_wav1", "noise_wav1 (2)"),
        label="",
        pair=("{src_wav}", "{noise_wav1}", "{noise_wav1 (2)}"),
        published=_audiosep(6.85, 5.24),
    ),
    Protocol(
        "music",
        "MUSIC",
        5004,  # 10 instruments
        aggregation="mean of class means",
        published=_audiosep(10.51, 9.43),
    ),
    Protocol("esc50", "ESC-50", 2000, published=_audiosep(10.04, 8.81)),
    Protocol(
        "dcase2024",
        "DCASE 2024 Task 9, validation",
        3000,
        query_kind="caption",
        sample_rate_hz=16000,
        columns=("source", "noise", "snr", "caption"),
        id="{source}+{noise}",
        label="",
        rendered=None,
        pair=("{source}.wav", "{noise}.wav"),
        snr="snr",
        by_position=True,
        published={"DCASE 2024 baseline": {"sdr": 5.71, "sdri": 5.67, "si_sdr": 3.86}},
    ),
    Protocol(
        "voicebank_demand",
        "Voicebank-DEMAND",
        824,
        query_kind="one sentence of ours",
        sample_rate_hz=16000,
        columns=("file",),
        id="{file.stem}",
        query="",
        label="",
        rendered=("clean_testset_wav/{file}", "noisy_testset_wav/{file}"),
        pair=(),
        folder="clean_testset_wav",
        default_query="human speech",
        speech=True,
    ),
    *_speakers("libri2mix", "Libri2Mix"),
    *_speakers("wsj0_2mix", "WSJ0-2mix"),
    Protocol(
        "mixtures",
        "own mixtures",
        None,
        query_kind="sentence of the list",
        sample_rate_hz=None,
        columns=("target",),
        id="",
        query="query",
        label="class",
        rendered=None,
        noise_query="noise_query",
        own=True,
    ),
)
_ABSENCE = dataclasses.replace(
    _ALL[-1],
    name="absence",
    title="present and absent sounds",
    absence=True,
    definition="docs/evaluation.md, absent sounds",
)
PROTOCOLS = {protocol.name: protocol for protocol in (*_ALL, _ABSENCE)}
