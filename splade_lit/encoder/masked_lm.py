"""Loading what a base model brings: its tokenizer and its masked-language model."""

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from splade_lit.core.errors import UserError, first_line
from splade_lit.core.sources import resolve_source
from splade_lit.core.tokenisation import vocabulary_size
from splade_lit.encoder.grafted import graft_head
from splade_lit.encoder.layout import find_inference_free

logger = logging.getLogger(__name__)

# What configurations of transformers' encoders call their dropouts.
_DROPOUTS = (
    *("hidden_dropout_prob", "attention_probs_dropout_prob"),
    *("dropout", "attention_dropout", "embedding_dropout", "mlp_dropout"),
)
_PAD_TOKENS = ("[PAD]", "<pad>", "<|pad|>", "<|padding|>")
# The largest whole numbers of a config.json, by the ends of their names: models are built by them before their weights
# are looked at. Frequencies (`rope_theta`) are no sizes.
_LARGEST = ((r"layers?|groups|networks|block_sizes", 1_000), (r"labels", 100_000), (r".*(?<!theta)", 20_000_000))
_WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")


def load_tokenizer(source: str, **settings: Any) -> PreTrainedTokenizerBase:
    """The fast tokenizer of a base model, a saved model, or a folder of its own; `source` is as for `find_saved`.

    `settings` are `revision` and `trust_remote_code`, as `AutoTokenizer` takes them.

    Raises:
        UserError: there is none, or it is not a fast one.
    """
    layout = find_inference_free(source, settings.get("revision"))
    path = source if layout is None else str(layout.document_folder)
    if not Path(resolve_source(path), "tokenizer.json").is_file():
        _check_source(path)
    _check_sizes(path, settings)  # the tokenizer's class may be that of the config.json
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve_source(path), **settings)
    except Exception as error:  # tokenizers raises bare exceptions for files that it cannot read
        raise UserError(_load_failure(source, "tokenizer is damaged or is something else", error)) from error
    if not tokenizer.is_fast:
        raise UserError(f"{source} has no fast tokenizer; save one as tokenizer.json beside the model.")
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):  # what transformers makes up for missing files
        raise UserError(f"{source} has no tokenizer (tokenizer.json); copy it beside the config.json.")
    if tokenizer.pad_token is None:
        _choose_padding(tokenizer, source)
    return tokenizer


def _choose_padding(tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Name a pad token: what tokenizers call it by convention, else another special token; texts are masked there."""
    vocabulary = tokenizer.get_vocab()
    usual = next((token for token in _PAD_TOKENS if token in vocabulary), None)
    token = usual or tokenizer.unk_token or tokenizer.eos_token or tokenizer.sep_token
    if token is None:
        raise UserError(f"{source}: its tokenizer has no pad token; set pad_token in its tokenizer_config.json.")
    if usual is None:
        logger.warning("%s: its tokenizer names no pad token, so %s pads its documents.", source, token)
    tokenizer.add_special_tokens({"pad_token": token})


def load_masked_lm(
    source: str, tokenizer: PreTrainedTokenizerBase, dropout: float | None = None, **settings: Any
) -> tuple[PreTrainedModel, bool]:
    """A masked-language model in fp32 with the tokenizer's vocabulary, and whether its head had to be grafted.

    `source` and `settings` are those of `load_tokenizer`; `dropout` replaces all those of the model's config.json.

    Raises:
        UserError: the model cannot be loaded.
    """
    _check_source(source)
    path = resolve_source(source)
    if Path(path).is_dir() and not any(any(Path(path).glob(pattern)) for pattern in _WEIGHT_FILES):
        raise UserError(f"{source} has no weights (model.safetensors); copy them beside its config.json.")
    _check_sizes(source, settings)
    with quiet_transformers():
        try:
            config = AutoConfig.from_pretrained(path, **settings)
        except Exception as error:
            raise UserError(
                _load_failure(source, "config.json is not one that the installed transformers knows", error)
            ) from error
        if type(config) not in MODEL_FOR_MASKED_LM_MAPPING and not settings.get("trust_remote_code"):
            raise UserError(
                f"{source} is a {config.model_type} model, which has no masked-LM form in transformers; use an encoder "
                "such as BERT."
            )
        for name in _DROPOUTS if dropout is not None else ():
            if hasattr(config, name):
                setattr(config, name, dropout)
        try:
            model, info = AutoModelForMaskedLM.from_pretrained(
                path, config=config, dtype=torch.float32, output_loading_info=True, **settings
            )
        except Exception as error:  # safetensors and pickle raise types of their own for files that they cannot read
            if "mismatched" in str(error):
                raise UserError(f"{source}: its weights do not fit its config.json; use a matching pair.") from error
            raise UserError(_load_failure(source, "weights are damaged or are something else", error)) from error
    missing = set(info["missing_keys"])
    head = {name for name in missing if not name.startswith(f"{model.base_model_prefix}.")}
    if missing - head:
        raise UserError(
            f"{source} is not a checkpoint of a {type(model).__name__}: its body lacks {sorted(missing - head)[0]}."
        )
    if head:
        logger.info("%s has no masked-LM head; one is grafted on (tied decoder, identity dense layer).", source)
        graft_head(model, head)
    vocab_size = vocabulary_size(tokenizer.get_vocab(), source)
    if vocab_size != model.config.vocab_size:
        # Entries without a token would be dims that no query reaches; tokens without an entry would fail.
        model.resize_token_embeddings(vocab_size, mean_resizing=False)
    return model, bool(head)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No table of missing parameters and no bars of transformers: the caller says what matters in one line."""
    verbosity, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()


def _check_source(source: str) -> None:
    """Check that a source is a folder with a config.json, or may be a Hub id."""
    path = resolve_source(source)
    if Path(path).is_dir():
        if not Path(path, "config.json").is_file():
            raise UserError(f"{source} is not a model folder: it has no config.json.")
    elif Path(path).exists() or path.startswith((".", "/")) or path.count("/") > 1:
        raise UserError(f"{source} is not a folder; give a model folder, a Hub id, or package:NAME/FOLDER.")


def _check_sizes(source: str, settings: Mapping[str, Any]) -> None:
    """Raise a UserError if a config.json has sizes that no model has, of which one would take hours and all memory."""
    try:
        config, _ = PreTrainedConfig.get_config_dict(resolve_source(source), revision=settings.get("revision"))
        sizes = list(_whole_numbers(config))
    except Exception:  # whoever loads it says what is wrong
        return
    for name, size in sizes:
        if size > next((most for ends, most in _LARGEST if re.search(f"({ends})$", name)), size):
            told = f"{name} is {size:,} in its config.json, which no model has"
            raise UserError(f"{source}: {told}; fetch the model again or use another one.")


def _whole_numbers(value: Any, name: str = "") -> Iterator[tuple[str, int]]:
    """Name and value of all whole numbers, those of lists under the list's name; labels have names of their own."""
    if isinstance(value, dict) and name != "label2id":
        for inner in value:
            yield from _whole_numbers(value[inner], inner)
    elif isinstance(value, list):
        for one in value:
            yield from _whole_numbers(one, name)
    elif type(value) is int:
        yield name, value


def _load_failure(source: str, local_problem: str, error: Exception) -> str:
    # What the libraries say of local files runs over many lines; it stays in the chain of exceptions.
    if Path(resolve_source(source)).is_dir():
        return f"{source}: its {local_problem}; fetch the model again or use another one."
    return (
        f"{source} is not a folder, and the Hub does not give it; check the name and the network ({first_line(error)})."
    )
