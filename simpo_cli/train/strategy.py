"""How the policy of a run is spread over processes, as far as recipe, model and memory decide."""

from simpo_cli.errors import UserError
from simpo_cli.model.memory import Strategy, Workload, choose_strategy
from simpo_cli.model.source import ModelSource
from simpo_cli.recipe.schema import Recipe
from simpo_cli.train.optimizer import why_whole


def strategy_of(recipe: Recipe, source: ModelSource, work: Workload, longest: int) -> Strategy:
    """How the policy is spread over the ranks.

    Args:
        longest: tokens that the longest pair needs by itself.

    Raises:
        UserError: the recipe asks for what this machine, or this model, cannot do.
    """
    wanted = recipe.distributed.strategy
    if work.ranks == 1 and wanted != "fsdp2":
        return "none"
    if wanted == "none":
        raise UserError(
            f"distributed.strategy is none, and there are {work.ranks} processes.",
            "Set distributed.strategy to auto, or start one process.",
            key="distributed.strategy",
        )
    if wanted == "auto":
        may_checkpoint = recipe.model.gradient_checkpointing is not False
        wanted = choose_strategy(work, longest=longest, may_checkpoint=may_checkpoint)
    if wanted == "ddp":
        return "ddp"
    reasons = why_not_sharded(recipe, source)
    if work.cpu_offload and work.device.type == "cpu":
        reasons["distributed.cpu_offload"] = "there is no card"
    for key, why in reasons.items():
        raise UserError(f"{key} is not for fsdp2 here: {why}.", f"Leave {key} out, or use ddp.", key=key)
    return "fsdp2"


def why_not_sharded(recipe: Recipe, source: ModelSource) -> dict[str, str]:
    """Why fsdp2 cannot shard a run, by the keys of the recipe that speak against it; nothing where it can."""
    lora, moments = recipe.model.lora, why_whole(recipe)
    found = {
        "model.quantization": source.quantization and "codes of quantised weights are not sharded",
        "model.lora.use_dora": lora and lora.use_dora and "DoRA begins from whole weights, which it shards",
        "model.lora.init": lora and lora.init == "pissa" and "PiSSA begins from whole weights, which it shards",
        "model.compile": recipe.model.compile is True and "layers are gathered and let go of as they run",
        "train.optimizer": moments,
    }
    return {key: why for key, why in found.items() if why}
