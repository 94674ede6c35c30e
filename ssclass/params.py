"""params.yaml: whatever changes the result, checked field by field."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ssclass.errors import ParamsError
from ssclass.files import decoded, read_text
from ssclass.presets import Preset, with_preset
from ssclass.text import composed, folded, printable, quoted, shown

Fraction = Annotated[float, Field(gt=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what NumPy and Keras take
Rate = Annotated[float, Field(gt=0, le=100)]  # of learning; above it every weight is lost in the first step

SCHEMA_VERSION = 1
"""The version of params.yaml. A field that it lacks takes its default, which is what was done before the field was
there; the number goes up when a field changes its name or its meaning, and `parse_params` then reads the older form
too."""

CLASS_LIMIT = 200  # bytes of UTF-8: a class is a folder's name (255), and part of names that have something around it


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def check_class(name: str) -> None:
    """ValueError unless this can be a folder, a part of a key in S3, and a word in a line of text."""
    if not name or "/" in name or name != name.strip():
        raise ValueError(f"{quoted(name)}: a class is a folder name: not empty, no slash, no blanks around it")
    if name.startswith("."):
        raise ValueError(f"{quoted(name)}: folders whose name begins with a dot are hidden, so no photo would be of it")
    if printable(name) != name:
        raise ValueError(f"{quoted(name)}: a class is one line of text, without control characters")
    if len(name.encode()) > CLASS_LIMIT:
        raise ValueError(f"{quoted(name)}: a class has at most {CLASS_LIMIT} bytes of UTF-8, as it is a folder name")


Source = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,50}$")]
"""As a manifest may name it."""


class DatasetParams(_Section):
    """What a photo's label and split may be, and which photos train and judge."""

    classes: tuple[str, ...]
    holdout_fraction: Fraction = 0.2
    near_duplicate_bits: Annotated[int, Field(ge=0, le=16)] = 6
    sources: Literal["all"] | Annotated[tuple[Source, ...], Field(min_length=1)] = "all"

    @field_validator("classes")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            check_class(name)
        value = tuple(composed(name) for name in value)
        if len(value) < 2 or len(set(value)) != len(value):
            raise ValueError("name at least two different classes")
        alike: dict[str, str] = {}
        for name in value:
            if (other := alike.setdefault(folded(name), name)) != name:
                raise ValueError(
                    f"{quoted(other)} and {quoted(name)} differ in case or form alone, and are one folder on many disks"
                )
        return value


Code = Literal[
    "class missing",
    "flood",
    "copies differ in label",
    "copies contradict",
    "one group held out",
    "unlike groups",
    "unlike balance",
    "unlike size",
    "many corrections",
    "running score",
]
HOLD: tuple[Code, ...] = (
    "many corrections",
    "copies contradict",
    "one group held out",
    "unlike groups",
    "running score",
)


class IngestParams(_Section):
    """What is refused, what is held, and when a person is told."""

    implausible: Annotated[float, Field(ge=0, lt=1)] = 1e-3
    hold: tuple[Code, ...] = HOLD
    flood: Annotated[float, Field(gt=0, le=1)] = 0.1
    balance: Annotated[float, Field(gt=0, le=1)] = 0.3
    growth: Annotated[float, Field(gt=1, allow_inf_nan=True)] = 10  # .inf: never warn
    corrections: Annotated[float, Field(gt=0, le=1)] = 0.1
    max_bytes: Annotated[int, Field(gt=0)] = 20_000_000
    max_pixels: Annotated[int, Field(gt=0)] = 65_000_000
    min_side: Annotated[int, Field(gt=0)] = 32
    animated: Literal["first", "refuse"] = "first"


