"""A run's model as an ONNX graph with int8 products, made once and kept in RUN/model-int8/ beside the model.

Weights are int8 with a scale for each output (heads keep fp32); activations are rounded as they come, with one scale
for a whole batch, so that a row's answer depends a little on those it is computed with.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor, nn

from lmrecipes.data.batches import Bucket
from lmrecipes.files import write_json
from lmrecipes.inference.exported import ExportedModel, load_exported
from lmrecipes.models.mlp import MlpTrunk
from lmrecipes.models.multitask import MultiTaskModel
from lmrecipes.run_folder import INT8_FOLDER, RunFolder, replace_folder

log = logging.getLogger(__name__)

GRAPH_VERSION = 1
"""Raise it when another graph comes of the same model."""
PACKAGES = ("onnx", "onnxruntime", "onnxscript")
LARGEST = 1.5e9
"""Bytes of fp32 weights that one file of ONNX (2 GB) holds for sure."""
TOLERANCE = 1e-3
"""Most that an fp32 graph's outputs may be off, as a share of the largest."""


class NoGraph(Exception):
    """Why a model has no graph."""


@dataclass(frozen=True)
class Int8Graph:
    """A graph of inputs input_ids, mask and, where `types`, types (int64 [rows, time]), and of one output float32
    [rows, outputs of all tasks]. tasks: in the order of these outputs. vocabulary: ids that the model knows."""

    file: Path
    tasks: tuple[str, ...]
    types: bool
    vocabulary: int


def int8_graph(run: RunFolder) -> Int8Graph:
    """The run's graph, made now where there is none of this very model. Raises NoGraph where it cannot be made."""
    folder = run.path / INT8_FOLDER
    made_of = _state(run.model)
    facts = _facts(folder)
    if facts.get("made_of") != made_of:
        if missing := [package for package in PACKAGES if find_spec(package) is None]:
            raise NoGraph(f"{', '.join(missing)} not installed (`pip install {' '.join(missing)}`)")
        with FileLock(run.path / f".{folder.name}.lock"):
            facts = _facts(folder)
            if facts.get("made_of") != made_of:
                facts = {"made_of": made_of, **_make(run.model, folder)}
    if "failed" in facts:
        raise NoGraph(facts["failed"])
    return Int8Graph(folder / "model.onnx", tuple(facts["tasks"]), facts["types"], facts["vocabulary"])


def _facts(folder: Path) -> dict[str, Any]:
    file = folder / "facts.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found


def _state(model: Path) -> list[Any]:
    """What changes when the model does, or what makes graphs, or the processor that they are made for."""
    versions = [importlib.metadata.version(name) if find_spec(name) else None for name in ("torch", *PACKAGES)]
    return [GRAPH_VERSION, versions, _saturates(), model_state(model)]


