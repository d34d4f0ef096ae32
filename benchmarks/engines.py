"""The engines that `against_original.py` compares, one to a process.

    python benchmarks/engines.py NAME FOLDER AUDIOSEP

reads requests from stdin and answers each on stdout, one JSON object a line. FOLDER holds the
weights (`weights/`, and `audiosep.ckpt` for the original), `mixture.npy`, `target.npy` and
`condition.npy`. AUDIOSEP is the clone of the original. Imports are where they are used, because the
interpreter of the original needs no JAX, and ours no torchlibrosa.
"""

import importlib
import json
import os
import re
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np

RATE_HZ = 32000


class Original:
    """AudioSep's own network, loss, optimiser and schedule, in PyTorch."""

    def __init__(self, folder: Path, audiosep: Path) -> None:
        import torch

        sys.path.insert(0, str(audiosep))
        torch.set_num_threads(os.cpu_count() or 1)
        module = importlib.import_module("models.resunet")
        self.model = module.ResUNet30(input_channels=1, output_channels=1, condition_size=512)
        stored = torch.load(folder / "audiosep.ckpt")["state_dict"]
        state = {name.removeprefix("ss_model."): tensor for name, tensor in stored.items()}
        self.model.load_state_dict(state, strict=True)
        self.condition_BE = torch.from_numpy(np.load(folder / "condition.npy"))[None]
        self.torch: Any = torch
        self.optimizer: Any = None

    def inputs(self, mixture_S: np.ndarray) -> dict[str, Any]:
        mixture_BCS = self.torch.from_numpy(mixture_S)[None, None]
        return {"mixture": mixture_BCS, "condition": self.condition_BE}

    def separate(self, mixture_S: np.ndarray) -> np.ndarray:
        with self.torch.no_grad():
            return np.asarray(self.model.eval()(self.inputs(mixture_S))["waveform"][0, 0])

    def prepare_training(self) -> None:
        """The settings of `config/audiosep_base.yaml`, with which `train.py` calls the same."""
        self.loss = importlib.import_module("losses").get_loss_function("l1_wav")
        schedules = importlib.import_module("optimizers.lr_schedulers")
        factor = schedules.get_lr_lambda(
            "constant_warm_up", warm_up_steps=10000, reduce_lr_steps=1000000
        )
        self.optimizer = self.torch.optim.AdamW(
            self.model.parameters(),
            lr=1e-3,
            betas=(0.9, 0.999),
            eps=1e-08,
            weight_decay=0.0,
            amsgrad=True,
        )
        self.scheduler = self.torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)

    def train(self, mixture_S: np.ndarray, target_S: np.ndarray) -> float:
        if not self.optimizer:
            self.prepare_training()
        self.optimizer.zero_grad()
        estimate_S = self.model.train()(self.inputs(mixture_S))["waveform"].squeeze()
        loss = self.loss({"segment": estimate_S}, {"segment": self.torch.from_numpy(target_S)})
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        return float(loss.detach())


class OriginalInChunks(Original):
    """The original's way with long recordings: its `use_chunk`."""

    def separate(self, mixture_S: np.ndarray) -> np.ndarray:
        return self.model.eval().chunk_inference(self.inputs(mixture_S))[0]


class Ours:
    """`Separator` with one of its engines, and the training step of `train.py`."""

    def __init__(self, folder: Path, audiosep: Path, **options: Any) -> None:
        from audiosep_jax import Separator

        self.separator = Separator.load(folder / "weights", **options)
        self.condition_NE = np.load(folder / "condition.npy")[None]
        self.step: Any = None

    def separate(self, mixture_S: np.ndarray) -> np.ndarray:
        return self.separator.separate_conditions(mixture_S, RATE_HZ, self.condition_NE)[0]

    def prepare_training(self) -> None:
        from audiosep_jax.training.losses import LossConfig
        from audiosep_jax.training.optim import OptimConfig
        from audiosep_jax.training.parallel import parallel_train_step, place_state
        from audiosep_jax.training.steps import make_train_step, state_from_variables

        model, optim = self.separator.model, OptimConfig()
        self.state = place_state(state_from_variables(self.separator.variables, optim))
        self.step = parallel_train_step(make_train_step(model, optim, LossConfig()))

    def train(self, mixture_S: np.ndarray, target_S: np.ndarray) -> float:
        import jax

        from audiosep_jax.training.parallel import split_batch

        if not self.step:
            self.prepare_training()
        batch = {"mixture": mixture_S, "target": target_S, "condition": self.condition_NE[0]}
        rows = split_batch({name: row[None] for name, row in batch.items()})
        self.state, metrics = self.step(self.state, rows)
        jax.block_until_ready(self.state)
        return float(metrics["loss"])


