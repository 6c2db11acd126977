import pytest
import torch
from PIL import Image

from visattn.backbones import SwinTransformer, VisionTransformer, local_hybrid_tiny
from visattn.data import Preprocess, open_image
from visattn.heads import QuestionEncoder, VisualQuestionAnswerer
from visattn.interpret import record_attention
from visattn.text import CaptionTokenizer

texts = ["what is red?", "where is the red shape, seen from the blue one?", "is it large or small?"]
answers = ("yes", "no", "2", "circle", "left of")


def answerer(kind="vit", tokenizer=None, **options):
    torch.manual_seed(0)
    backbones = {
        "vit": lambda: VisionTransformer(32, 8, 24, 1, 2),  # 1 prefix token, 16 places
        "swin": lambda: SwinTransformer(32, 2, 12, (1, 1), (2, 4), window_size=4),
        "hybrid": lambda: local_hybrid_tiny(32, dims=(16, 24), depths=(1, 1), num_heads=(2, 2), stem_dim=8),
    }
    tokenizer = tokenizer or CaptionTokenizer.train_words(texts, min_count=1)
    questions = QuestionEncoder(
        tokenizer.vocabulary_size, 36, dim=24, depth=2, num_heads=3, max_length=17, end_id=tokenizer.end_id
    )
    model = VisualQuestionAnswerer(backbones[kind](), questions, tokenizer, answers, encoder_heads=3, **options)
    torch.nn.init.normal_(model.head.weight, std=0.5)  # far from equal answers
    model.preprocess = Preprocess(32)
    return model.eval()


@pytest.mark.parametrize("kind", ["vit", "swin", "hybrid"])
@pytest.mark.parametrize("encoder_depth", [0, 1])
def test_any_backbone_gives_a_logit_for_each_answer_to_each_question(kind, encoder_depth):
    model = answerer(kind, encoder_depth=encoder_depth)
    token_ids = model.tokenizer.batch(texts * 2).unflatten(0, (2, 3))
    assert model(torch.randn(2, 3, 32, 32), token_ids).shape == (2, 3, 5)
    assert model(torch.randn(2, 3, 48, 40), token_ids).shape == (2, 3, 5)


def test_questions_and_images_dont_mix():
    model, images = answerer(), torch.randn(2, 3, 32, 32)
    token_ids = model.tokenizer.batch(texts * 2).unflatten(0, (2, 3))
    together = model(images, token_ids)
    for image in range(2):
        for turn in range(3):
            alone = model(images[image : image + 1], model.tokenizer.batch([texts[turn]])[None])
            torch.testing.assert_close(alone[0, 0], together[image, turn], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-3)
    assert not torch.allclose(together[0, 0], together[0, 1], atol=1e-3)


def test_what_is_behind_the_end_of_a_question_is_not_seen():
    model = answerer()
    question, memory = model.tokenizer.batch(["what is red?"])[None], torch.randn(1, 5, 36)
    padded = torch.cat([question, torch.tensor([[[0, 7, 2, 9]]])], dim=2)
    torch.testing.assert_close(model.judge(memory, padded), model.judge(memory, question), atol=1e-5, rtol=1e-5)


def test_words_are_seen_up_to_the_first_end_also_where_start_and_end_are_one_id():
    questions = answerer().questions
    questions.end_id = 1
    token_ids = torch.tensor([[1, 5, 6, 1, 1], [1, 5, 6, 7, 8], [1, 1, 5, 5, 1]])
    expected = [[True] * 4 + [False], [True] * 5, [True, True, False, False, False]]
    assert questions.words_of(token_ids).tolist() == expected


def test_every_word_and_place_of_a_question_and_image_counts():
    model = answerer()
    memory = torch.randn(1, 5, 36, requires_grad=True)
    question = model.tokenizer.batch([texts[1]])[None]
    model.judge(memory, question)[0, 0, 0].backward()
    assert (memory.grad.abs().sum(2) > 1e-6).all()
    for place in range(1, question.shape[2] - 1):
        other = question.clone()
        other[0, 0, place] = model.tokenizer.encode("small")[0]
        assert not torch.allclose(model.judge(memory, other), model.judge(memory, question), atol=1e-5)


def test_attention_to_words_and_image_can_be_recorded():
    model = answerer(encoder_depth=1)
    images, token_ids = torch.randn(2, 3, 32, 32), model.tokenizer.batch(texts * 2).unflatten(0, (2, 3))
    expected = model(images, token_ids)
    with record_attention(model) as maps:
        recorded = model(images, token_ids)
    torch.testing.assert_close(recorded, expected, atol=1e-5, rtol=1e-5)
    length = token_ids.shape[2]
    for block in range(2):
        words = maps[f"questions.blocks.{block}.attention"]
        places = maps[f"questions.blocks.{block}.cross_attention"]
        assert words.shape == (6, 3, length, length)
        assert places.shape == (6, 3, length, 17)
        torch.testing.assert_close(places.sum(3), torch.ones(6, 3, length))
        assert (words[0, :, :, 5:] == 0).all()  # "what is red" with start and end are five
    assert maps["encoder.blocks.0.attention"].shape == (2, 3, 17, 17)
    assert "backbone.blocks.0.attention" in maps


def test_training_reaches_all_weights():
    model = answerer(encoder_depth=1).train()
    token_ids = model.tokenizer.batch(texts).unflatten(0, (1, 3))
    model(torch.randn(1, 3, 32, 32), token_ids).square().sum().backward()
    without = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert without == []


def test_dropout_is_for_training_only():
    model = answerer(dropout=0.5)
    images, token_ids = torch.randn(1, 3, 32, 32), model.tokenizer.batch(texts)[None]
    assert torch.equal(model(images, token_ids), model(images, token_ids))
    model.train()
    assert not torch.equal(model(images, token_ids), model(images, token_ids))


