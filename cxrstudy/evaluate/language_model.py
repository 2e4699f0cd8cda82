"""The language model of report generation: a small one, or a large one in a folder."""

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from cxrstudy import study
from cxrstudy.encoders import MissingWeights
from cxrstudy.evaluate.features import device as the_device
from cxrstudy.weights import UnmatchedTensors, folder_of


def train_tokenizer(reports: list[str], vocabulary: int) -> transformers.PreTrainedTokenizerFast:
    """Return a byte-pair tokenizer trained on ``reports``; digits are single tokens.

    Any text is decoded as it was encoded.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = {"pad_token": "<pad>", "bos_token": "<start>", "eos_token": "<end>"}
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(special.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(reports, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def small_model(p: study.Report, tokenizer: Any) -> Any:
    """Return a Llama of ``p.layers`` blocks and ``p.width`` channels with random weights."""
    config: Any = {
        "hidden_size": p.width,
        "intermediate_size": 2 * p.width,
        "num_attention_heads": p.width // 32,
        "num_hidden_layers": p.layers,
        "vocab_size": len(tokenizer),
        "tie_word_embeddings": True,
        "attn_implementation": "eager",  # on CPU faster than the fused kernel at these sizes
    }
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        config[name] = getattr(tokenizer, name)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))


def open_model(name: str, lora_rank: int) -> tuple[Any, Any]:
    """Return the language model of a folder, frozen, and its tokenizer.

    Args:
        name: A folder, or the name of one below ``weights.folder_of``.
        lora_rank: Rank of the adapters on its linear layers; 0 = none.

    Raises:
        MissingWeights: Files are missing. The message says what to fetch and where to put it.
        UnmatchedTensors: Tensors are missing or do not fit: nothing is initialised at random.
    """
    places = (study.resolve(name), folder_of(Path(name).name))
    folder = next((place for place in places if (place / "config.json").is_file()), None)
    where = folder or places[1]
    fetch = (
        f"{where} takes config.json, *.safetensors and the tokenizer's files of a causal language "
        f"model of Hugging Face. With a network, run: hf download OWNER/{where.name} "
        f"--local-dir {where} (size and licence: see its model card). Or set language_model='' for "
        "a small one that is trained here"
    )
    if folder is None:
        raise MissingWeights(
            f"no language model {name!r}: no config.json in {places[0]} nor in {places[1]}. {fetch}"
        )
    kinds: Any = {
        "dtype": torch.bfloat16 if the_device().type == "cuda" else torch.float32,
        "local_files_only": True,
    }
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        opened: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, output_loading_info=True, **kinds
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise MissingWeights(
            f"the language model in {folder} is not complete ({error}). {fetch}"
        ) from error
    model, loaded = opened
    wrong = {
        kind: sorted(map(str, loaded[kind]))
        for kind in ("missing_keys", "mismatched_keys")
        if loaded[kind]
    }
    if wrong:
        raise UnmatchedTensors(
            f"{folder} does not have all that {type(model).__name__} needs: {wrong}. {fetch}"
        )
    words = model.get_input_embeddings().num_embeddings
    if tokenizer.eos_token_id is None or len(tokenizer) > words:
        raise UnmatchedTensors(
            f"{folder}: its tokenizer needs an end token (has {tokenizer.eos_token!r}) and at most "
            f"the {words} tokens of its model (has {len(tokenizer)}). {fetch}"
        )
    model.requires_grad_(False)
    if lora_rank:
        from peft import LoraConfig, get_peft_model  # slow to import

        asked = LoraConfig(
            r=lora_rank,
            lora_alpha=2 * lora_rank,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(model, asked)
    return model, tokenizer
