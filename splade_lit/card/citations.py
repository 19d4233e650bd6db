"""What to cite for any model; parts of the loss bring their own."""

SENTENCE_TRANSFORMERS = """\
@inproceedings{reimers-2019-sentence-bert,
    title = {Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks},
    author = {Reimers, Nils and Gurevych, Iryna},
    booktitle = {Proceedings of the 2019 Conference on Empirical Methods in Natural Language Processing},
    year = {2019},
    publisher = {Association for Computational Linguistics},
    url = {https://arxiv.org/abs/1908.10084},
}"""

SPLADE = """\
@misc{formal2021spladev2,
    title = {SPLADE v2: Sparse Lexical and Expansion Model for Information Retrieval},
    author = {Formal, Thibault and Lassance, Carlos and Piwowarski, Benjamin and Clinchant, St{\\'e}phane},
    year = {2021},
    eprint = {2109.10086},
    archivePrefix = {arXiv},
    url = {https://arxiv.org/abs/2109.10086},
}

@misc{formal2022distillation,
    title = {From Distillation to Hard Negative Sampling: Making Sparse Neural IR Models More Effective},
    author = {Formal, Thibault and Lassance, Carlos and Piwowarski, Benjamin and Clinchant, St{\\'e}phane},
    year = {2022},
    eprint = {2205.04733},
    archivePrefix = {arXiv},
    url = {https://arxiv.org/abs/2205.04733},
}"""

INFERENCE_FREE = """\
@misc{geng2024inferencefree,
    title = {Towards Competitive Search Relevance For Inference-Free Learned Sparse Retrievers},
    author = {Geng, Zhichao and Wang, Yiwen and Ru, Dongyu and Yang, Yang},
    year = {2024},
    eprint = {2411.04403},
    archivePrefix = {arXiv},
    url = {https://arxiv.org/abs/2411.04403},
}"""
