import json

import pytest

from visattn.data.json_fields import JsonFields


class WrongError(ValueError):
    pass


fields = JsonFields(WrongError, "things")


def test_good_fields_are_given_as_they_are(tmp_path):
    entry = {"list": [1], "text": " a ", "none": "", "number": 0, "numbers": [1, -2.5]}
    (tmp_path / "x.json").write_text(json.dumps(entry), encoding="utf-8-sig")  # as some editors of Windows save it
    read = fields.read_json(tmp_path / "x.json")
    assert fields.list_of("x", read, "list") == [1]
    assert fields.text("x", read, "text") == " a "
    assert fields.string("x", read, "none") == ""
    assert fields.whole("x", read, "number", 0) == 0
    assert fields.numbers("x", "numbers", read["numbers"], 2) == [1, -2.5]
    assert fields.unicode("x", "text", "a\n🐶") == "a\n🐶"


wrong = [
    (lambda: fields.field("x", [], "a"), "x: expected an object, found a list"),
    (lambda: fields.field("x", {}, "a"), 'x: "a" is missing'),
    (lambda: fields.list_of("x", {"a": {}}, "a"), 'x: "a" must be a list, found an object'),
    (lambda: fields.string("x", {"a": None}, "a"), 'x: "a" must be a string, found null'),
    (lambda: fields.text("x", {"a": " \n"}, "a"), 'x: "a" is empty'),
    (lambda: fields.unicode("x", "a", "b\ud800"), r'x: "a" is no valid Unicode \(a lone surrogate at 1\)'),
    (lambda: fields.whole("x", {"a": True}, "a"), 'x: "a" must be a whole number, found a truth value'),
    (lambda: fields.whole("x", {"a": 1.0}, "a"), 'x: "a" must be a whole number, found a number'),
    (lambda: fields.whole("x", {"a": "1"}, "a", 3), 'x: "a" must be a whole number from 3 on, found a string'),
    (lambda: fields.whole("x", {"a": 2}, "a", 3), 'x: "a" must be a whole number from 3 on, found 2'),
    (lambda: fields.whole("x", {"a": -(2**63)}, "a"), "found one of more than 64 bits"),
    (lambda: fields.numbers("x", "a", 3), 'x: "a" must be a list of numbers, found a number'),
    (lambda: fields.numbers("x", "a", [3, 4], 3), 'x: "a" must be 3 numbers, found 2'),
    (lambda: fields.numbers("x", "a", [False]), "found a truth value in it"),
    (lambda: fields.numbers("x", "a", [float("-inf")]), "cannot be used: -inf"),
    (lambda: fields.numbers("x", "a", [2**53]), "one of more than 53 bits"),
]


@pytest.mark.parametrize(("read", "message"), wrong)
def test_errors_say_where_and_what(read, message):
    with pytest.raises(WrongError, match=message):
        read()


def test_a_file_that_is_no_whole_json_is_an_error(tmp_path):
    file = tmp_path / "x.json"
    with pytest.raises(FileNotFoundError, match=r"x\.json: there is no such file of things"):
        fields.read_json(file)
    for text in ("", '{"a": [1, 2', "[" * 100_000, "1" * 5000):
        file.write_text(text)
        with pytest.raises(WrongError, match=r"x\.json: no JSON, or cut off"):
            fields.read_json(file)
    file.write_bytes(b'{"\xe9"')
    with pytest.raises(WrongError, match=r"x\.json: not UTF-8 \(byte 2\)"):
        fields.read_json(file)
