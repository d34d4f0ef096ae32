"""The README.md that goes with weights: what they are, how to use them, how large they are."""

import dataclasses
from typing import Any

import jax
import numpy as np

from audiosep_jax.model.network import ModelConfig
from audiosep_jax.training.trained import Trained

TAGS = ("audio", "audio-to-audio", "source-separation", "language-queried", "jax", "flax")


def model_card(trained: Trained, name: str) -> str:
    """Markdown with the header that hubs read; `name` is how the weights are loaded."""
    model, text = trained.model, trained.text
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(trained.variables["params"]))
    common = {field.name for field in dataclasses.fields(ModelConfig)} - {"network"}
    own = "".join(
        f"| {name.replace('_', ' ')} | {_listed(value)} |\n"
        for name, value in dataclasses.asdict(model).items()
        if name not in common
    )
    hop_ms = 1000 * model.hop_samples / model.sample_rate_hz
    encoder = f"{text.encoder} ({text.source})" if text.source else text.encoder
    tags = "".join(f"- {tag}\n" for tag in TAGS)
    return f"""---
library_name: audiosep_jax
pipeline_tag: audio-to-audio
tags:
{tags}---

# {name}

Separates what a sentence describes from a recording: AudioSep (Liu et al., "Separate Anything You
Describe", 2023), a ResUNet conditioned on the sentence by FiLM, in JAX and Flax.

## Use

```python
from audiosep_jax.separation.separator import Separator

separator = Separator.from_pretrained("{name}")
dog = separator.separate(audio, sample_rate_hz, "a dog barking")
```

or, for a file:

```
python separate.py street.wav --text "a dog barking" --checkpoint {name}
```

## Sizes

| | |
|---|---|
| parameters | {count:,} |
| sample rate | {model.sample_rate_hz:,} Hz, mono; other rates and channels are converted |
| STFT | window {model.window_samples}, hop {model.hop_samples} samples ({hop_ms:g} ms) |
{own}| text encoder | {encoder}, {model.condition_features} numbers |
| trained for | {f"{trained.step:,} steps" if trained.step else "an unknown number of steps"} |

## Files

`model.safetensors` holds float32 tensors under the names of AudioSep's PyTorch code (`ss_model.*`),
without the constant matrices of its STFT: there, `load_state_dict(tensors, strict=False)` reads it,
and `python -m audiosep_jax.convert {name} audiosep.ckpt` writes a checkpoint for `strict=True`.
`config.json` holds the sizes above.
"""


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