def test_at_first_each_answer_is_as_probable_as_one_of_them():
    torch.manual_seed(0)
    tokenizer = CaptionTokenizer.train_words(texts, min_count=1)
    questions = QuestionEncoder(tokenizer.vocabulary_size, 24, 24, 1, 2, end_id=tokenizer.end_id)
    model = VisualQuestionAnswerer(
        VisionTransformer(32, 8, 24, 1, 2),
        questions,
        tokenizer,
        [str(number) for number in range(100)],
        encoder_heads=2,
    )
    (found,) = model.eval().answer(torch.randn(1, 3, 32, 32), "what is red?", num_return=100)
    probabilities = [answer.probability for answer in found]
    assert min(probabilities) > 0.003
    assert max(probabilities) < 0.03


@pytest.fixture
def pictures(tmp_path):
    paths = [tmp_path / f"{color}.png" for color in ("red", "blue", "green")]
    for path in paths:
        Image.new("RGB", (40, 50), path.stem).save(path)
    return paths


def test_answers_are_the_most_probable_of_the_vocabulary(pictures):
    model = answerer()
    found = model.answer(pictures, texts, num_return=3)
    for path, text, best in zip(pictures, texts, found, strict=True):
        image, token_ids = model.preprocess(open_image(path))[None], model.tokenizer.batch([text])[None]
        with torch.no_grad():
            probabilities = model(image, token_ids)[0, 0].sigmoid()
        expected = sorted(zip(probabilities.tolist(), answers, strict=True), reverse=True)[:3]
        assert [answer.text for answer in best] == [text for _, text in expected]
        assert [answer.probability for answer in best] == pytest.approx([value for value, _ in expected], abs=1e-5)


def test_one_image_or_one_question_serves_all_of_the_others(pictures):
    model = answerer()
    opened = [open_image(path) for path in pictures]
    tensor = torch.stack([model.preprocess(picture) for picture in opened])

    def equal(found, expected):
        return [pair.text for (pair,) in found] == [pair.text for (pair,) in expected] and [
            pair.probability for (pair,) in found
        ] == pytest.approx([pair.probability for (pair,) in expected], abs=1e-5)

    one_image = [model.answer(str(pictures[0]), text)[0] for text in texts]
    assert equal(model.answer(opened[0], texts), one_image)
    assert equal(model.answer(tensor[:1], texts), one_image)
    one_question = [model.answer(path, texts[1])[0] for path in pictures]
    assert equal(model.answer(opened, texts[1]), one_question)
    assert equal(model.answer(tensor, [texts[1]]), one_question)


def test_more_answers_than_there_are_are_all_of_them(pictures):
    (found,) = answerer().answer(pictures[0], "what is red?", num_return=50)
    assert sorted(answer.text for answer in found) == sorted(answers)


@pytest.mark.parametrize("question", ["\U0001f642?", "w\u0127at \u200bis \u0301?", "?", "red " * 100])
def test_any_text_is_a_question(question, pictures):
    (((text, probability),),) = answerer().answer(pictures[0], question)
    assert text in answers
    assert 0 < probability < 1


@pytest.mark.parametrize(
    ("images", "questions", "num_return", "message"),
    [
        (2, texts, 1, "3 questions don't fit 2 images: give one for each, or one of either"),
        (2, [], 1, "0 questions don't fit 2 images"),
        (1, " \n", 1, "is no question"),
        (1, ["what is red?", ""], 1, "'' is no question"),
        (1, "is \ud83d red?", 1, "no valid Unicode"),
        (1, "what is red?", 0, "num_return 0 must be at least 1"),
    ],
)
def test_what_fits_not_together_is_refused(images, questions, num_return, message):
    with pytest.raises(ValueError, match=message):
        answerer().answer(torch.randn(images, 3, 32, 32), questions, num_return=num_return)


def test_pictures_need_a_preprocess_and_must_be_there(pictures, tmp_path):
    model = answerer()
    with pytest.raises(FileNotFoundError, match=r"missing\.png: there is no such file"):
        model.answer([pictures[0], tmp_path / "missing.png"], "what is red?")
    with pytest.raises(ValueError, match="add an axis in front"):
        model.answer(torch.randn(3, 32, 32), "what is red?")
    model.preprocess = None
    with pytest.raises(ValueError, match="doesn't know how pictures are prepared"):
        model.answer(pictures, "what is red?")


def test_parts_that_dont_fit_are_refused():
    tokenizer = CaptionTokenizer.train_words(texts, min_count=1)
    backbone = VisionTransformer(32, 8, 24, 1, 2)
    questions = QuestionEncoder(tokenizer.vocabulary_size - 1, 24, 24, 1, 2, end_id=2)
    with pytest.raises(ValueError, match=r"set its vocabulary_size to tokenizer\.vocabulary_size"):
        VisualQuestionAnswerer(backbone, questions, tokenizer, answers)
    questions = QuestionEncoder(tokenizer.vocabulary_size, 24, 24, 1, 2, end_id=2)
    for names in ((), ("yes", "no", "yes")):
        with pytest.raises(ValueError, match="are no vocabulary"):
            VisualQuestionAnswerer(backbone, questions, tokenizer, names)
    with pytest.raises(ValueError, match="max_length 1 leaves no room"):
        QuestionEncoder(9, 24, 24, 1, 2, end_id=2, max_length=1)


def test_byte_pairs_work_as_words_do(pictures):
    tokenizer = CaptionTokenizer.train_bpe(texts, vocabulary_size=270)
    model = answerer(tokenizer=tokenizer)
    assert model.answer(pictures[0], texts)[0] != model.answer(pictures[1], texts)[0]
