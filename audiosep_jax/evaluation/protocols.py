"""The benchmarks of the paper and of DCASE 2024, one row of a table each, and how each is read.

A protocol says which files a list names, in which words the query is put, at which rate is scored
and how the scores of mixtures become one number. Everything else is the same for all of them.
"""

import dataclasses
from typing import Literal

Aggregation = Literal["mean", "mean of class means", "mean of class medians"]
SDR_DEFINITION = (
    "SDR = 10 log10(mean(ref^2) / mean((est - ref)^2)), both floored at 1e-10; "
    "SDRi = SDR(estimate) - SDR(mixture); SI-SDR without mean removal, not an improvement"
)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How one benchmark is read and scored.

    `rendered` and `pair` are templates of paths, in which `{column}` stands for a column of the
    list: (target, mixture) of rendered mixtures, and (target, noise, ...) of clips to be mixed.
    """

    name: str
    title: str
    count: int | None  # mixtures in the whole benchmark
    aggregation: Aggregation
    query_kind: str
    sample_rate_hz: int | None  # of scoring; None is the model's
    columns: tuple[str, ...]
    id: str
    query: str
    label: str  # column of the class
    rendered: tuple[str, str] | None
    pair: tuple[str, ...] = ()
    snr: str = ""  # column; empty where the published list does not say
    headline: tuple[str, ...] = ("sdri", "si_sdr")
    folder: str = ""  # lists its files where there is no list
    default_query: str = ""
    speech: bool = False  # PESQ, STOI and segmental SNR belong to it
    noise_query: str = ""  # column of what asks for the noise
    clips: str = ""  # column that names target and noise, joined by "+++", where not the paths do
    by_position: bool = False  # its reader goes by the order of the columns, not by their names


_NUMBERED = ("segment-{idx}.wav", "mixture-{idx}.wav")
_IDX = ("idx", "caption", "src_wav", "noise_wav")

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="audioset",
            title="AudioSet",
            count=5270,  # 527 classes, 10 each
            aggregation="mean of class medians",
            query_kind="text label",
            sample_rate_hz=32000,
            columns=_IDX,
            id="{src_wav.stem}",
            query="caption",
            label="caption",
            rendered=("class_id={idx}/{src_wav.name}", "class_id={idx}/{noise_wav.name}"),
        ),
        Protocol(
            name="vggsound",
            title="VGGSound",
            count=1000,
            aggregation="mean",
            query_kind="text label",
            sample_rate_hz=32000,
            columns=("file_id", "mix_wav", "s0_wav", "s0_text", "s1_wav", "s1_text"),
            id="{file_id}",
            query="s0_text",
            label="s0_text",
            rendered=("{s0_wav}", "{mix_wav}"),
            pair=("{s0_wav}", "{s1_wav}"),
            noise_query="s1_text",
            clips="file_id",  # 100 targets, each in ten of them
        ),
        Protocol(
            name="audiocaps",
            title="AudioCaps",
            count=4820,  # 964 clips, 5 captions each
            aggregation="mean",
            query_kind="caption",
            sample_rate_hz=32000,
            columns=("idx", "caption", "labels", "src_wav", "noise_wav"),
            id="{idx}",
            query="caption",
            label="",
            rendered=_NUMBERED,
            pair=("{src_wav}", "{noise_wav}"),
        ),
        Protocol(
            name="clotho",
            title="Clotho",
            count=5225,  # 1,045 clips, 5 captions each
            aggregation="mean",
            query_kind="caption",
            sample_rate_hz=32000,
            columns=("idx", "caption", "src_wav", "noise_wav1", "noise_wav1 (2)"),
            id="{idx}",
            query="caption",
            label="",
            rendered=_NUMBERED,
            pair=("{src_wav}", "{noise_wav1}", "{noise_wav1 (2)}"),
        ),
        Protocol(
            name="music",
            title="MUSIC",
            count=5004,  # 10 instruments
            aggregation="mean of class means",
            query_kind="text label",
            sample_rate_hz=32000,
            columns=_IDX,
            id="{idx}",
            query="caption",
            label="caption",
            rendered=_NUMBERED,
            pair=("{src_wav}", "{noise_wav}"),
        ),
        Protocol(
            name="esc50",
            title="ESC-50",
            count=2000,
            aggregation="mean",
            query_kind="text label",
            sample_rate_hz=32000,
            columns=_IDX,
            id="{idx}",
            query="caption",
            label="caption",
            rendered=_NUMBERED,
            pair=("{src_wav}", "{noise_wav}"),
        ),
        Protocol(
            name="dcase2024",
            title="DCASE 2024 Task 9, validation",
            count=3000,
            aggregation="mean",
            query_kind="caption",
            sample_rate_hz=16000,
            columns=("source", "noise", "snr", "caption"),
            id="{source}+{noise}",
            query="caption",
            label="",
            rendered=None,
            pair=("{source}.wav", "{noise}.wav"),
            snr="snr",
            headline=("sdr", "sdri", "si_sdr"),
            by_position=True,
        ),
        Protocol(
            name="voicebank_demand",
            title="Voicebank-DEMAND",
            count=824,
            aggregation="mean",
            query_kind="one sentence of ours",
            sample_rate_hz=16000,
            columns=("file",),
            id="{file.stem}",
            query="",
            label="",
            rendered=("clean_testset_wav/{file}", "noisy_testset_wav/{file}"),
            folder="clean_testset_wav",
            default_query="human speech",
            headline=("pesq", "stoi", "segmental_snr", "si_sdr"),
            speech=True,
        ),
        Protocol(
            name="mixtures",
            title="own mixtures",
            count=None,
            aggregation="mean",
            query_kind="sentence of the list",
            sample_rate_hz=None,
            columns=("target",),
            id="{id}",
            query="query",
            label="class",
            rendered=("{target}", "{mixture}"),
            pair=("{target}", "{noise}"),
            snr="snr",
        ),
    )
}
