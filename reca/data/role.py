"""The roles of data sets: one enumeration from the configuration's `data:` to the trainer's batches."""

from enum import StrEnum
from typing import Literal


class Role(StrEnum):
    """What a data set is used for; the values are the keys of `data:` in an experiment."""

    RECONSTRUCT = "reconstruct"
    ANSWER = "answer"
    TEXT = "text"
    EDIT = "edit"


USES: dict[Role, Literal["draw", "read", "edit"]] = {
    Role.RECONSTRUCT: "draw",
    Role.ANSWER: "read",
    Role.EDIT: "edit",
}
"""How the images of a role are encoded (`reca.models.contract.Use`); the role `text` has none."""


def stream_of(role: Role) -> str:
    """The part of a random key that names the data of a role; all tasks that read them share their order and noise.

    So the arms reca, shuffled and sft see the same images under the same noise and differ only in the condition.
    """
    return USES.get(role, role.value)
