"""The recipe as a JSON Schema (draft 2020-12): editors complete keys, show the sentences and mark what is unknown."""

import dataclasses
from typing import Any

from simpo_cli.errors import UserError
from simpo_cli.recipe.field_docs import sentence
from simpo_cli.recipe.kinds import Kind, all_keys, fields_of, sub_section
from simpo_cli.recipe.schema import Recipe

DIALECT = "https://json-schema.org/draft/2020-12/schema"
TITLE = "simpo recipe"
_COMPUTED = {"type": "string", "pattern": r"\$\{", "description": "computed: ${section.key} or ${oc.env:NAME}"}


def json_schema(section: str = "") -> dict[str, Any]:
    """The schema of a recipe file, or of one section such as `loss` or `model.lora`.

    Nothing is required: a file may leave to `defaults:` what it does not say.
    """
    if not section:
        body = _section(Recipe)
        body["properties"] = {"defaults": _DEFAULTS, **body["properties"]}
        return {"$schema": DIALECT, "title": TITLE, **body}
    kind = all_keys().get(section)
    found = sub_section(kind) if kind is not None else None
    if found is None:
        names = [key for key, each in all_keys().items() if each.section is not None]
        raise UserError(f"{section} is not a section of a recipe.", f"Sections: {', '.join(names)}.")
    return {"$schema": DIALECT, "title": f"{TITLE}: {section}", **_section(found)}


_DEFAULTS = {
    "description": "Recipes that this one builds on, found beside this file or among the shipped ones; later wins.",
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
}


def _section(section: type[Any]) -> dict[str, Any]:
    properties = {}
    for field in dataclasses.fields(section):
        body = {"description": sentence(section, field.name), **_kind(fields_of(section)[field.name])}
        if field.default is not dataclasses.MISSING:
            body["default"] = field.default
        properties[field.name] = body
    doc = " ".join((section.__doc__ or "").split())
    return {"description": doc, "type": "object", "additionalProperties": False, "properties": properties}


def _kind(kind: Kind) -> dict[str, Any]:
    if kind.anything:
        return {}
    forms: list[dict[str, Any]] = []
    if kind.choices:
        forms.append({"enum": list(kind.choices)})
    if kind.boolean:
        forms.append({"type": "boolean"})
    if kind.number:
        forms.append({"type": "number"})
    elif kind.integer:
        forms.append({"type": "integer"})
    if kind.text:
        forms.append({"type": "string"})
    if kind.items is not None:
        forms.append({"type": "array", "items": _kind(kind.items)})
    if kind.keys and kind.values is not None:
        properties = dict.fromkeys(kind.keys, _kind(kind.values))
        forms.append({"type": "object", "additionalProperties": False, "properties": properties})
    elif kind.values is not None:
        forms.append({"type": "object", "additionalProperties": _kind(kind.values)})
    if kind.section is not None:
        forms.append(_section(kind.section))
    if kind.nullable:
        forms.append({"type": "null"})
    if not kind.text and kind.section is None:
        forms.append(_COMPUTED)
    return forms[0] if len(forms) == 1 else {"anyOf": forms}
