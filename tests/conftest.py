"""What the tests share: an environment without a network, real data where it lies, and a tiny real tokenizer."""
# ruff: noqa: E402 (the environment comes before the imports that read it)

import os
import string
import tempfile
from pathlib import Path

# Before the first import of huggingface_hub and tokenizers, which read these once. Caches are the session's own.
CACHE = Path(tempfile.mkdtemp(prefix="splade_lit_tests_"))
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_CACHE"] = str(CACHE / "datasets")
os.environ["SPLADE_LIT_CACHE"] = str(CACHE / "splade_lit")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"
os.environ["CODECARBON_COUNTRY_ISO_CODE"] = "DEU"  # or a tracker would ask where it is

import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
import torch
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertTokenizerFast,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RobertaConfig,
    XLMRobertaConfig,
)

from splade_lit.encoder.document import MlmDocumentEncoder
from splade_lit.encoder.model import AsymmetricSparseEncoder
from splade_lit.encoder.query import IdfQueryEncoder

if TYPE_CHECKING:
    from command_runs import World

REPOSITORY = Path(__file__).parents[1]

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = """
the of and to in is was for on that by it with as from at his an were are which this be first not what who when where
how why song musical film city country river king queen music band album year world war state school team game player
book author written actor water blood heart disease cause treatment symptoms cell protein return value array tensor
list dict file function class module default given number string name type shape error data model train test search
query document sparse vector token index score ##s ##ed ##ing ##er ##ly ##ion ##al ##est
""".split()  # noqa: SIM905


@pytest.fixture(scope="session", autouse=True)
def _remove_cache() -> Iterator[None]:
    yield
    shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data: environment variable SPLADE_LIT_DATA, else `../shared/data` beside the repository."""
    folder = Path(os.environ.get("SPLADE_LIT_DATA", REPOSITORY.parent / "shared" / "data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set SPLADE_LIT_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a real uncased WordPiece tokenizer of about 200 tokens, 64 of them at most a text."""
    characters = string.ascii_lowercase + string.digits
    tokens = [*SPECIAL_TOKENS, *characters, *(f"##{c}" for c in characters), *".,?!-'()", *WORDS]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    backend = Tokenizer(WordPiece(vocab, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )
    folder = tmp_path_factory.mktemp("tiny_tokenizer")
    BertTokenizerFast(tokenizer_object=backend, model_max_length=64).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_tokenizer_dir: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of `tiny_tokenizer_dir`."""
    return AutoTokenizer.from_pretrained(tiny_tokenizer_dir)


_SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_CONFIGS = {
    "bert": (BertConfig, _SHAPE),
    "distilbert": (DistilBertConfig, {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}),
    "roberta": (RobertaConfig, _SHAPE),
    "xlm-roberta": (XLMRobertaConfig, _SHAPE),
    "electra": (ElectraConfig, {**_SHAPE, "embedding_size": 24}),
    # Layers of global and of local attention, whose window is shorter than the documents.
    "modernbert": (ModernBertConfig, {**_SHAPE, "local_attention": 8, "global_attn_every_n_layers": 2}),
    "mpnet": (MPNetConfig, _SHAPE),
    "deberta-v2": (DebertaV2Config, {**_SHAPE, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
}


def tiny_masked_lm(architecture: str, vocab_size: int, padding_id: int = 0, positions: int = 80) -> PreTrainedModel:
    """A random masked-language model of two layers whose weights are far enough from 0 for logits to differ."""
    config_class, shape = _CONFIGS[architecture]
    special = {"bos_token_id": None, "eos_token_id": None, "cls_token_id": None, "sep_token_id": None}
    config = config_class(
        vocab_size=vocab_size, pad_token_id=padding_id, max_position_embeddings=positions, **shape, **special
    )
    torch.manual_seed(len(architecture))
    model = AutoModelForMaskedLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            else:
                parameter.normal_(0, 0.2)
    return model.eval()


@pytest.fixture(scope="session")
def make_masked_lm() -> Callable[..., PreTrainedModel]:
    """Function of architecture and vocabulary size: see `tiny_masked_lm`."""
    return tiny_masked_lm


@pytest.fixture
def make_encoder(tiny_tokenizer: PreTrainedTokenizerBase) -> Callable[..., AsymmetricSparseEncoder]:
    """Function of an architecture: an asymmetric encoder with random weights and the tiny tokenizer."""

    def make(architecture: str = "bert", pooling: str = "max", activation: str = "relu", **settings: object):
        model = tiny_masked_lm(architecture, len(tiny_tokenizer))
        document = MlmDocumentEncoder(model, tiny_tokenizer.pad_token_id, pooling, activation)
        idf = torch.rand(len(tiny_tokenizer), generator=torch.Generator().manual_seed(0)) * 3
        return AsymmetricSparseEncoder(IdfQueryEncoder(idf), document, tiny_tokenizer, **settings).eval()

    return make


@pytest.fixture
def encoder(make_encoder: Callable[..., AsymmetricSparseEncoder]) -> AsymmetricSparseEncoder:
    """An encoder on a BERT; a test may change it."""
    return make_encoder()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The address of a PostgreSQL with pgvector, started for the tests that ask for it."""
    from servers import postgres

    with postgres() as url:
        yield url


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerBase) -> "World":
    """A tiny base model with pairs and tasks, made once for each file of tests."""
    from command_runs import make_world

    return make_world(tmp_path_factory.mktemp("world"), tiny_tokenizer)