class OnnxRuntime:
    """The network's ONNX graph in onnxruntime, with our STFT and mask in JAX, in one pass."""

    def __init__(self, folder: Path, audiosep: Path) -> None:
        import jax
        import onnxruntime

        from audiosep_jax import Separator
        from audiosep_jax.model.audiosep import apply_mask, magnitude
        from audiosep_jax.model.resunet_graph import write_resunet
        from audiosep_jax.model.stft import istft, stft

        separator: Any = Separator.load(folder / "weights", engine="jax")
        sizes = separator.model.window_samples, separator.model.hop_samples
        graph = write_resunet(separator.model, separator.variables)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = os.cpu_count() or 1
        self.session = onnxruntime.InferenceSession(
            graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self.condition_BE = np.load(folder / "condition.npy")[None]

        def spectrum_and_magnitude(mixture_BS: Any) -> tuple[Any, Any]:
            spectrum_BTF = stft(mixture_BS, *sizes)
            return spectrum_BTF, magnitude(spectrum_BTF)

        def masked(spectrum_BTF: Any, mask_BTFC: Any, num_samples: int) -> Any:
            return istft(apply_mask(spectrum_BTF, mask_BTFC), num_samples, *sizes)

        self.forward, self.back = jax.jit(spectrum_and_magnitude), jax.jit(masked, static_argnums=2)

    def separate(self, mixture_S: np.ndarray) -> np.ndarray:
        spectrum_BTF, mag_BTF = self.forward(mixture_S[None])
        inputs = {"magnitude": np.asarray(mag_BTF), "condition": self.condition_BE}
        mask_BTFC = self.session.run(["mask"], inputs)[0]
        return np.asarray(self.back(spectrum_BTF, mask_BTFC, len(mixture_S)))[0]


# Class and options of each engine; `separate.py` has the options of the same names.
ENGINES: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "PyTorch": (Original, {}),
    "PyTorch in chunks": (OriginalInChunks, {}),
    "JAX": (Ours, {"engine": "jax"}),
    "onnxruntime": (OnnxRuntime, {}),
    "OpenVINO": (Ours, {"engine": "openvino"}),
    "OpenVINO, bfloat16": (Ours, {"engine": "openvino", "precision": "bfloat16"}),
}


def write_first_file(folder: Path, audiosep: Path) -> None:
    """Separate `in.wav` into `first/in.wav` with the original's own pipeline.

    The encoder of queries is replaced by one that returns the condition: neither its imports nor
    its 2.4 GB of weights are part of the time.
    """
    import torch

    class Given(torch.nn.Module):
        encoder_type = "CLAP"

        def get_query_embed(self, **_: Any) -> torch.Tensor:
            return torch.from_numpy(np.load(folder / "condition.npy"))[None]

    encoders: Any = types.ModuleType("models.clap_encoder")
    encoders.CLAP_Encoder = Given
    sys.path.insert(0, str(audiosep))
    sys.modules["models.clap_encoder"] = encoders
    pipeline = importlib.import_module("pipeline")
    config = audiosep / "config" / "audiosep_base.yaml"
    model = pipeline.build_audiosep(str(config), str(folder / "audiosep.ckpt"), "cpu")
    pipeline.separate_audio(model, folder / "in.wav", "", folder / "first" / "in.wav", "cpu")


def peak_gigabytes() -> float:
    """Highest resident memory of this process so far (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) * 1024 / 1e9


def answer(engine: Any, folder: Path, request: dict[str, Any]) -> dict[str, float]:
    """Separate or train on the first `length` seconds of the mixture; write the estimate."""
    signals = (np.load(folder / f"{name}.npy") for name in ("mixture", "target"))
    mixture_S, target_S = (x[: round(request["length"] * RATE_HZ)].copy() for x in signals)
    found, started = {}, time.perf_counter()
    if request["train"]:
        found["loss"] = engine.train(mixture_S, target_S)
    else:
        estimate_S = engine.separate(mixture_S)
    found["seconds"] = time.perf_counter() - started
    if not request["train"]:
        np.save(folder / request["estimate"], estimate_S)
    return found | {"gigabytes": peak_gigabytes()}


def serve(name: str, folder: Path, audiosep: Path) -> None:
    """Answer requests until stdin ends; what an engine prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        kind, options = ENGINES[name]
        engine = kind(folder, audiosep, **options)
    except Exception as error:  # of any engine: the others can be measured without it
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answers)
        return
    print(json.dumps({}), file=answers)
    for line in sys.stdin:
        print(json.dumps(answer(engine, folder, json.loads(line))), file=answers)


if __name__ == "__main__":
    name, *places = sys.argv[1:]
    folder, audiosep = map(Path, places)
    if name == "first_file":
        write_first_file(folder, audiosep)
    else:
        serve(name, folder, audiosep)