def model_state(model: Path) -> list[list[Any]]:
    """What changes when an exported model, or a member of a combination, does: names, sizes and times of its files."""
    made_here = model.rglob(f"{INT8_FOLDER}/*")
    files = sorted({path for path in model.rglob("*.*") if path.suffix in (".json", ".safetensors")} - {*made_here})
    return [[str(path.relative_to(model)), path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def _saturates() -> bool:
    """Whether sums of two products of 8 bits overflow the 16 bits that they are added in: x86 without VNNI. There
    weights have 7 bits (onnxruntime.ai, "Quantize ONNX Models", data type selection)."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    info = Path("/proc/cpuinfo")
    return not (info.exists() and "vnni" in info.read_text(encoding="utf-8"))


def _make(model: Path, folder: Path) -> dict[str, Any]:
    """Write the folder, complete or not at all: a graph, or why there is none."""
    log.info("making the int8 graph of %s, once", model.parent)
    partial = folder.with_name(f"{folder.name}.tmp")
    partial.mkdir(exist_ok=True)
    try:
        facts = _write(load_exported(model), partial / "model.onnx")
    except NoGraph as why:
        facts = {"failed": str(why)}
    write_json(partial / "facts.json", {"made_of": _state(model), **facts})
    replace_folder(partial, folder)
    return facts


def _write(exported: ExportedModel, file: Path) -> dict[str, Any]:
    """Export, verify and quantise. Raises NoGraph."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    whole, trunk = exported.model, exported.model.trunk
    if isinstance(trunk, MlpTrunk):
        raise NoGraph("a perceptron's graph is not written")
    if exported.inputs:
        raise NoGraph("graphs are written of texts and ids alone, and the model reads " + ", ".join(exported.inputs))
    if 4 * sum(parameter.numel() for parameter in whole.parameters()) > LARGEST:
        raise NoGraph("the model is larger than a file of ONNX may be")
    graph = _Graph(whole).eval()
    vocabulary = int(trunk.whole.config.get_text_config().vocab_size)
    with trunk.native(), torch.no_grad():
        proto = _export(graph, trunk.reads_types, vocabulary, exported.max_length)
        _verify(proto, graph, trunk.reads_types, vocabulary, exported.max_length)
    heads = [node.name for node in proto.graph.node if any("heads." in name for name in node.input)]
    # Shapes that the exporter inferred stand in the way of those that onnxruntime infers of the changed graph.
    del proto.graph.value_info[:]
    with _quiet():
        quantize_dynamic(
            proto,
            file,
            per_channel=True,
            reduce_range=_saturates(),
            weight_type=QuantType.QInt8,
            nodes_to_exclude=heads,
        )
    return {"tasks": list(whole.heads), "types": trunk.reads_types, "vocabulary": vocabulary}


class _Graph(nn.Module):
    """What the graph computes: the trunk, its pooling, all heads side by side."""

    def __init__(self, model: MultiTaskModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, mask: Tensor, types: Tensor | None = None) -> Tensor:
        texts = [Bucket(input_ids, mask, types)]
        pooled = self.model.trunk.pool(texts, self.model.trunk(texts))
        return torch.cat([head(pooled) for head in self.model.heads.values()], dim=-1)


def _export(graph: _Graph, types: bool, vocabulary: int, longest: int) -> Any:
    """The fp32 graph as ONNX's protocol buffer."""
    inputs = _probe(3, min(11, longest), vocabulary, types)
    auto = torch.export.Dim.AUTO
    try:
        with _quiet():
            program = torch.onnx.export(
                graph, inputs, dynamo=True, verbose=False, dynamic_shapes=tuple({0: auto, 1: auto} for _ in inputs),
                input_names=list(INPUTS[: len(inputs)]), output_names=["outputs"],
            )  # fmt: skip
            assert program is not None
            return program.model_proto
    except Exception as error:  # whatever an architecture's own code meets in torch.export
        raise NoGraph(
            f"the export to ONNX failed: {(str(error).strip().splitlines() or [type(error).__name__])[0]}"
        ) from error


INPUTS = ("input_ids", "mask", "types")


def _verify(proto: Any, graph: _Graph, types: bool, vocabulary: int, longest: int) -> None:
    """Raise NoGraph where the fp32 graph differs from the model: in a text of one token, in a batch, in the longest."""
    session = open_session(proto.SerializeToString(), None)
    for rows, time in ((1, 1), (2, min(5, longest)), (2, longest)):
        inputs = _probe(rows, time, vocabulary, types)
        wanted = graph(*inputs).numpy()
        feed = {name: value.numpy() for name, value in zip(INPUTS, inputs, strict=False)}
        try:
            found = session.run(None, feed)[0]
        except Exception as error:
            raise NoGraph(f"the exported graph does not run for texts of {time} tokens") from error
        off = float(np.abs(found - wanted).max() / max(1.0, float(np.abs(wanted).max())))
        if not off <= TOLERANCE:
            raise NoGraph(f"the exported graph is off by {off:.1e} for {rows} text(s) of {time} tokens")


def _probe(rows: int, time: int, vocabulary: int, types: bool) -> tuple[Tensor, ...]:
    """Texts of made-up tokens, the first as long as the rectangle, the others shorter."""
    ids = (torch.arange(rows * time) * 7919 + 11).remainder(vocabulary).view(rows, time)
    lengths = torch.tensor([max(1, time - 2 * row) for row in range(rows)])
    mask = (torch.arange(time) < lengths[:, None]).long()
    return (ids * mask, mask, *([(torch.arange(time) >= time // 2).long() * mask] if types else []))


def open_session(graph: bytes | Path, threads: int | None) -> Any:
    """onnxruntime on so many threads; None: on torch's number."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    given = graph if isinstance(graph, bytes) else str(graph)
    return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])


@contextmanager
def _quiet() -> Iterator[None]:
    """Within: the exporter's and quantiser's notes to their own developers are not shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
