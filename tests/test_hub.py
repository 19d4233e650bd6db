"""The Hub's own code path: the reference run's YAML word for word, against a stand-in that serves tiny repositories."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
import yaml
from command_runs import NDCG, Outcome, call, command, read_json, write_nanobeir
from conftest import REPOSITORY, tiny_masked_lm
from hub_stand_in import HubStandIn, Repository, serve
from tiny_runs import save_base

from splade_lit import search
from splade_lit.command_line.devices import precision_on_cpu
from splade_lit.data.pairs import DEFAULT_REVISIONS, NATURAL_QUESTIONS
from splade_lit.data.tasks import NANOBEIR_ID, NANOBEIR_SPLITS

CONFIG = REPOSITORY / "experiments" / "nq_distilbert.yaml"
REVISION = "f9e894e1081e206e577b4eaa9ee6de2b06ae6f17"
BASE = "distilbert/distilbert-base-uncased"
SAVED = "someone/tiny-splade"
NUM_PAIRS = 1_200
TEXTS = ["who wrote the song of the film", "the water of the river", "a team game of the year"]
# What a run of minutes on a GPU needs to be one of seconds here, and nothing else.
SHORT = ["--trainer.max_steps=2", "--trainer.limit_val_batches=1", "--trainer.accelerator=cpu"]


@pytest.fixture(scope="module")
def repositories(tmp_path_factory, tiny_tokenizer) -> list[Repository]:
    """DistilBERT of two small layers, 1,200 pairs at the pinned revision, three NanoBEIR sets."""
    folder = tmp_path_factory.mktemp("hub")
    base = save_base(folder / "base", tiny_masked_lm("distilbert", len(tiny_tokenizer), positions=512), tiny_tokenizer)
    rng = random.Random(1)
    words = sorted(token for token in tiny_tokenizer.get_vocab() if token.isalpha() and len(token) > 1)
    texts = [rng.choices(words, k=10) for _ in range(NUM_PAIRS)]
    rows = [
        {"query": " ".join([*text[:4], str(n)]), "answer": " ".join([*text, str(n)])} for n, text in enumerate(texts)
    ]
    (folder / "pairs" / "pair").mkdir(parents=True)
    datasets.Dataset.from_list(rows).to_parquet(folder / "pairs" / "pair" / "train-00000-of-00001.parquet")
    card = {"configs": [{"config_name": "pair", "data_files": [{"split": "train", "path": "pair/train-*"}]}]}
    (folder / "pairs" / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n")
    # A later commit, as main has on the Hub, whose columns would not do.
    datasets.Dataset.from_dict({"question": ["a"]}).to_parquet(folder / "later" / "train.parquet")
    splits = [NANOBEIR_SPLITS[name] for name in ("msmarco", "nfcorpus", "nq")]
    return [
        Repository.of_folder("models", BASE, base),
        Repository.of_folder("datasets", NATURAL_QUESTIONS, folder / "pairs", REVISION, refs=()),
        Repository.of_folder("datasets", NATURAL_QUESTIONS, folder / "later"),
        Repository.of_folder("datasets", NANOBEIR_ID, write_nanobeir(folder / "nano", tiny_tokenizer, splits)),
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Where the runs are, with the caches of the machine that they play on."""
    return tmp_path_factory.mktemp("place")


def fit(place: Path, run: str, **changes: str) -> Outcome:
    arguments = ["--config", CONFIG, *SHORT, "--trainer.default_root_dir", place / run]
    return command("splade_lit.fit", *arguments, cwd=place, **caches(place), **changes)


def caches(place: Path) -> dict[str, str]:
    home = str(place / "hub")
    return {"HF_HOME": home, "HF_DATASETS_CACHE": f"{home}/datasets", "SPLADE_LIT_CACHE": str(place / "cache")}


@pytest.fixture(scope="module")
def hub(repositories, place) -> Iterator[tuple[HubStandIn, Outcome]]:
    with serve(list(repositories)) as hub:
        yield hub, fit(place, "online", HF_ENDPOINT=hub.endpoint, HF_HUB_OFFLINE="0")


def test_the_reference_run_word_for_word(hub, place):
    hub, outcome = hub
    assert outcome.code == 0, outcome.err
    run = place / "online"
    stages = read_json(run / "metrics.json")
    assert list(stages) == ["after"]
    assert 0 < stages["after"][NDCG] <= 1
    for split in ("NanoMSMARCO", "NanoNFCorpus", "NanoNQ"):
        assert f"{split}_corpus_active_dims" in stages["after"]
    assert f"model: {run / 'model'}  {NDCG} " in outcome.last_line
    assert "200 pairs for training, 1000 held out" in outcome.err
    resolved, given = (yaml.safe_load(path.read_text()) for path in (run / "config.yaml", CONFIG))
    for group in ("model", "data"):
        assert resolved[group].items() >= given[group].items()
    assert resolved["trainer"]["precision"] == precision_on_cpu("16-mixed")
    assert outcome.err.count("precision 16-mixed") == 1


def test_the_pinned_revision_is_asked_for(hub):
    hub, _ = hub
    assert REVISION == DEFAULT_REVISIONS[NATURAL_QUESTIONS] == yaml.safe_load(CONFIG.read_text())["data"]["revision"]
    assert hub.asked(f"GET /datasets/{NATURAL_QUESTIONS}/resolve/{REVISION}/pair/train-00000-of-00001.parquet")
    assert len(hub.asked(NATURAL_QUESTIONS)) == len(hub.asked(f"{NATURAL_QUESTIONS}/[a-z]+/{REVISION}"))
    assert hub.asked(f"GET /{BASE}/resolve/[0-9a-f]{{40}}/model.safetensors")
    for config in ("corpus", "queries", "qrels"):
        assert hub.asked(f"HEAD /datasets/{NANOBEIR_ID}/resolve/[0-9a-f]{{40}}/{config}/NanoNQ.parquet")


def test_without_the_hub_the_cache_does(hub, place):
    hub, _ = hub
    asked = len(hub.requests)
    outcome = fit(place, "offline", HF_ENDPOINT=hub.endpoint, HF_HUB_OFFLINE="1")
    assert outcome.code == 0, outcome.err
    assert len(hub.requests) == asked
    online, offline = (read_json(place / run / "metrics.json")["after"] for run in ("online", "offline"))
    assert offline == pytest.approx(online, rel=1e-5)


def test_a_saved_model_by_its_hub_id(hub, place):
    hub, _ = hub
    model = place / "online" / "model"
    hub.repositories.append(Repository.of_folder("models", SAVED, model))
    corpus = place / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"_id": f"d{n}", "text": text}) + "\n" for n, text in enumerate(TEXTS)))
    arguments = ["--corpus", corpus, "who wrote the song"]
    online = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0"}
    outcome = command("splade_lit.search", "--model", SAVED, *arguments, cwd=place, **caches(place), **online)
    assert outcome.code == 0, outcome.err
    assert hub.asked(f"GET /{SAVED}/resolve/[0-9a-f]{{40}}/query_0_SparseStaticEmbedding/model.safetensors")
    assert outcome.out == call(search.main, "--model", model, *arguments).out
    assert "d0" in outcome.out