class FeatureParams(_Section):
    """What the frozen part of the network sees."""

    backbone: str = "mobilenet"
    sizes: Annotated[tuple[Annotated[int, Field(ge=32, le=1024)], ...], Field(min_length=1, max_length=8)] | None = None
    crops: Literal["none", "five"] = "none"
    flip: bool = False
    shape: Literal["square", "own"] = "square"
    engine: Literal["auto", "tensorflow", "openvino", "litert", "onnxruntime"] = "auto"

    @model_validator(mode="after")
    def _one_view(self) -> Self:
        if self.shape == "own" and self.crops != "none":
            raise ValueError("shape own sees the whole photo; crops are cut out of a square: crops: none")
        if self.shape == "own" and self.sizes is not None and len(self.sizes) > 1:
            raise ValueError("shape own has one size; name one in sizes")
        if self.shape == "own" and self.engine not in ("auto", "tensorflow"):
            raise ValueError(f"shape own is TensorFlow's; {self.engine} takes squares: engine: auto, or shape: square")
        return self

    @field_validator("sizes")
    @classmethod
    def _once(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and len(set(value)) != len(value):
            raise ValueError("a size stands there twice; the second view would be the first one again")
        return value


class AugmentParams(_Section):
    """Altered copies of training photos: how many, and by how much at most, either way."""

    copies: Annotated[int, Field(ge=0, le=20)] = 0
    seed: Seed = 0
    rotation: Annotated[float, Field(ge=0, le=180)] = 20
    shift: Annotated[float, Field(ge=0, lt=1)] = 0.1
    shear: Annotated[float, Field(ge=0, le=60)] = 10
    zoom: Annotated[float, Field(ge=0, lt=1)] = 0.2
    crop: Annotated[float, Field(ge=0, lt=1)] = 0
    flip: Literal["none", "horizontal", "vertical", "both"] = "horizontal"
    brightness: Annotated[float, Field(ge=0, le=1)] = 0.1
    contrast: Annotated[float, Field(ge=0, le=1)] = 0.1
    colour: Annotated[float, Field(ge=0, le=1)] = 0.1
    fill: Literal["reflect", "nearest", "wrap", "constant"] = "reflect"


HeadName = Literal["auto", "linear", "T1", "T2.0", "T2.1", "rbf", "bilinear"]


class ModelParams(_Section):
    """What is trained: `head` on `features.backbone`, or, where there are members, those and not that.

    `preset` decides all of these and of `features` (`ssclass.presets`).
    """

    preset: Preset | None = None
    head: HeadName = "auto"
    members: tuple[str, ...] | None = None
    combine: Literal["mean", "vote"] = "mean"

    @field_validator("members")
    @classmethod
    def _pairs(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        heads = [head for head in get_args(HeadName) if head != "auto"]
        for member in value or ():
            if not (match := re.fullmatch(r"(\w+)/(.+)", member)) or match[2] not in heads:
                raise ValueError(f"{member!r} is no backbone/head; a head is one of {', '.join(heads)}")
        if value is not None and not 1 < len(value) == len(set(value)):
            raise ValueError("name at least two different members, or null for none")
        return value

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Backbone and head of each member."""
        return [(backbone, head) for backbone, _, head in (member.partition("/") for member in self.members or ())]


class TrainParams(_Section):
    """How it is trained."""

    seed: Seed = 0
    folds: Annotated[int, Field(ge=2, le=20)] = 5
    epochs: Annotated[int, Field(ge=1, le=100_000)] = 60
    learning_rate: Rate = 1e-3
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    schedule: Literal["constant", "cosine", "cyclical", "plateau"] = "constant"
    early_stopping: Annotated[int, Field(ge=0)] = 0
    unfreeze_blocks: Annotated[int, Field(ge=0)] = 0
    tune_epochs: Annotated[int, Field(ge=1, le=100_000)] = 5
    tune_learning_rate: Rate = 3e-5
    mixed_precision: bool = False


class GateParams(_Section):
    """When a candidate becomes the champion."""

    min_net_wins: Annotated[int, Field(ge=1)] = 1
    floor_margin: Annotated[float, Field(ge=0, lt=1)] = 0.05
    max_recall_loss: Annotated[float, Field(ge=0, le=1)] | None = None
    guard_groups: bool = False


class Params(_Section):
    """The whole of params.yaml."""

    dataset: DatasetParams
    ingest: IngestParams = IngestParams()
    features: FeatureParams = FeatureParams()
    augment: AugmentParams = AugmentParams()
    model: ModelParams = ModelParams()
    train: TrainParams = TrainParams()
    gate: GateParams = GateParams()

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: Any) -> Any:
        return with_preset(values) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _own_shape(self) -> Self:
        if self.features.shape == "own":
            heads = [self.model.head, *(head for _, head in self.model.pairs)]
            if "T2.0" in heads:
                raise ValueError(
                    "features.shape own: T2.0 has a weight for each place of a square map; choose another head, or "
                    "shape: square"
                )
            if self.train.unfreeze_blocks:
                raise ValueError(
                    "features.shape own: blocks are tuned on squares; unfreeze_blocks: 0, or shape: square"
                )
        return self

    @property
    def result_digest(self) -> str:
        """sha256 (hex, 64) over the params that a decision depends on.

        `ingest` has had its say by then, and what `dataset.sources` says is in the data set's digest.
        """
        said = self.model_dump(mode="json", exclude={"ingest": True, "dataset": {"sources"}})
        # A field that came later, and says what was done before it was there, changes no digest.
        for name in ("max_recall_loss", "guard_groups"):
            if said["gate"][name] in (None, False):
                del said["gate"][name]
        if self.features.shape == "square":
            del said["features"]["shape"]
        del said["model"]["preset"]  # what it decided is there by value
        del said["features"]["engine"]  # a decision depends on what it means on this machine (`ssclass.retrain.key`)
        text = json.dumps(said, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def load_params(path: Path) -> Params:
    """Read and check a params.yaml; ParamsError names the field that is wrong."""
    text = read_text(path, ParamsError, "params.yaml is a text file; `ssclass init` writes one")
    if text is None:
        raise ParamsError(f"{path}: no such file; `ssclass init` writes one")
    return parse_params(text, str(path))


def parse_params(text: str | bytes, path: str) -> Params:
    """Check the text of a params.yaml (bytes: UTF-8); `path` names it in a ParamsError."""
    body = parse_yaml(text, path)
    schema = body.pop("schema", SCHEMA_VERSION) if isinstance(body, dict) else SCHEMA_VERSION
    if schema != SCHEMA_VERSION:
        raise ParamsError(f"{path}: schema {shown(schema)}, this ssclass reads {SCHEMA_VERSION}; use a newer ssclass")
    try:
        return Params.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(shown(part) for part in first["loc"]) or "the whole file"
        hint = " (a word that YAML reads as yes, no or a number stands in quotation marks)"
        said = first["msg"].removeprefix("Value error, ") + (hint if first["type"] == "string_type" else "")
        raise ParamsError(f"{path}: {field}: {said}; correct that value") from error


def read_yaml(path: Path) -> Any:
    """What a YAML file says, an empty dict where it says nothing; ParamsError where it cannot be read, or is gone."""
    text = read_text(path, ParamsError, "it is a text file; the one that `ssclass init` writes shows its form")
    if text is None:
        raise ParamsError(f"{path}: no such file; write it, or name another")
    return parse_yaml(text, str(path))


def parse_yaml(text: str | bytes, path: str) -> Any:
    """What a YAML file says, an empty dict where that is nothing; ParamsError names the file (`path`) and the place."""
    if isinstance(text, bytes):
        text = decoded(text, path, ParamsError)
    try:
        return yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ParamsError(f"{path}: not readable as YAML ({error}); mend it there") from error
    except RecursionError as error:
        raise ParamsError(f"{path}: not readable as YAML (nested too deeply); mend it there") from error
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        # The constructors of dates, numbers and binaries pass on what Python says of a value that is none.
        raise ParamsError(f"{path}: not readable as YAML (a value: {error}); mend it there") from error
