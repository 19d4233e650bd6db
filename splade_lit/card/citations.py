"""What to cite, by what a model was made with."""

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

RANKING = """\
@misc{henderson2017efficient,
    title = {Efficient Natural Language Response Suggestion for Smart Reply},
    author = {Henderson, Matthew and Al-Rfou, Rami and Strope, Brian and Sung, Yun-hsuan and Luk{\\'a}cs,
        L{\\'a}szl{\\'o} and Guo, Ruiqi and Kumar, Sanjiv and Miklos, Balint and Kurzweil, Ray},
    year = {2017},
    eprint = {1705.00652},
    archivePrefix = {arXiv},
    url = {https://arxiv.org/abs/1705.00652},
}"""

FLOPS = """\
@misc{paria2020minimizing,
    title = {Minimizing FLOPs to Learn Efficient Sparse Representations},
    author = {Paria, Biswajit and Yeh, Chih-Kuan and Yen, Ian E. H. and Xu, Ning and Ravikumar, Pradeep
        and P{\\'o}czos, Barnab{\\'a}s},
    year = {2020},
    eprint = {2004.05665},
    archivePrefix = {arXiv},
    url = {https://arxiv.org/abs/2004.05665},
}"""

L0_MASK = """\
@misc{shen2025exploring,
    title = {Exploring $\\ell_0$ Sparsification for Inference-free Sparse Retrievers},
    author = {Shen, Xinjie and Geng, Zhichao and Yang, Yang},
    year = {2025},
    eprint = {2504.14839},
    archivePrefix = {arXiv},
    url = {https://arxiv.org/abs/2504.14839},
}"""
