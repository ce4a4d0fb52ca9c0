"""The layers of a recipe, lowest first: the files it builds on, the file itself, the overrides; and their union."""

from simpo_cli.errors import UserError
from simpo_cli.recipe.shipped import RecipeFile, find_default, suggest_default
from simpo_cli.recipe.tree import ListNode, MappingNode, Origin, ScalarNode, merge
from simpo_cli.recipe.yaml_source import parse_file, read_text

MAX_DEFAULTS_DEPTH = 8
MAX_LAYERS = 64


def file_layers(file: RecipeFile) -> tuple[list[MappingNode], list[str]]:
    """The trees of a recipe file and of everything in its `defaults:`, lowest first, and notes on shadowed names."""
    layers: list[MappingNode] = []
    notes: list[str] = [file.note] if file.note else []
    _collect(file, (), None, layers, notes)
    return layers, notes


def _collect(
    file: RecipeFile, above: tuple[RecipeFile, ...], named: Origin | None, layers: list[MappingNode], notes: list[str]
) -> None:
    where = named.where if named else ""
    resolved = file.path.resolve()
    if any(resolved == other.path.resolve() for other in above):
        chain = " -> ".join(other.display for other in (*above, file))
        raise UserError(f"defaults go round in a circle: {chain}.", "Remove one of these names.", where=where)
    if len(above) >= MAX_DEFAULTS_DEPTH or len(layers) >= MAX_LAYERS:
        raise UserError(
            f"defaults are nested more than {MAX_DEFAULTS_DEPTH} deep or name more than {MAX_LAYERS} files.",
            "Put what the files share into one of them.",
            where=where,
        )
    tree = parse_file(read_text(file.path, file.display), file.display)
    for name, origin in _defaults_of(tree):
        found = find_default(name, file)
        if found is None:
            raise UserError(
                f"defaults names {name!r}, which does not exist.", suggest_default(name), where=origin.where
            )
        if found.path.is_dir():
            raise UserError(
                f"defaults names {name!r}, which is a folder.", "Name one recipe in it.", where=origin.where
            )
        if found.note and found.note not in notes:
            notes.append(found.note)
        _collect(found, (*above, file), origin, layers, notes)
    layers.append(tree)


def _defaults_of(tree: MappingNode) -> list[tuple[str, Origin]]:
    """Take `defaults` out of a layer: names with the lines they stand in."""
    node = tree.items.pop("defaults", None)
    if node is None:
        return []
    items = node.items if isinstance(node, ListNode) else [node]
    names = []
    for item in items:
        if not isinstance(item, ScalarNode) or not isinstance(item.value, str) or not item.value.strip():
            raise UserError(
                "defaults must be the name of a recipe, or a list of names.",
                "For example: defaults: [paper/llama3-8b-instruct, lora]",
                where=item.origin.where,
            )
        if "${" in item.value:
            raise UserError(
                "defaults cannot use ${...}: they are read before values are known.",
                "Write the name.",
                where=item.origin.where,
            )
        names.append((item.value.strip(), item.origin))
    return names


def stack(layers: list[MappingNode]) -> MappingNode:
    """All layers laid over each other, the last one on top."""
    merged = MappingNode({})
    for layer in layers:
        united = merge(merged, _one_margin(layer))
        assert isinstance(united, MappingNode)
        merged = united
    return merged


def _one_margin(layer: MappingNode) -> MappingNode:
    """gamma and gamma_beta_ratio say one thing: a layer that names one clears the other in the layers below it."""
    loss = layer.items.get("loss")
    if not isinstance(loss, MappingNode):
        return layer
    named = [key for key in ("gamma", "gamma_beta_ratio") if not _is_null(loss, key)]
    if len(named) == 2:
        later = max((loss.items[key].origin for key in named), key=lambda origin: origin.line or 0)
        raise UserError(
            "loss.gamma and loss.gamma_beta_ratio say one thing in two ways, and both are given.",
            "Keep one: gamma is gamma_beta_ratio times beta.",
            where=later.where,
        )
    if len(named) == 1:
        other = "gamma" if named[0] == "gamma_beta_ratio" else "gamma_beta_ratio"
        cleared = {**loss.items, other: ScalarNode(None, loss.items[named[0]].origin)}
        return MappingNode({**layer.items, "loss": MappingNode(cleared, loss.origin)}, layer.origin)
    return layer


def _is_null(loss: MappingNode, key: str) -> bool:
    node = loss.items.get(key)
    return node is None or (isinstance(node, ScalarNode) and node.value is None)
