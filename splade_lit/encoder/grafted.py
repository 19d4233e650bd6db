"""A masked-LM head for encoders that have none, and a start that is neither dense nor dead.

Any sentence encoder can become a document encoder: the decoder is tied to the input embeddings, the dense layer of the
head is the identity, and the decoder bias is set so that an average document starts with a chosen number of active
dims.
"""

from collections.abc import Collection

import torch
from torch import nn
from transformers import PreTrainedModel

from splade_lit.core.tokens import Tokens
from splade_lit.encoder.document import MlmDocumentEncoder

START_ACTIVE_DIMS = 200
_DENSE_SHARE = 0.05
_CONSTANT_SIMILARITY = 0.99


def graft_head(model: PreTrainedModel, missing_parameters: Collection[str]) -> None:
    """Set those parameters of the head that the checkpoint lacks: linear layers to the identity, norms to no change.

    A random dense layer in their place would throw away what the body knows, and training collapses. The decoder, tied
    to the input embeddings, keeps its weight; its bias starts at 0 and is set by `calibrate_bias`.
    """
    decoder = model.get_output_embeddings()
    for owner in {name.rpartition(".")[0] for name in missing_parameters}:
        module = model.get_submodule(owner)
        for name, parameter in module.named_parameters(recurse=False):
            if f"{owner}.{name}" not in missing_parameters and not (module is decoder and name == "bias"):
                continue
            if name == "bias":
                nn.init.zeros_(parameter)
            elif isinstance(module, nn.Linear) and module is not decoder:
                nn.init.eye_(parameter)
            elif not isinstance(module, nn.Linear):
                nn.init.ones_(parameter)


@torch.no_grad()
def calibrate_bias(encoder: MlmDocumentEncoder, sample: Tokens, active_dims: int = START_ACTIVE_DIMS) -> None:
    """Set the decoder bias so that a document of the sample has about `active_dims` active dims on average.

    The mean over documents of each dim's largest logit is taken away (what all documents share says nothing), then one
    threshold for all dims. A few hundred documents like those of the training corpus do.

    Raises:
        UserError: the decoder has no bias, and the model has no place for one.
    """
    encoder.add_bias()
    encoder.decoder.bias.zero_()
    logits = torch.cat([encoder.max_logits(batch) for batch in _batches(sample)])
    mean = logits.mean(0)
    centred = (logits - mean).flatten()
    active = min(active_dims * len(logits), centred.numel() - 1)
    threshold = centred.kthvalue(centred.numel() - active).values
    encoder.decoder.bias.copy_(-mean - threshold)


@torch.no_grad()
def start_warning(encoder: MlmDocumentEncoder, sample: Tokens) -> str | None:
    """One line that says what is wrong with the vectors of a sample of documents and what to do, or None."""
    embeddings = torch.cat([encoder(batch) for batch in _batches(sample)])
    active_dims = (embeddings > 0).sum(1).float().mean().item()
    share, count = active_dims / encoder.vocab_size, len(embeddings)
    unit = nn.functional.normalize(embeddings, dim=1)
    # Mean cosine similarity of two different documents.
    similarity = ((unit.sum(0) ** 2).sum().item() - count) / max(count * (count - 1), 1)
    if active_dims == 0:
        problem = "documents start without any active dim"
    elif share > _DENSE_SHARE:
        problem = f"documents start dense ({active_dims:,.0f} active dims, {share:.0%} of the vocabulary)"
    elif similarity > _CONSTANT_SIMILARITY:
        problem = f"documents start nearly constant (mean cosine similarity {similarity:.3f})"
    else:
        return None
    return f"{problem}; set model.start_active_dims (such as {START_ACTIVE_DIMS}) to calibrate the decoder bias."


def _batches(tokens: Tokens, size: int = 32) -> list[Tokens]:
    texts = list(tokens)
    return [Tokens(torch.cat(texts[i : i + size]), tokens.lengths[i : i + size]) for i in range(0, len(texts), size)]
