import copy

import torch

from visattn.text import CaptionTokenizer

captions = ["A man's dog runs.", "a dog, running!", "The dog sits on a T-shirt", "a man sits"]


def test_a_caption_comes_back_as_words():
    tokenizer = CaptionTokenizer.train_words(captions, min_count=1)
    ids = tokenizer.encode("A man's dog sits on the T-shirt!")
    assert tokenizer.decode(ids) == "a man's dog sits on the t-shirt"
    again = copy.deepcopy(tokenizer)
    assert tokenizer.batch(["a dog", "<end> a man sits"]).equal(again.batch(["a dog", "<end> a man sits"]))


def test_a_batch_begins_with_start_and_ends_with_end_and_padding():
    tokenizer = CaptionTokenizer.train_bpe(captions, vocabulary_size=300)
    batch = tokenizer.batch(["a dog", "a man sits"])
    assert batch.dtype == torch.long
    assert (batch[:, 0] == tokenizer.start_id).all()
    assert (batch == tokenizer.end_id).sum(1).tolist() == [1, 1]
    assert tokenizer.decode(batch[1]) == "a man sits"
