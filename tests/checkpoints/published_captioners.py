"""Small captioners as transformers writes them: random weights far from 0, and tokenizers with few words."""

import json
from pathlib import Path

import tokenizers
import torch
import transformers
from safetensors.torch import load_file

sentences = [
    "a man riding a wave on top of a surfboard",
    "two dogs play with a red ball in the park.",
    "a plate of food with meat, rice and vegetables",
    "people are walking down the street, it's raining",
    "a cat sleeping on a couch next to a remote control",
]
image_sizes = {"image_size": 28, "patch_size": 7, "num_hidden_layers": 2, "num_attention_heads": 2}
image_sizes |= {"hidden_size": 20, "intermediate_size": 44}
text_sizes = {"max_position_embeddings": 32, "num_hidden_layers": 2, "num_attention_heads": 3}
text_sizes |= {"hidden_size": 24, "intermediate_size": 40}


def perturb(model, spread=0.2, seed=0):
    """Moves every parameter, so that none is 0 or 1 and captions differ from image to image."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * spread)
    return model.eval()


def save_byte_pairs(folder) -> transformers.GPT2Tokenizer:
    """A tokenizer of GPT-2's kind, whose one special token is its last."""
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator(sentences, vocab_size=280, min_frequency=2, show_progress=False)
    trained.add_special_tokens(["<|endoftext|>"])
    trained.save_model(str(folder))
    merges = [tuple(line.split()) for line in Path(folder, "merges.txt").read_text().splitlines()[1:]]
    tokenizer = transformers.GPT2Tokenizer(vocab=trained.get_vocab(), merges=merges)
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_word_pieces(folder) -> transformers.BertTokenizer:
    """A tokenizer of BERT's kind."""
    trained = tokenizers.BertWordPieceTokenizer()
    trained.train_from_iterator(sentences, vocab_size=90, min_frequency=1, show_progress=False)
    vocabulary = sorted(trained.get_vocab(), key=trained.get_vocab().__getitem__)
    Path(folder, "vocab.txt").write_text("".join(f"{token}\n" for token in vocabulary))
    tokenizer = transformers.BertTokenizer(vocab=trained.get_vocab(), clean_up_tokenization_spaces=True)
    tokenizer.save_pretrained(folder)
    return tokenizer


def pixels(batch=3, side=28, seed=1):
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))


def words_of(output, start, end_id):
    """transformers' output (captions, T) without the first `start` ids, the end and what is behind it."""
    rows = [row[start:] for row in output.tolist()]
    return [row[: row.index(end_id)] if end_id in row else row for row in rows]


def same_captions(model, images, generate, tokenizer, prompt="", **options):
    """Whether `model.caption` gives the ids and the texts of transformers' `generate`; returns the ids."""
    num_return = options.pop("num_return", 1)
    output = generate(num_return_sequences=num_return, do_sample=False, **options)
    start = 1 + len(model.tokenizer.encode(prompt))
    expected = words_of(output, start, model.tokenizer.end_id)
    captions = model.caption(images, num_return=num_return, prompt=prompt, **options)
    assert [caption.token_ids for group in captions for caption in group] == expected
    texts = tokenizer.batch_decode(expected, skip_special_tokens=True)
    assert [caption.text for group in captions for caption in group] == [text.strip() for text in texts]
    return expected


def rewrite(source, target, change, **config):
    """A copy of a folder whose weights are `change(weights)`, in a PyTorch file, and whose config.json has more."""
    for path in source.iterdir():
        if path.suffix in (".json", ".txt"):
            (target / path.name).write_bytes(path.read_bytes())
    content = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(content | config))
    torch.save(change(load_file(source / "model.safetensors")), target / "pytorch_model.bin")
