"""A masked-LM head for encoders that have none, and a start that is neither dense nor dead.

Any sentence encoder can become a document encoder: the decoder is tied to the input embeddings, the dense layer of the
head is the identity, and the decoder bias is set so that an average document starts with a chosen number of active
dims.
"""

from collections.abc import Collection

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from splade_lit.core.tokens import Tokens
from splade_lit.encoder.document import MlmDocumentEncoder

START_ACTIVE_DIMS = 200
DOCUMENTS_AT_A_TIME = 32


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
def calibrate_bias(
    encoder: MlmDocumentEncoder, sample: Tokens, active_dims: int = START_ACTIVE_DIMS
) -> Float[Tensor, "documents vocab"]:
    """Set the decoder bias so that a document of the sample has about `active_dims` active dims on average.

    The mean over documents of each dim's largest logit is taken away (what all documents share says nothing), then one
    threshold for all dims. A few hundred documents like those of the training corpus do.

    Returns:
        The largest logits of the sample's documents with that bias; dims above 0 are active.

    Raises:
        UserError: the decoder has no bias, and the model has no place for one.
    """
    encoder.add_bias()
    encoder.decoder.bias.zero_()
    logits = torch.cat([encoder.max_logits(batch) for batch in sample.split(DOCUMENTS_AT_A_TIME)])
    mean = logits.mean(0)
    centred = (logits - mean).flatten()
    active = min(active_dims * len(logits), centred.numel() - 1)
    threshold = centred.kthvalue(centred.numel() - active).values
    encoder.decoder.bias.copy_(-mean - threshold)
    return logits.add_(encoder.decoder.bias)
