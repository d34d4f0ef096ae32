"""SI-SDR that bfloat16 costs a trained separator on a CPU.

    python benchmarks/precision.py runs/demo --mixtures 200

Separates mixtures of the run's own validation clips with OpenVINO in float32 and bfloat16, and in
float32 with JAX. Prints the mean SI-SDR of each, the mean difference between the two precisions
with its 95 % interval (bootstrap over mixtures), and the SNR of each against JAX.
"""

import argparse
from pathlib import Path

import numpy as np
from networks import snr_db

from audiosep_jax import files
from audiosep_jax.data.sources import build_source
from audiosep_jax.data.validation import validation_set
from audiosep_jax.metrics import si_sdr
from audiosep_jax.separation.separator import Separator
from audiosep_jax.training.conditions import distinct_captions
from audiosep_jax.training.config import from_mapping

WAYS = {
    "JAX, float32": {"engine": "jax", "precision": "float32"},
    "OpenVINO, float32": {"engine": "openvino", "precision": "float32"},
    "OpenVINO, bfloat16": {"engine": "openvino", "precision": "bfloat16"},
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--mixtures", type=int, default=200)
    arguments = parser.parse_args()
    config = from_mapping(files.read_json(arguments.workdir / "config.json")["config"])
    source = build_source(config.data, "valid", config.model.sample_rate_hz)
    separators = {
        name: Separator.load(arguments.workdir, **how)  # type: ignore[arg-type]
        for name, how in WAYS.items()
    }
    reference = separators["JAX, float32"]
    captions = distinct_captions(source.captions)
    conditions = dict(zip(captions, reference.embed_text(captions), strict=True))
    mixtures = validation_set(
        source,
        conditions,
        config.mixing,
        config.data,
        seed=0,
        num_mixtures=arguments.mixtures,
    )
    rate_hz, scores, estimates = config.model.sample_rate_hz, {}, {}
    for name, separator in separators.items():
        estimates[name] = np.stack(
            [
                separator.separate_conditions(mixture_S, rate_hz, condition_E[None])[0]
                for mixture_S, condition_E in zip(
                    mixtures["mixture"], mixtures["condition"], strict=True
                )
            ]
        )
        scores[name] = np.asarray(si_sdr(mixtures["target"], estimates[name]))
        snr = snr_db(estimates["JAX, float32"], estimates[name])
        print(f"{name:<20} SI-SDR {scores[name].mean():.3f} dB, {snr:.1f} dB from JAX")
    lost_N = scores["OpenVINO, float32"] - scores["OpenVINO, bfloat16"]
    rng = np.random.default_rng(0)
    means = lost_N[rng.integers(len(lost_N), size=(2000, len(lost_N)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    print(f"bfloat16 costs {lost_N.mean():.4f} dB ({low:.4f} to {high:.4f})")


if __name__ == "__main__":
    main()
