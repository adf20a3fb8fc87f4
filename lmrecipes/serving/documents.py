"""What the service's own documentation (/docs, /openapi.json) says."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

ABOUT = "Rows in, answers out. `GET /` names the tasks, the columns that they read, and the limits."


class Asked(BaseModel):
    """Rows to predict."""

    rows: list[dict[str, Any]] | None = Field(
        None, description="Column and value of each row. Images and clips: the file's bytes as base64."
    )
    row: dict[str, Any] | None = Field(None, description="One row, in place of rows.")
    tasks: list[str] | None = Field(None, description="Tasks to answer; all, if left out.")
    probabilities: bool = Field(False, description="Whether to give the probability of every label.")


class Answered(BaseModel):
    """Answers by task, in the rows' order."""

    predictions: dict[str, list[dict[str, Any]]] = Field(
        description="regression: {value}; classification: {label, probability}; multi_label: {labels, probabilities}."
    )


class Mistake(BaseModel):
    """One thing to change."""

    where: str
    what: str
    fix: str


class NotAnswered(BaseModel):
    """Why there is no answer."""

    error: Mistake
    more: list[Mistake] = Field([], description="Further mistakes of the same request.")


STATUSES = {
    400: "The body is no JSON",
    408: "The body did not come in time",
    413: "The body is too large",
    415: "The body is not said to be JSON",
    422: "A row, a column or a task cannot be used",
    429: "Too many requests at the same time",
    503: "Too many rows wait, or the service is closing",
    504: "No answer in time",
}

PREDICT: dict[str, Any] = {
    "responses": {
        200: {"model": Answered, "description": "Answers by task, in the rows' order"},
        **{status: {"model": NotAnswered, "description": about} for status, about in STATUSES.items()},
    },
    "openapi_extra": {
        "requestBody": {"required": True, "content": {"application/json": {"schema": Asked.model_json_schema()}}}
    },
}
