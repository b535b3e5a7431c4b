from simmatch_tf.flags import errors


def test_one_line_without_operations():
    text = "{{function_node __wrapped__SaveV2}} x; No space [Op:SaveV2]\nmore"
    assert errors.reason(OSError(text)) == "x; No space"


def test_what_brought_a_collective_down():
    text = "Graph execution error:\n\nat f\nCollective ops is aborted by: gone"
    assert errors.reason(OSError(text)) == "Collective ops is aborted by: gone"


def test_an_error_without_a_word():
    assert errors.reason(ValueError()) == "ValueError()"


def test_only_similar_names_are_suggested():
    names = ["epochs", "steps", "eval_every", "keep"]
    assert errors.nearest("step", names) == "; did you mean steps?"
    assert (
        errors.nearest("epoch", names, prefix="--")
        == "; did you mean --epochs?"
    )
    assert errors.nearest("a12", ["a11", "a13", "b2"]) == (
        "; did you mean a13 or a11?"
    )
    assert errors.nearest("xyz", ["a", "b"]) == "; known: a, b"
