"""Separate a recording with numpy, soundfile and onnxruntime alone.

audiosep export dog.onnx --checkpoint runs/demo --text "a dog barking"
python onnx_separate.py dog.onnx street.wav "a dog barking" dog.wav

With `audiosep export --stream`, a recording of any length takes the same memory.
"""

import json
import sys

import numpy as np
import onnxruntime
import soundfile


def main(model, recording, sentence, output):
    """Write what the sentence describes, each channel by itself."""
    with open(f"{model}.json") as file:
        about = json.load(file)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    audio_SC, rate_hz = soundfile.read(recording, dtype="float32", always_2d=True)
    if rate_hz != about["sample_rate_hz"]:
        sys.exit(f"{recording}: resample it to {about['sample_rate_hz']} Hz")
    mixture_BS = np.ascontiguousarray(audio_SC.T)
    condition_BE = np.float32([about["conditions"][sentence]] * len(mixture_BS))
    if "first" in [x.name for x in session.get_inputs()]:
        estimate_BS = streamed(session, about, mixture_BS, condition_BE)
    else:
        inputs = {"mixture": mixture_BS, "condition": condition_BE}
        estimate_BS = session.run(["estimate"], inputs)[0]
    soundfile.write(output, estimate_BS.T, rate_hz, subtype="FLOAT")


def streamed(session, about, mixture_BS, condition_BE):
    """Run tile after tile, each with the state that the one before has left."""
    hop, half = about["hop_samples"], about["window_samples"] // 2
    tile = 8 * about["time_stride"]  # frames; any multiple of it gives the same result
    tile_samples = (tile - 1) * hop + 2 * half
    (rows, num_samples), total = mixture_BS.shape, mixture_BS.shape[1] // hop + 1
    skipped = about["delay_frames"] * hop + half  # samples before the recording
    shapes = {x.name: [rows, *x.shape[1:]] for x in session.get_outputs()}
    state = {x: np.zeros(shapes[x], np.float32) for x in shapes if x.startswith("next ")}
    names = ["estimate", *state]
    padded_BS = np.pad(mixture_BS, ((0, 0), (half, half)), mode="reflect")
    ready = []
    for first in range(0, -(-(skipped + num_samples) // hop), tile):
        tile_BS = padded_BS[:, first * hop :][:, :tile_samples]
        inputs = {x.removeprefix("next "): state[x] for x in state}
        tile_BS = np.pad(tile_BS, ((0, 0), (0, tile_samples - tile_BS.shape[1])))
        inputs |= {"mixture": tile_BS, "condition": condition_BE}
        inputs |= {"first": np.int64([first]), "total": np.int64([total])}
        state = dict(zip(names, session.run(names, inputs), strict=True))
        ready.append(state.pop("estimate"))
    return np.concatenate(ready, axis=1)[:, skipped : skipped + num_samples]


if __name__ == "__main__":
    main(*sys.argv[1:])
