"""A model's own Python code: run only if the command line allows it, then hashed, shown and saved with the model."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM

from simpo_cli.cli.main import run as run_command
from simpo_cli.data.tokenizer import load_tokenizer
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.model import remote_code
from simpo_cli.model.load import count_parameters, load_model
from simpo_cli.model.source import find_model
from simpo_cli.recipe.composition import compose
from simpo_cli.recipe.schema import ModelRecipe
from tests.cli.seen import Seen, Simpo
from tests.security.means_model import AUTO_MAP, CODE, forget_remote_code, modules_cache, save_own_model
from tests.tiny import change_json

__all__ = ["modules_cache"]

FLAG = "--trust-remote-code"
MEANS = "model.path=means"
MAP = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": ["evil.Slow", "evil.Fast"]}

pytestmark = pytest.mark.usefixtures("modules_cache")


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """The folder that a model's code makes when it is run."""
    return tmp_path / "ran"


@pytest.fixture
def evil(tmp_path: Path, tiny_folder: Path, ran: Path) -> Path:
    """A model folder that transformers knows, whose files name code."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "tiny"))
    for name in ("evil.py", "modeling_evil.py", "custom_generate/generate.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"import os\nos.mkdir({str(ran)!r})\n")
    change_json(folder / "config.json", auto_map=MAP, trust_remote_code=True)
    change_json(folder / "tokenizer_config.json", auto_map=MAP, tokenizer_class="evil.Fast", trust_remote_code=True)
    return folder


@pytest.fixture
def means(place: Path, ran: Path) -> Path:
    """A model folder that transformers does not know, with its code."""
    return save_own_model(place / "means", ran=ran)


# Without the flag


def test_a_known_model_is_loaded_with_the_classes_of_transformers(evil: Path, ran: Path, tmp_path: Path) -> None:
    loaded: Any = load_model(find_model(str(evil)), torch.float32)
    assert type(loaded).__module__.startswith("transformers.")
    assert load_tokenizer(str(evil)).has_template
    assert not ran.exists()
    loaded.save_pretrained(tmp_path / "saved")
    assert "auto_map" not in json.loads((tmp_path / "saved" / "config.json").read_text())


@pytest.mark.parametrize("model_type", ["evil", "vit"])  # vit: a known configuration, and no causal language model
def test_a_model_that_needs_its_code_is_refused(model_type: str, evil: Path, ran: Path) -> None:
    (evil / "config.json").write_text(json.dumps({"model_type": model_type, "auto_map": MAP}))
    with pytest.raises(UserError, match="needs remote code") as caught:
        find_model(str(evil))
    assert caught.value.exit_code == ExitCode.USAGE
    assert "Read its code first; --trust-remote-code runs it." in caught.value.fix
    assert not ran.exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("trusted", [False, True])
def test_kernels_of_the_hub_are_refused_with_and_without_the_flag(
    key: str, inside: bool, trusted: bool, evil: Path, ran: Path
) -> None:
    asked = {key: "evil/kernel"}
    change_json(evil / "config.json", **({"text_config": asked} if inside else asked))
    refusal = f"asks for code of the hub .{key}: 'evil/kernel'"
    with remote_code.trusting(trusted), pytest.raises(UserError, match=refusal):
        find_model(str(evil))
    assert not ran.exists()


@pytest.mark.parametrize("key", ["model.trust_remote_code", "trust_remote_code", "data.trust_remote_code"])
def test_a_recipe_cannot_ask_for_it(key: str) -> None:
    with pytest.raises(UserError, match="is not a key of"):
        compose("demo", [f"{key}=true"])


@pytest.mark.usefixtures("means")
@pytest.mark.parametrize(
    "words",
    [
        ["train", "run.yaml", MEANS],
        ["train", "run.yaml", MEANS, "--dry-run"],
        ["eval", "run.yaml", MEANS],
        ["eval", "means", "--data", "prefs.jsonl"],
        ["eval", "run.yaml", "--baseline", "means"],
        ["eval", "means", "--generate", "--baseline", "builtin:guide", "--data", "prefs.jsonl"],
        ["chat", "means"],
        ["chat", "builtin:guide", "--beside", "means"],
        ["inspect", "run.yaml", MEANS],
        ["stats", "prefs.jsonl", "--model", "means"],
        ["stats", "--recipe", "run.yaml", "--model", "means"],
    ],
)
def test_no_command_runs_it_unasked(words: list[str], simpo: Simpo, place: Path) -> None:
    seen = simpo(*words)
    assert seen.code == ExitCode.USAGE
    assert seen.err.endswith("  Read its code first; --trust-remote-code runs it.\n")
    assert "means needs remote code" in seen.err
    assert not (place / "ran").exists()
    assert not (place / "runs/tried").exists()


# With the flag


def _document(seen: Seen) -> dict[str, Any]:
    assert seen.code == 0, seen.err
    found = json.loads(seen.out)
    assert isinstance(found, dict)
    return found


@pytest.mark.usefixtures("means")
def test_train_evaluate_inspect_and_measure(simpo: Simpo, place: Path) -> None:
    seen = simpo("train", "run.yaml", MEANS, FLAG)
    assert seen.code == 0, seen.err
    said = " ".join(seen.err.split())
    assert f"code of the model was run, as --trust-remote-code asks: {', '.join(CODE)}" in said
    assert "padded rows (means does not compute its attention through the interface of transformers)" in said
    receipt = json.loads((place / "runs/tried" / "run.json").read_text())
    hashes = {name: hashlib.sha256((place / "means" / name).read_bytes()).hexdigest() for name in CODE}
    assert receipt["model"]["code"] == hashes
    assert receipt["command"].endswith(FLAG)
    assert receipt["self_check"]["difference"]["tokens"] > 0
    assert f"simpo eval runs/tried {FLAG}" in seen.err
    page = (place / "runs/tried" / "report.html").read_text()
    assert f"output_dir=runs/tried-again {FLAG}" in page
    assert f"simpo eval runs/tried {FLAG}" in page

    score = simpo("eval", "runs/tried", "--json", FLAG)
    assert f"code of runs/tried/model is run: {', '.join(CODE)}" in score.err
    assert f"code of means is run: {', '.join(CODE)}" in score.err
    assert _document(score)["accuracy"] == receipt["outcome"]["after"]["accuracy"]
    shown = _document(simpo("inspect", "runs/tried", "-n", "1", "--json", FLAG))
    assert shown["pairs"][0]["loss"] is not None
    start = _document(simpo("stats", "prefs.jsonl", "--model", "means", "--max-length", "64", "--json", FLAG))
    assert start["model"]["model"] == "means"
    answers = simpo(
        *("eval", "runs/tried", "--generate", "--num-prompts", "2", "--max-new-tokens", "3"),
        *("--engine", "transformers", "--json", FLAG),
    )
    trained = _document(answers)["manifest"]["models"]["trained"]["sha256"]
    assert {name: trained[name] for name in CODE} == hashes


@pytest.mark.usefixtures("means")
def test_the_saved_model_is_one_that_others_load(simpo: Simpo, place: Path, modules_cache: Path) -> None:
    """By transformers alone, when nothing is left of the model that it began with."""
    (place / "means" / "tokenization_means.py").write_text("from .words_means import WORDS\n")
    (place / "means" / "words_means.py").write_text("WORDS = 1\n")
    named = {"AutoTokenizer": [None, "tokenization_means.MeansTokenizer"]}
    change_json(place / "means" / "tokenizer_config.json", auto_map=named)
    assert simpo("train", "run.yaml", MEANS, FLAG).code == 0
    model = place / "runs/tried" / "model"
    names = {file.name for file in model.iterdir()}
    assert {*CODE, "tokenization_means.py", "words_means.py"} <= names
    assert all((model / name).read_bytes() == (place / "means" / name).read_bytes() for name in CODE)
    card = ModelCard.load(model / "README.md")
    assert "custom_code" in card.data.tags
    assert "AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)" in card.text
    assert f"Python code in this folder (`{'`, `'.join(CODE)}`): read it before you load the model." in card.text
    ids = torch.tensor([[5, 6, 7]])
    with remote_code.trusting(True):
        logits = load_model(find_model(str(model)), torch.float32)(ids).logits
    (place / "means").rename(place / "gone")
    shutil.rmtree(modules_cache)
    forget_remote_code()
    theirs = AutoModelForCausalLM.from_pretrained(model, trust_remote_code=True)
    assert type(theirs).__name__ == "MeansForCausalLM"
    torch.testing.assert_close(theirs(ids).logits, logits, rtol=0, atol=0)


@pytest.mark.usefixtures("means")
def test_a_resumed_run_notices_other_code_and_a_flag_that_is_gone(simpo: Simpo, place: Path) -> None:
    assert simpo("train", "run.yaml", MEANS, FLAG).code == 0
    longer = ("train", "run.yaml", MEANS, "train.max_steps=3", "--resume")
    assert simpo(*longer).code == ExitCode.USAGE
    file = place / "means" / "mixing_means.py"
    content = file.read_text()
    file.write_text(content + "\n# changed\n")
    seen = simpo(*longer, FLAG)
    assert seen.code == ExitCode.USAGE
    assert "the model's own code is another (mixing_means.py)" in seen.err
    assert "--allow-changed model.path" in seen.err
    file.write_text(content)
    seen = simpo(*longer, FLAG)
    assert seen.code == 0, seen.err
    assert "resumes from step 2 of 3" in seen.err


@pytest.mark.usefixtures("means")
def test_adapters_beside_such_a_model_are_merged_into_it(simpo: Simpo, place: Path) -> None:
    lora = ["model.lora.rank=2", "model.lora.target_modules=[mix]"]
    assert simpo("train", "run.yaml", MEANS, *lora, FLAG).code == 0
    card = (place / "runs/tried" / "model" / "README.md").read_text()
    assert "AutoPeftModelForCausalLM.from_pretrained(path, trust_remote_code=True)" in card
    assert "Python code that comes with the model under it" in card
    seen = simpo("export", "runs/tried", "--merge")
    assert seen.code == ExitCode.USAGE
    assert FLAG in seen.err
    assert not (place / "runs/tried" / "merged").exists()
    seen = simpo("export", "runs/tried", "--merge", FLAG)
    assert seen.code == 0, seen.err
    assert {file.name for file in (place / "runs/tried" / "merged").iterdir()} >= set(CODE)


def test_a_class_that_only_claims_to_share_prompts_goes_padded(simpo: Simpo, place: Path) -> None:
    save_own_model(place / "means", ran=place / "ran", claims_to_share=True)
    packing = _document(simpo("inspect", "run.yaml", MEANS, "-n", "1", "--json", FLAG))["model"]["packing"]
    assert re.match(r"padded rows \(sharing them is not exact here: .*\) · self-check: [\d,]+ tokens equal", packing)


def test_a_model_that_transformers_knows_runs_its_own_code_as_well(place: Path, tiny_folder: Path) -> None:
    """As `trust_remote_code=True` does everywhere else."""
    folder = Path(shutil.copytree(tiny_folder, place / "known"))
    (folder / "modeling_own.py").write_text(
        f"import os\n\nos.mkdir({str(place / 'ran')!r})\n"
        "from transformers import LlamaForCausalLM\n\n\nclass OwnLlama(LlamaForCausalLM):\n    pass\n"
    )
    change_json(folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling_own.OwnLlama"})
    with remote_code.trusting(True):
        source = find_model(str(folder))
        loaded = load_model(source, torch.float32)
    assert source.code.keys() == {"modeling_own.py"}
    assert type(loaded).__name__ == "OwnLlama"
    unasked = find_model(str(folder))
    assert unasked.code == {}
    assert type(load_model(unasked, torch.float32)).__name__ == "LlamaForCausalLM"


def test_python_files_are_fetched_where_they_are_asked_for(means: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = Path(shutil.copytree(means, means.parent / ("c" * 40)))
    fetched: list[set[str]] = []

    def snapshot_download(*_: object, allow_patterns: list[str], **__: object) -> str:
        fetched.append(set(allow_patterns))
        return str(commit)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(remote_code.NeedsRemoteCodeError):
        find_model("org/means")
    with remote_code.trusting(True):
        source = find_model("org/means")
    assert fetched[1] - fetched[0] == {"*.py"}
    assert (source.revision, tuple(source.code)) == ("c" * 40, CODE)


# With the flag: still refused, or left alone


def _named(reference: object) -> Callable[[Path], None]:
    named = {**AUTO_MAP, "AutoModelForCausalLM": reference}
    return lambda folder: change_json(folder / "config.json", auto_map=named)


def _replaced(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace(old, new) if old else text + new)

    return change


@pytest.mark.parametrize(
    ("change", "said", "exit_code", "is_run"),
    [
        (_named("other/repository--modeling_means.MeansForCausalLM"), "names code of another repository", 2, False),
        (_named("/tmp/modeling_means.MeansForCausalLM"), "no class in a file beside it", 2, False),
        (_named("../means/modeling_means.MeansForCausalLM"), "no class in a file beside it", 2, False),
        (_named("modeling_means"), "no class in a file beside it", 2, False),
        (_named(["modeling_means.MeansForCausalLM"]), "no class in a file beside it", 2, False),
        (_named("missing.MeansForCausalLM"), "lacks missing.py, which is part of its code", 2, False),
        (lambda folder: (folder / "mixing_means.py").unlink(), r"lacks mixing_means\.py", 2, False),
        (
            _replaced("modeling_means.py", "", "import no_such_package\n"),
            "fails: ImportError: .*no_such_package", 4, True,
        ),
        (_replaced("modeling_means.py", "", "raise KeyError('old')\n"), "fails: KeyError: 'old'", 2, True),
        (
            _replaced("modeling_means.py", "", "MeansForCausalLM = dict\n"),
            "not built like a causal language model", 2, True,
        ),
        (
            _replaced("configuration_means.py", '"hidden_size": "width"', '"wide": "width"'),
            "does not say its hidden_size", 2, True,
        ),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            "only pickled weights", 2, True,
        ),
    ],
)  # fmt: skip
def test_what_is_refused_all_the_same(
    change: Callable[[Path], object], said: str, exit_code: int, is_run: bool, means: Path, ran: Path
) -> None:
    change(means)
    with remote_code.trusting(True), pytest.raises(UserError, match=said) as caught:
        find_model(str(means))
    assert caught.value.exit_code == exit_code
    assert is_run or not ran.exists()


def test_layers_that_cannot_be_found_are_said_and_no_crash(simpo: Simpo, means: Path) -> None:
    file = means / "modeling_means.py"
    file.write_text(file.read_text().replace("BaseModelOutput(last_hidden_state=states)", "(states,)"))
    seen = simpo("train", "run.yaml", MEANS, FLAG)
    assert seen.code == ExitCode.USAGE
    assert "this model cannot be computed here: AttributeError" in seen.err
    assert "last_hidden_state" in seen.err


def test_neither_a_decoding_nor_a_tokenizer_of_its_own_is_run(means: Path, place: Path) -> None:
    mark = f"import os\n\nos.makedirs({str(place / 'also ran')!r})\n"
    (means / "custom_generate").mkdir()
    for name in ("custom_generate/generate.py", "tokenization_means.py"):
        (means / name).write_text(mark)
    named = {"AutoTokenizer": [None, "tokenization_means.Tokenizer"]}
    change_json(means / "tokenizer_config.json", auto_map=named)
    with remote_code.trusting(True):
        source = find_model(str(means))
        count_parameters(ModelRecipe(path=str(means)), source)
        model: Any = load_model(source, torch.float32)
    model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=2, pad_token_id=0)
    assert (place / "ran").exists()
    assert not (place / "also ran").exists()


# Consent ends with the command


def test_consent_ends_with_its_block_and_with_every_command(means: Path, simpo: Simpo, place: Path) -> None:
    with pytest.raises(ZeroDivisionError), remote_code.trusting(True):
        raise ZeroDivisionError
    assert simpo("train", "run.yaml", MEANS, "--dry-run", FLAG).code == 0
    assert simpo("train", "run.yaml", MEANS, "data.train=missing.jsonl", FLAG).code == ExitCode.USAGE
    assert run_command(["train", "run.yaml", FLAG, "--frehs"]) == ExitCode.USAGE
    assert not remote_code.is_trusted()
    with pytest.raises(remote_code.NeedsRemoteCodeError):
        find_model(str(means))
    assert simpo("train", "run.yaml", MEANS, "--dry-run").code == ExitCode.USAGE
    assert (place / "ran").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["stats", "prefs.jsonl", FLAG],
        ["inspect", "run.yaml", "--no-model", FLAG],
        ["export", "runs/tried", "--push", "me/model", FLAG],
    ],
)
def test_the_flag_is_refused_where_it_would_do_nothing(words: list[str], simpo: Simpo) -> None:
    seen = simpo(*words)
    assert seen.code == ExitCode.USAGE
    assert "--trust-remote-code is about the code of a model, and none is loaded." in seen.err
