"""What the service takes and gives, as its description says it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field


class Answer(BaseModel):
    """What the champion says of one photo, or why it says nothing (`error`)."""

    name: Annotated[str | None, Field(description="The photo's file name, as it was sent.")] = None
    label: Annotated[str | None, Field(description="The most probable class.")] = None
    probability: Annotated[float | None, Field(description="The probability of that class.")] = None
    sure: Annotated[
        bool | None,
        Field(
            description="Whether the probability reaches the threshold above which, in cross-validation, half as many "
            "answers are wrong as of all. null: the model has none."
        ),
    ] = None
    probabilities: Annotated[dict[str, float] | None, Field(description="By class name.")] = None
    error: Annotated[str | None, Field(description="Why the photo cannot be read.")] = None


class ServedModel(BaseModel):
    """Which model answered."""

    name: str
    version: str = Field(description="In MLflow's registry.")
    decision: str = Field(description="The key of the decision in the ledger that promoted it.")


class Answers(BaseModel):
    """Answers to all photos of a request, in their order, by one model."""

    model: ServedModel
    predictions: list[Answer]


class Problem(BaseModel):
    """Why a request got no answer."""

    error: str


BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {"photo": {"type": "array", "items": {"type": "string", "format": "binary"}}},
            }
        },
        "image/*": {"schema": {"type": "string", "format": "binary"}},
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {
                    "photo": {"type": "string", "contentEncoding": "base64"},
                    "photos": {"type": "array", "items": {"type": "string", "contentEncoding": "base64"}},
                },
            }
        },
    },
}
DESCRIBED = {
    "requestBody": BODY,
    "parameters": [
        {
            "name": "X-Collect-Consent",
            "in": "header",
            "required": False,
            "schema": {"type": "string", "enum": ["yes"]},
            "description": "`yes`: whoever owns the photos lets those that the model doubts be kept for some days, "
            "looked at and labelled. Nothing is kept without it, nor where the service keeps none.",
        }
    ],
}
STATUSES: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The body is not what its content type says."},
    401: {"model": Problem, "description": "The key is missing or wrong."},
    408: {"model": Problem, "description": "The body did not come in time."},
    413: {"model": Problem, "description": "Too many bytes or photos."},
    415: {"model": Problem, "description": "A content type that is not known."},
    422: {"model": Problem, "description": "No photo, or none that can be read."},
    503: {"model": Problem, "description": "No champion yet, or too much to do: try again."},
}
