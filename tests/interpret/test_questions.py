import numpy as np
import pytest
import torch

from tests.interpret.small_answerers import answerer_of, answers, kinds, questions
from visattn.interpret import explain_answer, record_attention
from visattn.interpret.answer_grid import answer_grid
from visattn.interpret.questions import flow_of


@pytest.mark.parametrize("kind", kinds)
def test_an_explanation_is_of_the_best_answer_and_covers_words_and_image(kind):
    model, image = answerer_of(kind), torch.randn(1, 3, 32, 32)
    found = explain_answer(model, image, questions[1])
    (((answer, probability),),) = model.answer(image, questions[1])
    assert found.answer == answer
    assert found.probability == pytest.approx(probability, abs=1e-5)
    printed = questions[1] if kind == "byte pairs" else "where is the red shape seen from the blue one"
    assert [word.word for word in found.words] == printed.split()
    assert sum(word.share for word in found.words) == pytest.approx(1)
    for attention in (found.attention, *(word.attention for word in found.words)):
        assert attention.shape == (32, 32)
        assert float(attention.min()) == 0
        assert float(attention.max()) == pytest.approx(1, abs=0.3)  # smoothed between places
    with torch.inference_mode():  # as commands call it
        assert explain_answer(model, image.clone(), questions[1]).words[0].share == found.words[0].share


def test_each_answer_has_an_explanation_of_its_own():
    model, image = answerer_of("class token"), torch.randn(1, 3, 32, 32)
    found = [explain_answer(model, image, questions[0], answer) for answer in answers]
    assert [explanation.answer for explanation in found] == list(answers)
    best = {answer.text: answer.probability for answer in model.answer(image, questions[0], num_return=5)[0]}
    for explanation in found:
        assert explanation.probability == pytest.approx(best[explanation.answer], abs=1e-5)
    assert not torch.allclose(found[0].attention, found[1].attention, atol=1e-3)


def test_token_ids_explain_what_their_text_does():
    model, image = answerer_of("class token"), torch.randn(1, 3, 32, 32)
    token_ids = torch.nn.functional.pad(model.tokenizer.batch([questions[0]])[0], (0, 4))  # as in a batch
    found, expected = explain_answer(model, image, token_ids), explain_answer(model, image, questions[0])
    assert [word.word for word in found.words] == ["what", "is", "red"]
    torch.testing.assert_close(found.attention, expected.attention, atol=1e-4, rtol=1e-4)
    assert [word.share for word in found.words] == pytest.approx([word.share for word in expected.words], abs=1e-4)


def test_a_words_attention_is_the_recorded_one():
    model, image = answerer_of("class token"), torch.randn(1, 3, 32, 32)
    with record_attention(model) as maps:
        model(image, model.tokenizer.batch([questions[0]])[None])
    seen = sum(maps[f"questions.blocks.{block}.cross_attention"][0].mean(0) for block in range(2)) / 2
    red = seen[3, 1:].view(4, 4).detach()  # behind the start and two words; behind the class token
    shown = explain_answer(model, image, questions[0]).words[2].attention
    places = shown.view(4, 8, 4, 8).mean((1, 3))
    assert np.corrcoef(red.flatten().numpy(), places.flatten().numpy())[0, 1] > 0.9


def test_relevance_is_where_the_answer_changes_with_the_image():
    """With values that only one place has, this place is all that counts."""
    model = answerer_of("class token")
    for block in model.questions.blocks:
        block.attention.projection.weight.data.zero_()  # words don't mix
    image = torch.randn(1, 3, 32, 32)
    place = torch.zeros(1, 17, 36)
    place[0, 6] = 3 * torch.randn(36)  # row 1, column 1 behind the class token
    model.memory = lambda features: place + 0 * features.tokens.sum()
    found = explain_answer(model, image, questions[0])
    cells = found.attention.view(4, 8, 4, 8).mean((1, 3))
    assert cells.argmax() == 5 or cells.max() == 0


def test_flow_keeps_what_pushes_the_answer_up():
    weights, gradient = torch.tensor([[[[0.25, 0.75], [0.5, 0.5]]]]), torch.tensor([[[[4.0, -1.0], [1.0, 1.0]]]])
    assert flow_of(weights, gradient).tolist() == [[1.0, 0.0], [0.5, 0.5]]


def test_nothing_of_the_model_changes():
    model, image = answerer_of("encoder"), torch.randn(1, 3, 32, 32)
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    explain_answer(model, image, questions[0])
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_without_trainable_weights_is_explained_too():
    model, image = answerer_of("class token"), torch.randn(1, 3, 32, 32)
    expected = explain_answer(model, image, questions[1])
    model.requires_grad_(False)
    torch.testing.assert_close(explain_answer(model, image, questions[1]).attention, expected.attention)


@pytest.mark.parametrize(
    ("images", "answer", "message"),
    [(2, None, "one image .* at a time, not"), (1, "maybe", "'maybe' is none of the 5 answers of this model")],
)
def test_what_cannot_be_explained_is_refused(images, answer, message):
    with pytest.raises(ValueError, match=message):
        explain_answer(answerer_of("class token"), torch.randn(images, 3, 32, 32), questions[0], answer)


def test_the_grid_shows_every_image_and_colours_answers():
    model, images = answerer_of("class token"), torch.rand(5, 3, 32, 32)
    asked = [*questions, "a very long question " * 20, "\U0001f642 $x^2$?"]
    found = [explain_answer(model, image[None], text) for image, text in zip(images, asked, strict=True)]
    given = [found[0].answer, "zebra", "", found[3].answer, "zebra"]
    picture = answer_grid(images, asked, found, given, columns=2)
    wide = answer_grid(images, asked, found, given, columns=9)
    assert wide.width > 2 * picture.width
    assert picture.height > 2 * wide.height

    def shown(image, color):
        return (np.abs(np.asarray(image, dtype=int) - color).sum(2) < 30).any()

    blue, orange = (0, 114, 178), (213, 94, 0)
    right = answer_grid(torch.ones(1, 3, 32, 32), asked[:1], found[:1], given[:1])
    wrong = answer_grid(torch.ones(1, 3, 32, 32), asked[1:2], found[1:2], given[1:2])
    assert shown(right.crop((0, right.height * 3 // 5, *right.size)), blue)
    assert shown(wrong.crop((0, wrong.height * 3 // 5, *wrong.size)), orange)
    with pytest.raises(ValueError, match="5 images, 4 questions, 5 answers, 5"):
        answer_grid(images, asked[:4], found, given)
